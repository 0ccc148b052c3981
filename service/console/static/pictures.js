// Pictures that are dropped, pasted or chosen: to search by one, or to add many.
import { OURS, ask } from "./actions.js";
import { refresh } from "./live.js";

const FILES_AT_ONCE = 8;

function isPicture(file) {
  return file.type.startsWith("image/") || /\.(heic|heif|avif)$/i.test(file.name);
}

async function search(zone, [picture]) {
  const answer = document.getElementById("answer"), words = zone.querySelector("[data-status]");
  const began = performance.now();
  words.textContent = `Searching by ${picture.name || "the pasted picture"}`;
  try {
    const found = await fetch(zone.dataset.path, { method: "POST", headers: { ...OURS, "Content-Type": picture.type || "image/*", Accept: "text/html" }, body: picture });
    const page = new DOMParser().parseFromString(await found.text(), "text/html");
    if (!found.ok) throw new Error(page.querySelector(".problem")?.textContent ?? `The service answered ${found.status}.`);
    answer.replaceChildren(...page.body.childNodes);
    const shown = answer.querySelector("[data-asked]");
    if (shown) shown.src = URL.createObjectURL(picture);
    words.textContent = `Found in ${Math.round(performance.now() - began)} ms.`;
    answer.querySelector("h2")?.focus();
  } catch (error) {
    words.textContent = error.message;
  }
}

async function upload(zone, files) {
  const bar = zone.querySelector("progress"), words = zone.querySelector("[data-status]"), list = zone.querySelector("ul");
  const label = zone.querySelector("[name=label]").value;
  const counts = new Map();
  let done = 0;
  bar.hidden = false;
  bar.max = files.length;
  list.replaceChildren();
  for (let start = 0; start < files.length; start += FILES_AT_ONCE) {
    const part = files.slice(start, start + FILES_AT_ONCE), form = new FormData();
    for (const file of part) form.append("files", file);
    if (label) form.append("items", JSON.stringify(part.map(() => ({ label }))));
    let results;
    try {
      ({ results } = await ask(zone.dataset.path, { method: "POST", body: form }));
    } catch (error) {
      results = part.map(file => ({ id: file.name, status: "rejected", error: error.message }));
    }
    for (const { id, status, error } of results) {
      counts.set(status, (counts.get(status) ?? 0) + 1);
      const line = document.createElement("li");
      line.className = `outcome-${status}`;
      line.textContent = error ? `${id}: ${error}` : `${id}: ${status}`;
      list.append(line);
    }
    done += part.length;
    bar.value = done;
    words.textContent = `${done} of ${files.length}: ${[...counts].map(([status, count]) => `${count} ${status}`).join(", ")}.`;
  }
  await refresh();
}

export function takePictures(page) {
  const zones = [...page.querySelectorAll("[data-pictures]")];
  const take = (zone, files) => {
    const pictures = [...files].filter(isPicture);
    if (pictures.length === 0) zone.querySelector("[data-status]").textContent = "That is no picture.";
    else (zone.dataset.pictures === "search" ? search : upload)(zone, pictures);
  };
  for (const zone of zones) {
    zone.addEventListener("dragover", event => { event.preventDefault(); zone.classList.add("over"); });
    zone.addEventListener("dragleave", () => zone.classList.remove("over"));
    zone.addEventListener("drop", event => { event.preventDefault(); zone.classList.remove("over"); take(zone, event.dataTransfer.files); });
    zone.querySelector("input[type=file]").addEventListener("change", event => { take(zone, event.target.files); event.target.value = ""; });
  }
  document.addEventListener("paste", event => {
    const zone = zones.find(each => each.contains(document.activeElement)) ?? zones[0];
    if (zone && event.clipboardData.files.length) take(zone, event.clipboardData.files);
  });
}
