"The tour in JupyterLab, in a real browser: it runs, says nothing wrong, and its slider moves the picture."
import json, os, shutil, socket, subprocess, sys, time, urllib.request
import pytest
from repo import ROOT

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on this machine: install one to test the widgets in a browser")


def free_port():
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); return s.getsockname()[1]

@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab on a copy of the tour without its outputs; gives the address."
    folder, port = tmp_path_factory.mktemp("lab"), free_port()
    tour = json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))
    for cell in tour["cells"]: cell.update({"outputs": []} if cell["cell_type"] == "code" else {})
    (folder / "nbs").mkdir()
    (folder / "nbs/index.ipynb").write_text(json.dumps(tour), encoding="utf-8")
    shutil.copytree(ROOT / "docs/images", folder / "docs/images")
    settings = folder / ".settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}')            # every cell in the page, also those out of sight
    own = {f"JUPYTER_{n}_DIR": str(tmp_path_factory.mktemp(n.lower())) for n in ("CONFIG", "RUNTIME")} | {"JUPYTERLAB_SETTINGS_DIR": str(folder / ".settings"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / ".workspaces")}
    log = open(folder / "lab.log", "w")
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--port-retries=0", "--allow-root", "--IdentityProvider.token=",
                               "--ServerApp.password=", f"--ServerApp.root_dir={folder}"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **own})
    try:
        wait_for(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/api").status == 200, 120)
        yield f"http://127.0.0.1:{port}/lab/workspaces/test{port}/tree/nbs/index.ipynb"
    finally:
        server.terminate()
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill()
        log.close()

def wait_for(ready, seconds):
    "Ask again and again; the last answer's error is the one shown."
    end = time.monotonic() + seconds
    while True:
        try:
            if ready(): return
        except OSError:
            if time.monotonic() > end: raise
        assert time.monotonic() < end, f"nothing after {seconds} s"
        time.sleep(0.3)

PROMPTS = "() => Array.from(document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')).map(p => p.innerText.trim())"

def run_all(page):
    "Run every cell, and wait until each has its number. A menu that the page, still loading, closes again is opened once more."
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=120_000)
    begun = lambda: any(set(p) & set("*123456789") for p in page.evaluate(PROMPTS))
    for _ in range(5):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.wait_for_timeout(5_000)
        if begun(): break
        page.keyboard.press("Escape")
    wait_for(lambda: all(p[1:-2].isdigit() for p in page.evaluate(PROMPTS)) or page.locator("[data-mime-type='application/vnd.jupyter.error']").count(), 400)

def drag(page, handle, by):
    "Drag with the mouse, so many pixels to the right."
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down(); page.mouse.move(x + by, y, steps=6); page.mouse.up()

def test_tour_runs_and_its_slider_moves_the_picture(lab, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        page, errors = browser.new_page(viewport={"width": 1280, "height": 1000}), []
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.on("console", lambda m: m.type == "error" and errors.append(f"{m.text} {m.location}"))
        page.goto(lab)
        run_all(page)
        said = page.locator("[data-mime-type='application/vnd.jupyter.stderr'], [data-mime-type='application/vnd.jupyter.error']")
        assert said.count() == 0, said.first.inner_text()

        player = page.locator(".jupyter-widgets.widget-vbox").first
        player.scroll_into_view_if_needed()
        picture = player.locator("img.widget-image")
        pixels = lambda: picture.evaluate("i => fetch(i.src).then(r => r.arrayBuffer()).then(b => Array.from(new Uint8Array(b)).join())")
        before, handle = pixels(), player.locator(".noUi-handle")
        for _ in range(5):                                      # pictures that still arrive push the slider away from under the mouse
            player.scroll_into_view_if_needed()
            drag(page, handle, 120)
            page.wait_for_timeout(2_000)
            if pixels() != before: break
        assert pixels() != before, "the slider was dragged and the picture stayed"
        page.screenshot(path=tmp_path / "tour.png")
        assert page.locator(".jp-OutputArea-output img").count() >= 6, "the tour shows its figures"
        browser.close()
    assert not errors, "\n".join(errors)
