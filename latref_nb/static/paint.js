// A picture to paint on: drag, or move the ring by the arrow keys and paint with Space. A stroke is sent when it ends.
function render({ model, el }) {
  const make = name => document.createElement(name), get = k => model.get(k);
  const box = make("div"), img = make("img"), over = make("canvas"), ring = make("div"), pen = over.getContext("2d");
  let url = null, stroke = null, at = [0.5, 0.5];
  box.className = "latref-picture latref-paint";
  box.dataset.lmSuppressShortcuts = "true";  // a notebook in command mode would take the keys
  ring.className = "latref-ring";
  box.tabIndex = 0;
  box.setAttribute("role", "application");
  img.draggable = false;
  box.append(img, over, ring);
  el.append(box);

  function picture() {
    const ready = get("png").byteLength > 0;
    img.style.visibility = ready ? "visible" : "hidden";
    if (!ready) return;
    if (url) URL.revokeObjectURL(url);
    url = URL.createObjectURL(new Blob([get("png")], { type: "image/png" }));
    img.onload = () => { if (!stroke) pen.clearRect(0, 0, over.width, over.height); };
    img.src = url;
  }

  function state() {
    const said = `${get("label")}; arrow keys move the brush, Space paints`;
    box.style.width = get("width") + "px";
    if (over.width !== get("width")) over.width = over.height = get("width");
    box.setAttribute("aria-label", said);
    img.alt = get("label");
    box.title = said;
    move(at);
  }

  function move(p) {
    at = p.map(v => Math.max(0, Math.min(1, v)));
    ring.style.width = ring.style.height = 100 * get("brush") + "%";
    ring.style.left = 100 * (at[0] - get("brush") / 2) + "%";
    ring.style.top = 100 * (at[1] - get("brush") / 2) + "%";
    ring.style.background = get("colour") + "80";  // half transparent: what will be painted, and what lies there
  }

  function where(e) {
    const b = img.getBoundingClientRect();
    return [(e.clientX - b.left) / b.width, (e.clientY - b.top) / b.height];
  }

  function go(p) {  // one more point of the stroke, shown at once
    move(p);
    const from = stroke.length ? stroke[stroke.length - 1] : at, S = over.width;
    stroke.push(at);
    Object.assign(pen, { lineWidth: get("brush") * S, lineCap: "round", strokeStyle: get("colour") });
    pen.beginPath();
    pen.moveTo(from[0] * S, from[1] * S);
    pen.lineTo(at[0] * S, at[1] * S);
    pen.stroke();
  }

  function end() {
    if (!stroke) return;
    const points = stroke;
    stroke = null;
    model.send({ stroke: points });
  }

  box.addEventListener("pointerdown", e => {
    if (e.button !== 0) return;
    box.setPointerCapture(e.pointerId);
    stroke = [];
    go(where(e));
  });
  box.addEventListener("pointermove", e => { stroke ? go(where(e)) : move(where(e)); });
  box.addEventListener("pointerup", end);
  box.addEventListener("pointercancel", end);
  box.addEventListener("keydown", e => {
    const by = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[e.key];
    const step = 1 / get("rows");
    if (by) move([at[0] + by[0] * step, at[1] + by[1] * step]);
    else if (e.key === " ") { stroke = []; go(at); end(); }
    else return;
    e.preventDefault();
    e.stopPropagation();
  });
  model.on("change:png", picture);
  for (const k of ["width", "label", "brush", "rows", "colour"]) model.on("change:" + k, state);
  picture();
  state();
  return () => { if (url) URL.revokeObjectURL(url); };
}
export default { render };
