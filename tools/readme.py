"Turns the tour (nbs/index.ipynb, as last run) into README.md and its pictures in docs/images. Usage: readme.py"
import base64, json, os, re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURES = "docs/images"
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


def output(o, label, caption, pictures):
    "One output of a cell as Markdown; pictures are put aside."
    data = o.get("data", {})
    for mime, extension in EXTENSIONS.items():
        if mime in data:
            place = f"{PICTURES}/{label}{'' if f'{PICTURES}/{label}.{extension}' not in pictures else f'-{len(pictures)}'}.{extension}"
            pictures[place] = base64.b64decode("".join(data[mime]))
            return f"![{caption or label}]({place})"
    if o["output_type"] == "stream": text = "" if o["name"] == "stderr" else "".join(o["text"])
    elif "text/markdown" in data: return "".join(data["text/markdown"]).strip()
    else: text = "".join(data.get("text/plain", ""))
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines())


def convert(path):
    "README text and {place: bytes} of its pictures; a picture that the text already links is not shown a second time."
    nb, parts, pictures = json.loads(Path(path).read_text(encoding="utf-8")), [], {}
    for i, cell in enumerate(nb["cells"]):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown": parts.append(from_root(text)); continue
        options, code = directives(text)
        shown = "hide" not in options and "include" not in options
        if shown and code and options.get("echo") != "false": parts.append(f"```python\n{code}\n```")
        outs = [output(o, options.get("label", f"tour-{i}"), options.get("fig-cap"), pictures) for o in cell.get("outputs", [])]
        parts += [o for o in outs if o and shown and not re.search(r"\]\((\S+)\)$", o) or o and shown and re.search(r"\]\((\S+)\)$", o).group(1) not in "\n".join(parts)]
    return "\n\n".join(parts) + "\n", pictures


def main():
    text, pictures = convert(ROOT / "nbs/index.ipynb")
    (ROOT / PICTURES).mkdir(parents=True, exist_ok=True)
    for place, data in pictures.items(): (ROOT / place).write_bytes(data)
    (ROOT / "README.md").write_text(text, encoding="utf-8")
    print(f"README.md: {len(text)} characters; {len(pictures)} pictures, {sum(map(len, pictures.values()))} bytes")


if __name__ == "__main__": main()
