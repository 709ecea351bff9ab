"In a real browser: what the mouse can do in an explorer beside moving it, a page that is loaded again, and links inside a notebook."

import json, re
import pytest
from latref_nb.widgets import _NOTE
from repo import wait_for
from test_browser import EXPLORERS, jupyter, notebook, page_at, pixels, pytestmark, run_all  # noqa: F401  skips without a browser
from test_explore import alike

FILES = {
    "picture": ("edit.png", b"\x89PNG"),
    "strip": ("edit_strip.png", b"\x89PNG"),
    "page": ("edit.html", b"<!doctype"),
    "code": ("edit.py", b"from latref_nb"),
}
END_KERNELS = """async () => {
  const headers = { "X-XSRFToken": document.cookie.match(/_xsrf=([^;]*)/)[1] };
  for (const k of await (await fetch("/api/kernels")).json()) await fetch("/api/kernels/" + k.id, { method: "DELETE", headers });
}"""
SEEN = "h => { const b = h.getBoundingClientRect(); return b.top >= 0 && b.bottom <= innerHeight; }"
VIEW = ".jp-OutputArea .edit-explorer"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab on the tour and on one explorer; gives the address of a notebook, and its folder."
    folder = tmp_path_factory.mktemp("files")
    with jupyter("jupyterlab", folder) as port:
        (folder / "nbs/one.ipynb").write_text(json.dumps(notebook(EXPLORERS[:2])), encoding="utf-8")
        yield f"http://127.0.0.1:{port}/lab/workspaces/{{0}}{port}/tree/nbs/{{0}}.ipynb".format, folder


def saved(page, at, kind):
    "Press a button for a file; its name and its bytes."
    with page.expect_download() as got:
        at.get_by_role("button", name=kind, exact=True).click()
    return got.value.suggested_filename, got.value.path().read_bytes()


def png(listed):
    return bytes(map(int, listed.split(",")))


def test_files_undo_and_code_with_the_mouse(lab, tmp_path):
    address, _ = lab
    with page_at(address("one")) as page:
        run_all(page)
        at = page.locator(VIEW)
        at.scroll_into_view_if_needed()
        press = lambda words: at.get_by_role("button", name=words, exact=True).click()
        done = lambda tag: at.get_by_text(re.compile(f": {tag} .*Rendered in 6 steps")).wait_for()
        done("Eyeglasses")
        press("Show as code")
        at.get_by_text('Edit("Eyeglasses"').wait_for()
        shown = pixels(at.get_by_label("edited face").locator("img"))
        for kind, (name, begin) in FILES.items():
            got, content = saved(page, at, kind)
            assert got == name and content.startswith(begin), got
            if kind == "picture":
                assert ",".join(map(str, content)) == shown, "the file is the picture on the page"
        press("Keep, edit on")
        at.get_by_text("Kept. Choose the next tag").wait_for()
        at.locator("select").first.select_option("HairColor")
        done("HairColor")
        press("Undo keep")
        done("Eyeglasses")
        at.get_by_text("kept:").wait_for(state="detached")
        assert at.locator("select").first.evaluate("s => s.selectedOptions[0].text") == "Eyeglasses"
        wait_for(lambda: alike(png(pixels(at.get_by_label("edited face").locator("img"))), png(shown)))
        at.screenshot(path=tmp_path / "undone.png")


def test_a_page_loaded_again_says_that_its_cell_must_be_run(lab, tmp_path):
    address, folder = lab
    with page_at(address("one"), known="model not found") as page:
        note = page.get_by_text(_NOTE.split("<i>")[1].split("</i>")[0])
        run_all(page)
        page.locator(VIEW).wait_for()
        note.wait_for(state="hidden")
        page.locator(".jp-Notebook").click(position={"x": 4, "y": 4})
        page.keyboard.press("Control+s")
        wait_for(lambda: "latref-note" in (folder / "nbs/one.ipynb").read_text(encoding="utf-8"))
        page.evaluate(END_KERNELS)
        page.goto("about:blank")
        page.goto(address("one"))
        note.wait_for()
        page.screenshot(path=tmp_path / "again.png")
        run_all(page)
        page.locator(VIEW).wait_for()
        note.wait_for(state="hidden")


def test_links_inside_the_tour_lead_there_in_jupyterlab(lab):
    address, _ = lab
    names = ["three-paths", "the-tour", "in-a-script", "how-much", "the-chapters"]
    with page_at(address("index")) as page:
        for name in names:
            link = page.locator(f"a[href$='#{name}']").first
            link.wait_for()
            link.click()
            heading = page.get_by_role("heading", name=name.replace("-", " ")).first
            wait_for(lambda: heading.evaluate(SEEN))
            assert page.url.split("#")[0].endswith("index.ipynb"), page.url
            page.locator(".jp-Notebook").evaluate("n => n.querySelector('h1').scrollIntoView()")
