"Turns the tour (nbs/index.ipynb, as last run) into README.md and its pictures in docs/images/tour. Usage: readme.py"

import base64, json, os, re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURES = "docs/images/tour"
EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg"}


def directives(code):
    "The `#| key: value` lines that open a cell, and the rest."
    lines = code.splitlines()
    n = next((i for i, line in enumerate(lines) if not line.startswith("#|")), len(lines))
    found = [re.match(r"#\|\s*([\w-]+):?\s*(.*)", line).groups() for line in lines[:n]]
    return {key: value.strip("\"' ") for key, value in found}, "\n".join(lines[n:]).strip("\n")


def from_root(text, folder="nbs"):
    "Relative links of a page in `folder`, as seen from the root of the repository."

    def moved(m):
        target = m.group(2)
        outside = re.match(r"[a-z][a-z+.-]*:|#", target)
        return m.group(1) + (target if outside else os.path.normpath(f"{folder}/{target}")) + m.group(3)

    text = re.sub(r"(\]\()([^)\s]+)((?:\s[^)]*)?\))", moved, text)
    return re.sub(r"((?:src|href)=\")([^\"]+)(\")", moved, text)


def picture(o, name):
    "(place, bytes) of the picture among an output's forms, or None."
    for mime, extension in EXTENSIONS.items():
        if mime in o.get("data", {}):
            return f"{PICTURES}/{name}.{extension}", base64.b64decode("".join(o["data"][mime]))


def words(o):
    "What an output says, as Markdown; progress bars and warnings are left out."
    data = o.get("data", {})
    if "text/markdown" in data:
        return "".join(data["text/markdown"]).strip()
    text = "".join(data.get("text/plain", "")) if data else "".join(o["text"]) if o.get("name") == "stdout" else ""
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines())


def code_cell(cell, i, pictures, so_far):
    "The parts of a code cell that the README shows. `pictures` grows; one that the text links already is not shown twice."
    options, code = directives("".join(cell["source"]))
    if "hide" in options:
        return []
    parts = [f"```python\n{code}\n```"] if code and options.get("echo") != "false" else []
    for j, o in enumerate(cell["outputs"]):
        found = picture(o, options.get("label", f"tour-{i}") + (f"-{j}" if j else ""))
        if not found:
            parts.append(words(o))
            continue
        pictures[found[0]] = found[1]
        if f"]({found[0]})" not in so_far:
            parts.append(f"![{options.get('fig-cap', 'Output of the cell above')}]({found[0]})")
    return [p for p in parts if p]


def convert(path):
    "README text, and {place: bytes} of its pictures."
    nb, text, pictures = json.loads(Path(path).read_text(encoding="utf-8")), "", {}
    for i, cell in enumerate(nb["cells"]):
        parts = (
            [from_root("".join(cell["source"]))]
            if cell["cell_type"] == "markdown"
            else code_cell(cell, i, pictures, text)
        )
        text += "".join(f"{p}\n\n" for p in parts)
    return text.rstrip() + "\n", pictures


def main():
    text, pictures = convert(ROOT / "nbs/index.ipynb")
    (ROOT / PICTURES).mkdir(parents=True, exist_ok=True)
    for old in (ROOT / PICTURES).iterdir():
        if f"{PICTURES}/{old.name}" not in pictures:
            old.unlink()
    for place, data in pictures.items():
        (ROOT / place).write_bytes(data)
    (ROOT / "README.md").write_text(text, encoding="utf-8")
    print(f"README.md: {len(text)} characters; {len(pictures)} pictures, {sum(map(len, pictures.values()))} bytes")


if __name__ == "__main__":
    main()
