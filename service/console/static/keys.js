// Keys: `/`, `g` and a place, `j` and `k` through rows, and whatever a control says in `data-key`.
let waitsForPlace = false;

function move(step) {
  const rows = [...document.querySelectorAll("[data-row]")];
  const at = rows.findIndex(row => row.contains(document.activeElement));
  const row = rows[at < 0 ? (step > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + step))];
  (row?.matches("a, button") ? row : row?.querySelector("a, button"))?.focus();
}

export function listenToKeys() {
  const keys = document.getElementById("keys");
  document.getElementById("show-keys").addEventListener("click", () => keys.showModal());
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || keys.open || event.target.matches("input:not([type=range], [type=checkbox], [type=file]), select, textarea")) return;
    if (waitsForPlace) {
      waitsForPlace = false;
      const link = document.querySelector(`[data-go="${CSS.escape(event.key)}"]`);
      if (link) { event.preventDefault(); link.click(); }
      return;
    }
    const control = [...document.querySelectorAll("[data-key]")].find(each => each.dataset.key === event.key);
    if (control) control.click();
    else if (event.key === "/") document.querySelector("[data-search]")?.focus();
    else if (event.key === "g") waitsForPlace = true;
    else if (event.key === "j") move(1);
    else if (event.key === "k") move(-1);
    else if (event.key === "?") keys.showModal();
    else return;
    event.preventDefault();
  });
}
