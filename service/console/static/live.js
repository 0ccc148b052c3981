// What is new: the page is fetched again, the parts of it that are marked `data-live` take their new form, and those that
// are marked `data-while` stay as they are until it is without them.
const PAUSE_MS = 700;
const seen = new Map(); // what the service last said of each part, by its id
let timer, clock, source, last = 0, busy = false;

export async function refresh() {
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (!answer.ok) throw new Error(`The page answered ${answer.status}.`);
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const next = page.getElementById(part.id);
    if (!next || isTypedIn(part) || seen.get(part.id) === next.innerHTML) continue;
    seen.set(part.id, next.innerHTML);
    replace(part, next);
  }
  for (const part of document.querySelectorAll("[data-while]")) if (!page.getElementById(part.id)) part.remove();
  const { events, every } = page.getElementById("main").dataset;
  if (source && !events) source.close();
  lookEvery(every);
}

function isTypedIn(part) {
  const focus = document.activeElement;
  return part.contains(focus) && focus.matches("input, select, textarea");
}

// What was opened stays open, and what had the focus keeps it.
function replace(part, next) {
  const opened = [...part.querySelectorAll("details")].map(each => each.open);
  const controls = [...part.querySelectorAll("a, button, summary")], focused = controls.indexOf(document.activeElement);
  part.replaceChildren(...next.childNodes);
  part.querySelectorAll("details").forEach((each, place) => { each.open = opened[place] ?? false; });
  if (focused >= 0) part.querySelectorAll("a, button, summary")[focused]?.focus();
}

// At most one look at a time, and not more often than somebody can see.
function refreshSoon() {
  clearTimeout(timer);
  timer = setTimeout(async () => {
    if (busy) return refreshSoon();
    busy = true;
    try {
      await refresh();
      say(source?.readyState === EventSource.CLOSED ? "Nothing more will change" : "Live");
    } catch (error) {
      say(`Not up to date: ${error.message} It is tried again`);
    }
    busy = false;
    last = Date.now();
  }, Math.max(0, last + PAUSE_MS - Date.now()));
}

function say(text) {
  const time = new Date().toLocaleTimeString(undefined, { timeZoneName: "short" });
  document.getElementById("connection").textContent = `${text}, ${time}`;
}

function lookEvery(seconds) {
  clearInterval(clock);
  if (seconds) clock = setInterval(() => { if (!document.hidden) refreshSoon(); }, 1000 * Number(seconds));
}

export function followNews() {
  for (const part of document.querySelectorAll("[data-live]")) seen.set(part.id, part.innerHTML);
  const { events, every } = document.getElementById("main").dataset;
  if (events) {
    source = new EventSource(events);
    for (const name of ["state", "note", "progress"]) source.addEventListener(name, refreshSoon);
    source.addEventListener("error", () => {
      if (source.readyState !== EventSource.CLOSED) say("The connection ended, and is made again");
      refreshSoon();
    });
  }
  lookEvery(every);
}
