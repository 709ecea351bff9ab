"In a real browser: the tour in JupyterLab, and every explorer in JupyterLab, Notebook 7 and Voilà. Nothing wrong is said, and what the mouse and the keyboard do moves the pictures."

import json, os, shutil, socket, subprocess, sys, urllib.request
from contextlib import contextmanager
from pathlib import Path
import pytest
from repo import HANG, ROOT, wait_for

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium or Chrome on this machine: install one to test the widgets in a browser"
)

EXPLORERS = [
    f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from latref_nb.explore import EditExplorer, having
from latref_nb.faces import SynthFaces
from latref_nb.inside import AttentionExplorer, ConsistencyExplorer, TrajectoryPlayer
from latref_nb.metrics import load_judges
from latref_nb.pipeline import Edit
from latref_nb.studio import DirectionVsStyle, StyleExplorer
from style_case import style_pipeline
from test_explore import stages
pipe, faces = style_pipeline(), SynthFaces(60, 64, seed=5)
""",
    """
edit = EditExplorer(pipe, faces, range(12), (2, 6)).add_class("edit-explorer"); edit
""",
    """
look = AttentionExplorer(pipe, faces, range(6), steps=3).add_class("attention-explorer"); look
""",
    """
styles = StyleExplorer(pipe, faces, range(6), 8, (2, 4)).add_class("style-explorer"); styles
""",
    """
duel = DirectionVsStyle(pipe, faces, load_judges(), range(6), (2, 4)).add_class("direction-vs-style"); duel
""",
    """
training = ConsistencyExplorer(stages()).add_class("consistency-explorer"); training
""",
    """
film = TrajectoryPlayer(pipe, faces[1]["image"], Edit("Eyeglasses", "with", method="global_direction"), 4).add_class("trajectory-player"); film
""",
    """
edit
""",
]


# ---- servers


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# What would ask, save or give up by itself while a test runs.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell in the page, also those out of sight
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "apputils-extension/sessionDialogs": {"skipKernelRestartDialog": True},
    "docmanager-extension/plugin": {"autosave": False},
}  # no "changed on disk"
PATIENT = [f"--MappingKernelManager.kernel_info_timeout={HANG}", "--ServerApp.tornado_settings={'ws_ping_interval': 0}"]


def settle(folder):
    "Write the settings of a JupyterLab or Notebook that runs in a folder; no build is recommended there."
    for name, words in SETTINGS.items():
        path = folder / f".settings/@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(words), encoding="utf-8")
    page = folder / ".config/labconfig/page_config.json"
    page.parent.mkdir(parents=True)
    page.write_text(json.dumps({"buildAvailable": False, "buildCheck": False}), encoding="utf-8")


@contextmanager
def server(command, folder, ready):
    "A server while the block runs."
    own = {f"JUPYTER_{n}_DIR": str(folder / f".{n.lower()}") for n in ("CONFIG", "RUNTIME")} | {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / ".settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / ".workspaces"),
    }
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **own},
            cwd=folder,
        )
        try:
            wait_for(lambda: process.poll() is not None or urllib.request.urlopen(ready).status == 200)
            assert process.poll() is None, (folder / "server.log").read_text(encoding="utf-8")[-3000:]
            yield
        finally:
            process.terminate()
            try:
                process.wait(HANG)
            except subprocess.TimeoutExpired:
                process.kill()


def notebook(cells):
    "A notebook of code cells."
    made = [
        {
            "cell_type": "code",
            "id": f"c{i}",
            "metadata": {},
            "source": c.strip(),
            "outputs": [],
            "execution_count": None,
        }
        for i, c in enumerate(cells)
    ]
    return {
        "cells": made,
        "metadata": {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


@contextmanager
def jupyter(app, folder):
    "JupyterLab or Notebook 7 on a copy of the tour without its outputs, and on a notebook of all explorers; gives the port."
    port = free_port()
    tour = json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))
    for cell in tour["cells"]:
        cell.update({"outputs": []} if cell["cell_type"] == "code" else {})
    (folder / "nbs").mkdir()
    for name, nb in (("index", tour), ("explorers", notebook(EXPLORERS))):
        (folder / f"nbs/{name}.ipynb").write_text(json.dumps(nb), encoding="utf-8")
    shutil.copytree(ROOT / "docs/images", folder / "docs/images")
    settle(folder)
    command = [
        app,
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--port-retries=0",
        "--allow-root",
        "--IdentityProvider.token=",
        "--ServerApp.password=",
        f"--ServerApp.root_dir={folder}",
        *PATIENT,
    ]
    with server(command, folder, f"http://127.0.0.1:{port}/api"):
        yield port


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab; gives the address of its notebooks."
    with jupyter("jupyterlab", tmp_path_factory.mktemp("lab")) as port:
        yield lambda name: f"http://127.0.0.1:{port}/lab/workspaces/{name}{port}/tree/nbs/{name}.ipynb"


@contextmanager
def voila_page(folder, name, cells):
    "A notebook of these cells as a page of Voilà; gives its address."
    port = free_port()
    (folder / f"{name}.ipynb").write_text(json.dumps(notebook(cells)), encoding="utf-8")
    command = [
        "voila",
        str(folder),
        "--no-browser",
        "--Voila.ip=127.0.0.1",
        f"--port={port}",
        "--Voila.tornado_settings={'allow_origin': '*', 'ws_ping_interval': 0}",
        PATIENT[0],
        f"--VoilaExecutor.startup_timeout={HANG}",
        f"--VoilaExecutor.iopub_timeout={HANG}",
        "--VoilaConfiguration.extension_denylist=@jupyter-notebook/lab-extension",
    ]  # Notebook 7's own buttons, which Voilà offers it no menu for
    with server(command, folder, f"http://127.0.0.1:{port}/voila/static/voila.js"):
        yield f"http://127.0.0.1:{port}/voila/render/{name}.ipynb"


# ---- a page, and what a reader does to it

DIALOG = ".jp-Dialog"


def dismiss(dialog, said):
    "Close a dialog that nobody asked for, note what it said: a kernel offered is taken, all else refused where it can be."
    said.append(dialog.first.inner_text())
    refuse, accept = (dialog.first.locator(f"button.jp-mod-{kind}") for kind in ("reject", "accept"))
    (accept if "Select Kernel" in said[-1] or not refuse.count() else refuse).first.click()


@contextmanager
def page_at(address, known=None):
    "A page that must say nothing wrong, but for an error of the server's own that is known."
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    errors, said = [], []
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.on("console", lambda m: m.type == "error" and errors.append(f"{m.text} {m.location}"))
        page.route(
            "https://cdn.jsdelivr.net/**", lambda route: route.fulfill(status=200, content_type="text/css", body="")
        )  # Voilà asks there for its icons
        page.set_default_timeout(HANG * 1000)
        page.add_locator_handler(
            page.locator(DIALOG), lambda dialog: dismiss(dialog, said)
        )  # before every click, while one stands in the way
        try:
            page.goto(address)
            yield page
        except BaseException as e:
            e.add_note(f"dialogs that were closed: {said}; errors of the page: {errors}")
            raise
        browser.close()
    errors = [e for e in errors if known is None or known not in e]
    assert not errors, "\n".join(errors)


PROMPTS = "() => Array.from(document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')).map(p => p.innerText.trim())"


def until(reached, do, what):
    "Do something to a page until a state is reached. What is lost while the page still changes is done again, each time after a longer wait."
    patience = 5
    while patience < HANG:
        do()
        try:
            return wait_for(reached, patience)
        except AssertionError:
            patience *= 2
    raise AssertionError(what)


AGAIN = 10_000  # milliseconds after which a menu that has closed is opened again


def choose(page, menu, item, reached, what):
    "Choose from a menu until a state is reached. A menu that the page, still loading, closes again is opened once more."
    from playwright.sync_api import TimeoutError as Closed

    def attempt():
        if page.locator(".lm-Menu").count():
            page.keyboard.press("Escape")
        page.get_by_role("menuitem", name=menu, exact=True).click()
        try:
            page.locator(f".lm-Menu-item[data-command='{item}']").click(timeout=AGAIN)
        except Closed:
            pass

    until(reached, attempt, what)


def kernel_waits(page):
    "Whether the page is connected to a kernel that waits for work. The page alone says so too early, and what is run then may be lost."
    kernels = [s["kernel"] for s in page.evaluate("() => fetch('/api/sessions').then(r => r.json())")]
    said = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").count()
    return said and any(k["connections"] and k["execution_state"] == "idle" for k in kernels)


def run_all(page):
    "Run every cell, and wait until each has its number."
    wait_for(lambda: kernel_waits(page))
    begun = lambda: any(set(p) & set("*123456789") for p in page.evaluate(PROMPTS))
    choose(page, "Run", "runmenu:run-all", begun, "no cell begins to run")
    wait_for(
        lambda: (
            all(p[1:-2].isdigit() for p in page.evaluate(PROMPTS))
            or page.locator("[data-mime-type='application/vnd.jupyter.error']").count()
        )
    )
    said = page.locator(
        "[data-mime-type='application/vnd.jupyter.stderr'], [data-mime-type='application/vnd.jupyter.error']"
    )
    assert said.count() == 0, said.first.inner_text()


def drag(page, handle, by):
    "Drag with the mouse, so many pixels to the right."
    handle.hover()  # waits until it stands still and nothing covers it
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by, y, steps=6)
    page.mouse.up()


def pixels(picture):
    "The bytes of a picture on the page."
    return picture.evaluate(
        "i => fetch(i.src).then(r => r.arrayBuffer()).then(b => Array.from(new Uint8Array(b)).join())"
    )


def moves(picture, do, what):
    "Something done to the page changes a picture; pictures that still arrive may push a control away from under the mouse."
    before = pixels(picture)
    until(lambda: pixels(picture) != before, do, f"{what}, and the picture stayed")


def click_at(box, x, y):
    "Click at shares of the width and the height."
    box.scroll_into_view_if_needed()
    size = box.bounding_box()
    box.click(position={"x": x * size["width"], "y": y * size["height"]})


def slider(explorer, name):
    return explorer.locator(".widget-hslider", has_text=name)


def drag_slider(page, explorer, name, by):
    handle = slider(explorer, name).locator(".noUi-handle")
    handle.scroll_into_view_if_needed()
    drag(page, handle, by)


# ---- the tour


def test_tour_runs_and_its_slider_moves_the_picture(lab, tmp_path):
    with page_at(lab("index")) as page:
        run_all(page)
        player = page.locator(".jupyter-widgets.widget-vbox").first
        player.scroll_into_view_if_needed()
        handle = player.locator(".noUi-handle")

        def dragged():
            player.scroll_into_view_if_needed()
            drag(page, handle, 120)

        moves(player.locator("img.widget-image"), dragged, "the slider was dragged")
        page.screenshot(path=tmp_path / "tour.png")
        assert page.locator(".jp-OutputArea-output img").count() >= 6, "the tour shows its figures"


# ---- the explorers, each moved as a reader would


def edit_explorer(page, at):
    "A face is clicked, a slider dragged, an edit kept; the code can be read; an upload that is no picture is said."
    picture = at.get_by_label("edited face").locator("img")
    moves(picture, lambda: click_at(at.get_by_label("Face: choose one of the faces"), 0.92, 0.75), "a face was clicked")
    moves(picture, lambda: drag_slider(page, at, "gain", -60), "the gain was dragged")
    at.get_by_role("button", name="Show as code").click()
    at.get_by_text('Edit("Eyeglasses"').wait_for()
    with page.expect_file_chooser() as asked:
        at.locator(".jupyter-widget-upload, .widget-upload").first.click()
    asked.value.set_files({"name": "notes.txt", "mimeType": "image/png", "buffer": b"no picture"})
    at.get_by_text("no picture that can be read").first.wait_for()


def attention_explorer(page, at):
    "A place is chosen by mouse and by keyboard, a token and a layer by their menus."
    face = at.get_by_label("attention over the face: choose a place")
    picture = face.locator("img")
    at.locator("select").nth(2).select_option("unet.up.2.attn")
    moves(picture, lambda: click_at(face, 0.3, 0.6), "a place was clicked")
    face.focus()
    moves(picture, lambda: page.keyboard.press("ArrowRight"), "the right arrow was pressed")
    at.locator("select").nth(2).select_option("modulation.Eyeglasses.cross")
    moves(picture, lambda: at.get_by_role("button", name="2", exact=True).click(), "another token was chosen")


def style_explorer(page, at):
    "A point of the plane is clicked."
    plane = at.get_by_label("plane of styles: choose a point")
    moves(
        at.get_by_label("the face in the chosen style").locator("img"),
        lambda: click_at(plane, 0.1, 0.1) or click_at(plane, 0.9, 0.5),
        "a style was clicked",
    )


def direction_vs_style(page, at):
    "The gain of all ways is dragged."
    moves(
        at.get_by_label("edited by global direction").locator("img"),
        lambda: drag_slider(page, at, "gain", 60),
        "the gain was dragged",
    )
    at.get_by_role("cell", name="image-specific direction").wait_for()


def consistency_explorer(page, at):
    "Training time is dragged; an ablation comes below."
    moves(
        at.get_by_label("full training: restored").locator("img"),
        lambda: drag_slider(page, at, "moment", 150),
        "the moment was dragged",
    )
    at.locator("select").nth(1).select_option("no mask")
    at.get_by_label("ablation: restored").wait_for()


def trajectory_player(page, at):
    "The film is scrubbed, stepped and played."
    picture, handle = at.locator("img.widget-image"), at.locator(".noUi-handle")
    moves(picture, lambda: drag(page, handle, -150), "the film was scrubbed")
    moves(picture, lambda: at.get_by_role("button", name="›").click(), "the next frame was asked for")


PLAYS = {
    "edit-explorer": edit_explorer,
    "attention-explorer": attention_explorer,
    "style-explorer": style_explorer,
    "direction-vs-style": direction_vs_style,
    "consistency-explorer": consistency_explorer,
    "trajectory-player": trajectory_player,
}


def play_all(page, tmp_path):
    "Each explorer is moved; the second view of the first shows what the first does."
    for name, play in PLAYS.items():
        at = page.locator(f".{name}").first
        at.wait_for()
        at.scroll_into_view_if_needed()
        play(page, at)
        at.screenshot(path=tmp_path / f"{name}.png")
    first, second = (page.locator(".edit-explorer").nth(i).get_by_label("edited face").locator("img") for i in (0, 1))
    assert pixels(first) == pixels(second), "two views of one explorer show two states"


def test_explorers_in_jupyterlab(lab, tmp_path):
    with page_at(lab("explorers")) as page:
        run_all(page)
        play_all(page, tmp_path)
        lost = page.locator(".edit-explorer.jupyter-widgets-disconnected").first
        choose(page, "Kernel", "kernelmenu:restart", lost.is_visible, "the kernel does not restart")
        assert "restarted: run its cell again" in lost.evaluate("e => getComputedStyle(e, '::before').content")
        lost.screenshot(path=tmp_path / "lost.png")


def test_explorers_in_notebook_7(tmp_path):
    pytest.importorskip("notebook", reason="Notebook 7 is not installed: pip install -e '.[dev]'")
    with (
        jupyter("notebook", tmp_path) as port,
        page_at(f"http://127.0.0.1:{port}/notebooks/nbs/explorers.ipynb", known="reading 'schema'") as page,
    ):  # Notebook 7.6 says it of any notebook
        run_all(page)
        play_all(page, tmp_path)


def test_explorers_in_voila(tmp_path):
    with voila_page(tmp_path, "explorers", EXPLORERS) as at, page_at(at) as page:
        play_all(page, tmp_path)
