"""`nbdev_export`, and the list of public names of each module within 120 columns. Usage: exports.py [FOLDER]"""

import ast
import re
import subprocess
import sys
from pathlib import Path
from shutil import which
from textwrap import TextWrapper

ROOT = Path(__file__).resolve().parents[1]
LISTING = re.compile(r"^__all__ = \[.*?\]$", re.M | re.S)
WRAP = TextWrapper(width=120, subsequent_indent=" " * 11, break_long_words=False, break_on_hyphens=False)


def wrapped(module):
    "The text of a module with its `__all__` wrapped: nbdev breaks it before it puts the name in front."
    return LISTING.sub(lambda m: WRAP.fill(f"__all__ = {ast.literal_eval(m[0].partition('= ')[2])}"), module, count=1)


def main():
    root = Path(sys.argv[1]) if sys.argv[1:] else ROOT
    nbdev_export = which("nbdev_export", path=str(Path(sys.executable).parent)) or "nbdev_export"
    subprocess.run([nbdev_export], cwd=root, check=True)
    for path in sorted((root / "latref_nb").glob("*.py")):
        before = path.read_text(encoding="utf-8")
        after = wrapped(before)
        if after != before:
            path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
