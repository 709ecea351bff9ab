"In a real browser: a mask is painted with the mouse and the keyboard, a tag contradicts it, and every file can be saved."

import json
from pathlib import Path

from test_browser import (  # noqa: F401  pytestmark skips without a browser
    click_at,
    jupyter,
    moves,
    notebook,
    page_at,
    pixels,
    pytestmark,
    run_all,
    voila_page,
)
from test_browser_explorers import saved

CELLS = [
    f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
from latref_nb.faces import SynthFaces
from latref_nb.judges import Judge
from latref_nb.prompt_explorer import PromptExplorer
from latref_nb.prompted import PromptedPipeline, prompted_scheduler, prompted_unet
from latref_nb.prompts import PromptEncoder
torch.manual_seed(0)
unet = prompted_unet((16, 24, 32), dim=16, mask_by="both")
pipe = PromptedPipeline(unet, PromptEncoder(dim=16), prompted_scheduler(), mask_by="both")
""",
    """
explorer = PromptExplorer(pipe, SynthFaces(8, 64, seed=5), Judge().eval(), part="eye_g", preview=2, steps=4)
explorer.add_class("prompt-explorer"); explorer
""",
]
FILES = {"picture": "prompt.png", "mask": "prompt_mask.png", "page": "prompt.html", "code": "prompt.py"}


def paint_and_contradict(page, tmp_path):
    "What a reader does to the explorer, by mouse and by keys."
    at = page.locator(".prompt-explorer")
    at.scroll_into_view_if_needed()
    at.get_by_text("Drawn in 4 steps").wait_for()
    canvas, drawn = at.locator(".latref-paint"), at.get_by_label("drawn face").locator("img")
    mask = canvas.locator("img")
    empty = pixels(mask)

    def stroke():
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        x, y = box["x"], box["y"] + box["height"] / 2
        page.mouse.move(x + 0.3 * box["width"], y)
        page.mouse.down()
        page.mouse.move(x + 0.7 * box["width"], y, steps=5)
        page.mouse.up()

    moves(drawn, lambda: moves(mask, stroke, "a stroke was painted"), "the mask was painted")
    at.locator("select").nth(1).select_option("without")
    at.get_by_text("The mask says Eyeglasses with, the tag says without.").wait_for()

    def key():
        canvas.focus()
        for name in (*["ArrowDown"] * 12, " "):
            page.keyboard.press(name)

    moves(mask, key, "Space painted")
    at.locator(".widget-html", has_text="glasses").first.wait_for()  # the key of the colours
    face = at.get_by_label("take the mask of one of the faces")
    moves(mask, lambda: click_at(face, 0.4, 0.5), "a face lent its mask")
    at.locator(".widget-html", has_text="neck").first.wait_for()
    for kind, name in FILES.items():
        assert saved(page, at, kind)[0] == name
    for _ in range(3):
        moves(mask, lambda: at.get_by_role("button", name="Undo", exact=True).click(), "a stroke was undone")
    assert pixels(mask) == empty
    at.screenshot(path=tmp_path / "prompt.png")


def test_in_jupyterlab(tmp_path):
    with jupyter("jupyterlab", tmp_path) as port:
        (tmp_path / "nbs/prompts.ipynb").write_text(json.dumps(notebook(CELLS)), encoding="utf-8")
        with page_at(f"http://127.0.0.1:{port}/lab/tree/nbs/prompts.ipynb") as page:
            run_all(page)
            paint_and_contradict(page, tmp_path)


def test_in_voila(tmp_path):
    with voila_page(tmp_path, "prompts", CELLS) as at, page_at(at) as page:
        paint_and_contradict(page, tmp_path)
