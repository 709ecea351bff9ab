"What the tests of the repository itself share: where things lie, and how a notebook is read."

import json, re, subprocess, sys, time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
CHAPTERS = [p for p in NOTEBOOKS if p.stem not in ("index", "play")]
MODULES = sorted(p for p in (ROOT / "latref_nb").glob("*.py") if not p.stem.startswith("_"))
HANG = 1800  # seconds after which a process, a kernel or a page counts as hung; no test asks how fast a machine is

# Only tests need transformers. A reader's kernel has none, and diffusers, which imports what it finds, starts sooner.
READER = 'import sys\nsys.modules["transformers"] = None'

sys.path.insert(0, str(ROOT / "tools"))
from house import rank  # noqa: E402, F401  the order of the chapters


def wait_for(ready, seconds=HANG):
    "Ask again and again until the answer is true; after so many seconds the last error is the one shown."
    end = time.monotonic() + seconds
    while True:
        try:
            if answer := ready():
                return answer
        except OSError:
            if time.monotonic() > end:
                raise
        assert time.monotonic() < end, f"nothing after {seconds} s"
        time.sleep(0.2)


def skipped(cell):
    "Whether a code cell says that it is not to be run by a test."
    return any(line.replace(" ", "") in ("#|eval:false", "#|slow") for line in cell.source.splitlines()[:5])


def pictured(nb):
    "The ids of the cells that show a picture."
    return [
        c.id for c in nb.cells if any(m.startswith("image/") for o in c.get("outputs", []) for m in o.get("data", {}))
    ]


def execute(nb, folder):
    "Run a notebook in a folder, cell by cell; the notebook, with its outputs, comes out. A cell that hangs is an error."
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell

    patience = dict(timeout=HANG, startup_timeout=HANG, iopub_timeout=HANG)
    client = NotebookClient(nb, kernel_name="python3", resources={"metadata": {"path": str(folder)}}, **patience)
    nb.cells.insert(0, new_code_cell(READER))
    try:
        return client.execute()
    finally:
        del nb.cells[0]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def cells(path, kind):
    "Sources of the cells of one kind: code or markdown."
    return [source(c) for c in read(path)["cells"] if c["cell_type"] == kind]


def code_of(path):
    "The code of a notebook as one Python text, without lines that only IPython reads."
    return "\n".join(
        line for cell in cells(path, "code") for line in cell.splitlines() if not line.lstrip().startswith(("%", "!"))
    )


def module_of(path):
    "Name of the module a notebook exports, or None."
    found = re.search(r"^#\|\s*default_exp\s+(\w+)", "\n".join(cells(path, "code")), re.M)
    return found and found.group(1)


def tracked():
    "Every file that is or would be under version control, without the ignored ones."
    try:
        names = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [ROOT / n for n in names.split("\0") if n and (ROOT / n).is_file()]


@dataclass
class Exercise:
    "A function that a chapter asks for: where its cells stand, and what the reader may unfold."

    check: str  # name of the check
    name: str  # of the function
    stub: int  # number of the cell with the function that is only begun
    turn: int  # number of the cell `your_turn(check, name)`; the check stands right before it
    task: str  # the markdown above the stub
    folded: str  # the markdown below the turn, up to the next cell of code

    @property
    def solution(self):
        "The code under Solution, or None."
        found = re.search(r"<summary>Solution</summary>(.*?)</details>", self.folded, re.S)
        code = found and re.search(r"^```python\n(.*?)^```", found[1], re.M | re.S)
        return code and code[1]


def exercises(path):
    "The exercises of a chapter, read off its form: task, stub, check, turn, what is folded."
    nb, found = read(path)["cells"], []
    for turn, cell in enumerate(nb):
        asked = cell["cell_type"] == "code" and re.fullmatch(r"your_turn\((check_\w+), (\w+)\)", source(cell))
        if not asked:
            continue
        stub, end = turn - 2, turn + 1
        while end < len(nb) and nb[end]["cell_type"] == "markdown":
            end += 1
        folded = "\n\n".join(source(c) for c in nb[turn + 1 : end])
        found.append(Exercise(*asked.groups(), stub, turn, source(nb[stub - 1]), folded))
    return found
