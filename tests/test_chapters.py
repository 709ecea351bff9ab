"The pages that are no chapters run from their first cell to their last; chapters are run by a student (test_exercises)."

import time
import nbformat
import pytest
from repo import CHAPTERS, NOTEBOOKS, ROOT, execute, pictured, skipped


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p not in CHAPTERS], ids=lambda p: p.stem)
def test_page_runs(path, record_property):
    nb = nbformat.read(path, as_version=4)
    nb.cells = [c for c in nb.cells if not (c.cell_type == "code" and skipped(c))]
    pictures, files = pictured(nb), set((ROOT / "nbs").iterdir())
    start = time.perf_counter()
    execute(nb, ROOT / "nbs")
    record_property("chapter", (path.stem, time.perf_counter() - start))
    assert pictured(nb) == pictures, "the stored pictures are not those that the code makes: run the page and save it"
    left = {p.name for p in set((ROOT / "nbs").iterdir()) - files} - {".ipynb_checkpoints"}
    assert not left, f"left behind in nbs: {left}"
