"""Draws the house: each chapter with its module, its one job and the modules it stands on. Usage: house.py [--check]

The page docs/house.md is made from the notebooks' titles and the package's imports, so it cannot go stale.
"""

import argparse
import ast
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/house.md"

ABOUT = """# The house

Every chapter builds one module with one job, and a module stands only on chapters with lower numbers (00 < 00a < 00b < 01): there is no circle, and whoever reads in order meets nothing that is not explained yet. The notebooks in `nbs/` are the only source; `latref_nb/` is exported from them.

This page is written by `make export` from the titles of the chapters and the imports of the modules.
"""


def rank(path):
    "Place of a chapter in the order: 00 before 00a before 00b before 01."
    number = re.match(r"(\d+)([a-z]?)_", path.stem)
    assert number, f"{path.name}: a chapter's name begins with its number, e.g. 04_unet"
    return int(number[1]), number[2]


def front(path):
    "Title, the line below it, and the module that a notebook exports."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    title, job = re.match(r"# (.+)\n+> (.+)", "".join(cells[0]["source"])).groups()
    exports = (re.search(r"^#\|\s*default_exp\s+(\w+)", "".join(c["source"]), re.M) for c in cells)
    return title.strip(), job.strip(), next(m[1] for m in exports if m)


def imported(tree):
    "Modules of this package that a piece of code imports, wherever in it."
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = "latref_nb" + (f".{node.module}" if node.module else "") if node.level else node.module or ""
            if base == "latref_nb":
                yield from (a.name for a in node.names)
            elif base.startswith("latref_nb."):
                yield base.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("latref_nb."))


def drawn(folder=ROOT / "nbs"):
    "The whole page."
    rows = [(path, *front(path)) for path in sorted(Path(folder).glob("[0-9]*.ipynb"), key=rank)]
    order = [module for *_, module in rows]
    lines = ["| chapter | module | its one job | stands on |", "|---|---|---|---|"]
    for path, title, job, module in rows:
        number = path.stem.partition("_")[0]
        used = set(imported(ast.parse((ROOT / f"latref_nb/{module}.py").read_text(encoding="utf-8"))))
        below = ", ".join(m for m in order if m in used - {module}) or "nothing"
        lines.append(f"| [{number} {title}](../nbs/{path.name}) | `{module}` | {job.rstrip('.')} | {below} |")
    return ABOUT + "\n" + "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where the page is not this")
    check, page = parser.parse_args().check, drawn()
    if not check:
        PAGE.write_text(page, encoding="utf-8")
        print(page, end="")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page:
        sys.exit(f"{PAGE.relative_to(ROOT)} is not what the chapters say. Run `make export`.")


if __name__ == "__main__":
    main()
