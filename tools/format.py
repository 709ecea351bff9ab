"""Lays out the cells that become the package as `ruff format` does. Usage: format.py [--check] [NOTEBOOK …]"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
RUFF = [sys.executable, "-m", "ruff", "format", "--no-cache", "--quiet", "--config", str(ROOT / "pyproject.toml")]


def exported(cell):
    "Whether a cell goes into the package."
    return cell["cell_type"] == "code" and any(line.startswith("#| export") for line in cell["source"])


def laid_out(sources):
    "The same pieces of code, formatted; what does not parse stays as it is."
    with TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i:04d}.py" for i in range(len(sources))]
        for file, source in zip(files, sources):
            file.write_text(source + "\n", encoding="utf-8")
        subprocess.run([*RUFF, folder], check=False)
        return [file.read_text(encoding="utf-8").strip("\n") for file in files]


def format_notebook(nb):
    "The notebook (as read from JSON) with its exported cells formatted, in place."
    cells = [c for c in nb["cells"] if exported(c)]
    heads = [[line for line in c["source"] if line.startswith("#|")] for c in cells]
    bodies = ["".join(c["source"][len(head) :]) for c, head in zip(cells, heads)]
    for cell, head, body in zip(cells, heads, laid_out(bodies)):
        cell["source"] = [*head, *body.splitlines(keepends=True)]
    return nb


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted((ROOT / "nbs").glob("*.ipynb")))
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 and name what would change")
    args = parser.parse_args()
    changed = []
    for path in args.notebooks:
        before = path.read_text(encoding="utf-8")
        after = json.dumps(format_notebook(json.loads(before)), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        if after == before:
            continue
        changed.append(path.name)
        if not args.check:
            path.write_text(after, encoding="utf-8")
    if args.check and changed:
        sys.exit(f"not laid out: {', '.join(changed)}. Run `make export`.")


if __name__ == "__main__":
    main()
