// A picture with a grid of places: click, drag or the arrow keys choose one.
function render({ model, el }) {
  const box = document.createElement("div"), img = document.createElement("img"), mark = document.createElement("div");
  const get = k => model.get(k);
  let url = null;
  box.className = "latref-picture";
  box.dataset.lmSuppressShortcuts = "true";  // a notebook in command mode would take the arrow keys
  mark.className = "latref-mark";
  img.draggable = false;
  box.append(img, mark);
  el.append(box);

  function picture() {
    const ready = get("png").byteLength > 0;
    img.style.visibility = ready ? "visible" : "hidden";
    if (!ready) return;
    if (url) URL.revokeObjectURL(url);
    url = URL.createObjectURL(new Blob([get("png")], { type: "image/png" }));
    img.src = url;
  }

  function state() {
    const R = get("rows"), C = get("columns"), r = get("row"), c = get("column");
    const choosable = R > 0, on = choosable && r >= 0 && c >= 0;
    const where = on ? `row ${r + 1} of ${R}, column ${c + 1} of ${C}` : "no place chosen";
    box.style.width = get("width") + "px";
    box.style.cursor = choosable ? "crosshair" : "default";
    box.tabIndex = choosable ? 0 : -1;
    box.setAttribute("role", choosable ? "slider" : "img");
    box.setAttribute("aria-label", get("label"));
    img.alt = get("label");
    img.style.imageRendering = get("smooth") ? "auto" : "";
    if (choosable) {
      box.setAttribute("aria-valuetext", where);
      box.setAttribute("aria-valuenow", Math.max(0, r * C + c));
      box.title = where;
    }
    mark.style.display = on ? "block" : "none";
    const place = { left: 100 * c / C, top: 100 * r / R, width: 100 / C, height: 100 / R };
    for (const side in place) mark.style[side] = place[side] + "%";
  }

  function choose(r, c) {
    r = Math.max(0, Math.min(get("rows") - 1, r));
    c = Math.max(0, Math.min(get("columns") - 1, c));
    if (r === get("row") && c === get("column")) return;
    model.set({ row: r, column: c });
    model.save_changes();
  }

  function point(e) {
    const b = img.getBoundingClientRect(), x = (e.clientX - b.left) / b.width, y = (e.clientY - b.top) / b.height;
    choose(Math.floor(y * get("rows")), Math.floor(x * get("columns")));
  }

  box.addEventListener("pointerdown", e => {
    if (get("rows") < 1) return;
    box.setPointerCapture(e.pointerId);
    point(e);
  });
  box.addEventListener("pointermove", e => {
    if (get("rows") > 0 && ((e.buttons & 1) || get("follow"))) point(e);
  });
  box.addEventListener("keydown", e => {
    const by = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[e.key];
    if (!by || get("rows") < 1) return;
    choose(Math.max(0, get("row")) + by[0], Math.max(0, get("column")) + by[1]);
    e.preventDefault();
    e.stopPropagation();
  });
  model.on("change:png", picture);
  for (const k of ["row", "column", "rows", "columns", "width", "label"]) model.on("change:" + k, state);
  picture();
  state();
  return () => { if (url) URL.revokeObjectURL(url); };
}
export default { render };
