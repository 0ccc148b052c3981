// What every page does: forms that act, pictures that are dropped, keys, and what is new.
import { actOn } from "./actions.js";
import { followNews } from "./live.js";
import { listenToKeys } from "./keys.js";
import { takePictures } from "./pictures.js";

followNews();
actOn(document);
takePictures(document);
listenToKeys();

// A picture of a few pixels is shown as those, not blurred.
document.addEventListener("load", event => {
  if (event.target instanceof HTMLImageElement) event.target.classList.toggle("tiny", event.target.naturalWidth < 48);
}, true);
for (const image of document.images) if (image.complete) image.classList.toggle("tiny", image.naturalWidth < 48);

document.addEventListener("click", async event => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  await navigator.clipboard.writeText(button.dataset.copy);
  button.textContent = "copied";
  setTimeout(() => { button.textContent = "copy"; }, 1500);
});
