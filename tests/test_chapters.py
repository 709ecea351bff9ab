"Every chapter runs from its first cell to its last, and still makes the pictures that are stored in it."

import time
import nbformat
import pytest
from repo import NOTEBOOKS, ROOT, execute, skipped


def with_picture(nb):
    return [
        c.id for c in nb.cells if any(m.startswith("image/") for o in c.get("outputs", []) for m in o.get("data", {}))
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_chapter_runs(path, record_property):
    nb = nbformat.read(path, as_version=4)
    nb.cells = [c for c in nb.cells if not (c.cell_type == "code" and skipped(c))]
    pictures, files = with_picture(nb), set((ROOT / "nbs").iterdir())
    start = time.perf_counter()
    execute(nb, ROOT / "nbs")
    record_property("chapter", (path.stem, time.perf_counter() - start))
    assert with_picture(nb) == pictures, (
        "the stored pictures are not those that the code makes: run the chapter and save it"
    )
    left = {p.name for p in set((ROOT / "nbs").iterdir()) - files} - {".ipynb_checkpoints"}
    assert not left, f"left behind in nbs: {left}"
