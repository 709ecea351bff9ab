// Buttons that ask the kernel for a file and give it to the browser.
function render({ model, el }) {
  const view = String(Math.random()), row = document.createElement("div"), buttons = {};
  row.className = "latref-files";
  row.append("Save to a file:");
  el.append(row);
  for (const kind of model.get("kinds")) {
    const button = buttons[kind] = document.createElement("button");
    button.className = "jupyter-button widget-button";
    button.textContent = kind;
    button.addEventListener("click", () => {
      button.disabled = true;
      model.send({ kind, view });
    });
    row.append(button);
  }

  function take(content, buffers) {
    if (content.view !== view) return;  // each view hears every answer
    buttons[content.kind].disabled = false;
    if (!content.name) return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([buffers[0]]));
    link.download = content.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  model.on("msg:custom", take);
  return () => model.off("msg:custom", take);
}
export default { render };
