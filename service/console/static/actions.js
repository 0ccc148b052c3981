// A form with `data-method` and `data-path` is a call of the HTTP API; its fields are the body.
import { refresh } from "./live.js";

// Fields are text unless `data-as` says otherwise; one without a value is left out. A dot in a name goes one object deeper.
export function bodyOf(form) {
  const body = {};
  for (const field of form.elements) {
    if (!field.name || field.disabled || field.dataset.in || (field.type === "radio" && !field.checked)) continue;
    const value = valueOf(field);
    if (value === undefined) continue;
    const names = field.name.split(".");
    const last = names.pop();
    names.reduce((place, name) => place[name] ??= {}, body)[last] = value;
  }
  return body;
}

function valueOf(field) {
  if (field.type === "checkbox") return field.checked;
  if (field.value === "") return undefined;
  if (field.dataset.as === "number") return Number(field.value);
  if (field.dataset.as === "list") return [...field.selectedOptions].map(option => option.value);
  if (field.dataset.as === "json") return JSON.parse(field.value);
  return field.value;
}

function addressOf(form) {
  const address = new URL(form.dataset.path, location.href);
  for (const field of form.elements) {
    if (field.dataset.in === "query" && (field.type !== "checkbox" || field.checked)) address.searchParams.set(field.name, field.value);
  }
  return address;
}

function formBodyOf(form) {
  const parts = new FormData(form);
  for (const [name, value] of [...parts]) if (value === "" || (value instanceof File && value.name === "")) parts.delete(name);
  return parts;
}

// What no form can send: the service takes a change by a browser's session with it alone.
export const OURS = { "X-Requested-With": "console" };

// Return the answer's JSON; throw its sentence where it is a refusal.
export async function ask(address, options) {
  const answer = await fetch(address, { ...options, headers: { ...OURS, ...options.headers } });
  const text = await answer.text();
  const body = text && answer.headers.get("Content-Type")?.includes("json") ? JSON.parse(text) : null;
  if (!answer.ok) throw new Error(body?.detail ?? `The service answered ${answer.status}.`);
  return body;
}

async function send(form) {
  const method = form.dataset.method;
  const options = { method };
  if ("multipart" in form.dataset) options.body = formBodyOf(form);
  else if (method !== "DELETE") {
    const body = bodyOf(form);
    if (Object.keys(body).length) Object.assign(options, { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  }
  return ask(addressOf(form), options);
}

async function act(form, button) {
  const problem = form.querySelector(".problem");
  const words = button.textContent, began = Date.now();
  const clock = setInterval(() => { button.textContent = `${words} · ${Math.round((Date.now() - began) / 1000)} s`; }, 1000);
  button.disabled = true;
  for (const words of form.querySelectorAll(".problem, .said")) words.textContent = "";
  try {
    const answer = await send(form);
    const then = form.dataset.then?.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(answer[name]));
    if (then) location.assign(then);
    else await refresh();
    if (form.dataset.done) form.querySelector(".said").textContent = form.dataset.done.replace(/\{(\w+)\}/g, (_, name) => answer[name]);
  } catch (error) {
    problem.textContent = error.message;
  } finally {
    clearInterval(clock);
    button.textContent = words;
    button.disabled = false;
  }
}

export function toast(text) {
  const note = document.createElement("div");
  note.className = "toast";
  note.append(Object.assign(document.createElement("span"), { textContent: text }));
  document.getElementById("toasts").append(note);
  return note;
}

// Ask for nothing until the time to think is over; leaving the page leaves everything as it is.
function actLater(form, button) {
  let left = Number(form.dataset.undo);
  const sentence = () => `${button.textContent.trim()}: in ${left} s. Leaving this page undoes it.`;
  const note = toast(sentence());
  const undo = Object.assign(document.createElement("button"), { type: "button", textContent: "Undo" });
  note.append(undo);
  undo.focus();
  const clock = setInterval(() => {
    left -= 1;
    note.firstChild.textContent = sentence();
    if (left > 0) return;
    end();
    act(form, button);
  }, 1000);
  const end = () => { clearInterval(clock); note.remove(); button.disabled = false; };
  button.disabled = true;
  undo.addEventListener("click", () => { end(); button.focus(); });
}

export function actOn(page) {
  page.addEventListener("submit", event => {
    const form = event.target.closest("form[data-path]");
    if (!form) return;
    event.preventDefault();
    const button = event.submitter ?? form.querySelector("button:not([type=button])");
    if (form.dataset.undo) actLater(form, button);
    else act(form, button);
  });
  // A button that needs a name typed is possible once it is.
  page.addEventListener("input", event => {
    const field = event.target;
    if (field.dataset.mustBe !== undefined) field.form.querySelector("button:not([type=button])").disabled = field.value !== field.dataset.mustBe;
    if (field.type === "range") field.form.querySelector("output").textContent = `${Math.round(100 * field.value)} %`;
  });
}
