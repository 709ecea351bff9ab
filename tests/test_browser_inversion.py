"In a real browser: an inversion that takes long is priced, asked for by the keyboard, stopped and gone on with; shares are turned, and every file can be saved."

import json
import re
from pathlib import Path

import pytest
from test_browser import jupyter, moves, notebook, page_at, pixels, pytestmark, run_all, slider  # noqa: F401  skips without a browser
from test_browser_explorers import saved

CELLS = [
    f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
from latref_nb.faces import SynthFaces
from latref_nb.inversion_explorer import InversionExplorer
from latref_nb.judges import Judge
from latref_nb.perceptual import PerceptualNet
from latref_nb.prompted import PromptedPipeline, prompted_scheduler, prompted_unet
from latref_nb.prompts import PromptEncoder
torch.manual_seed(0)
pipe = PromptedPipeline(prompted_unet((16, 24, 32), dim=16), PromptEncoder(dim=16), prompted_scheduler())
eyes = Judge().eval(), PerceptualNet().eval()
""",
    """
explorer = InversionExplorer(pipe, SynthFaces(12, 64, seed=5), *eyes, preview=1, tag="Smiling", steps=2, budget=400)
explorer.add_class("inversion-explorer"); explorer
""",
]
FILES = {"picture": "inversion.png", "strip": "inversion_strip.png", "page": "inversion.html", "code": "inversion.py"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab on the explorer; gives its address."
    folder = tmp_path_factory.mktemp("inversion")
    with jupyter("jupyterlab", folder) as port:
        (folder / "nbs/inversion.ipynb").write_text(json.dumps(notebook(CELLS)), encoding="utf-8")
        yield f"http://127.0.0.1:{port}/lab/tree/nbs/inversion.ipynb"


def test_a_slow_inversion_is_priced_asked_for_stopped_and_finished(lab, tmp_path):
    with page_at(lab) as page:
        run_all(page)
        at = page.locator(".jp-OutputArea .inversion-explorer")
        at.scroll_into_view_if_needed()
        button = lambda words: at.get_by_role("button", name=words, exact=True)
        at.get_by_text("the inversion adds offsets (direct)").wait_for()
        assert button("Invert").is_disabled() and button("Stop").is_disabled()
        at.get_by_label("inversion adds").select_option("value tokens")
        at.get_by_text("press Invert for them").wait_for()
        at.get_by_text(re.compile("Up to 400 network calls, about")).wait_for()
        again = at.get_by_label("face drawn again").locator("img")
        quick = pixels(again)
        button("Invert").focus()
        page.keyboard.press("Enter")
        at.get_by_text("they are being found").wait_for()
        button("Stop").click()
        at.get_by_text(re.compile("Stopped after . of 2 steps")).wait_for()
        button("Go on").wait_for()
        assert pixels(again) != quick, "what is finished of the chosen inversion is shown"
        at.get_by_label("budget").select_option("40 calls")
        at.get_by_text("press Invert for them").wait_for()
        button("Invert").click()
        at.get_by_text(re.compile("the inversion adds value tokens, w = 2.5, .. network calls")).wait_for()
        at.get_by_text("Found in").wait_for()
        assert at.locator("table tr").count() >= 3

        def share():
            slider(at, "τ cross").locator(".noUi-handle").focus()
            for _ in range(6):
                page.keyboard.press("ArrowLeft")

        moves(at.get_by_label("edited face").locator("img"), share, "τ cross was turned")
        button("Show as code").click()
        at.get_by_text("Control(0.0, 0.6, 0.5, 0.6)").wait_for()
        for kind, name in FILES.items():
            assert saved(page, at, kind)[0] == name
        at.screenshot(path=tmp_path / "inversion.png")
