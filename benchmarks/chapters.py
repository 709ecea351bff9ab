"Seconds that chapters take from their first cell to their last, and their slowest cells. `run.py --only chapters --chapters 03,16` takes some of them."

import sys
from datetime import datetime
from pathlib import Path

import nbformat
from common import Row

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from repo import NOTEBOOKS, ROOT, execute, skipped  # noqa: E402

BAR = 90  # seconds on two cores; a wish for whoever writes a chapter, no test
SLOWEST = 3  # cells that are shown of each chapter


def chosen(names):
    "The chapters whose names begin so; all without names. A ValueError where a name begins none."
    if not names:
        return NOTEBOOKS
    for name in names:
        if not any(p.stem.startswith(name) for p in NOTEBOOKS):
            raise ValueError(f"no chapter begins with {name!r}: choose from {', '.join(p.stem for p in NOTEBOOKS)}")
    return [p for p in NOTEBOOKS if any(p.stem.startswith(name) for name in names)]


def seconds_of(cell):
    "How long the kernel worked on a cell that was run."
    noted = cell.metadata.get("execution", {})
    ends = [noted.get(k) for k in ("iopub.execute_input", "shell.execute_reply")]
    if not all(ends):
        return 0.0
    begun, done = (datetime.fromisoformat(e) for e in ends)
    return (done - begun).total_seconds()


def first_line(cell):
    "What a cell is known by: its first line that is no directive."
    return next((line for line in cell.source.splitlines() if line.strip() and not line.startswith("#|")), "")[:60]


def measure(path):
    "A row: the seconds of all cells of a chapter, and its slowest ones."
    nb = nbformat.read(path, as_version=4)
    nb.cells = [c for c in nb.cells if c.cell_type == "code" and not skipped(c)]
    execute(nb, ROOT / "nbs")
    cells = sorted(nb.cells, key=seconds_of, reverse=True)
    total = sum(map(seconds_of, cells))
    slowest = "; ".join(f"{seconds_of(c):.1f} s `{first_line(c)}`" for c in cells[:SLOWEST])
    return Row(path.stem, total, None, "s", None, f"≤ {BAR} s", total <= BAR, f"slowest: {slowest}")


def run(rounds, names=()):
    "Each chapter once: rounds would only repeat it."
    return [measure(path) for path in chosen(names)]
