"The documentation: its pages run as written, the site builds without a warning or a broken link, and looks right in a browser."

import importlib.util, os, re, shutil, subprocess, sys
from pathlib import Path
import pytest
from repo import CHAPTERS, HANG, ROOT, wait_for
from test_browser import ARGS, CHROMIUM

sys.path.insert(0, str(ROOT / "tools"))
import docs

SPHINX = all(importlib.util.find_spec(m) for m in ("sphinx", "myst_nb", "sphinx_book_theme"))
needs_sphinx = pytest.mark.skipif(
    not SPHINX, reason="no Sphinx here: `make docs` installs it, or pip install -e '.[docs]'"
)


# ---- pages


@pytest.mark.parametrize("page", ["own_images"])
def test_python_on_a_page_runs_as_written(page, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / f"docs/{page}.md").read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) > 4
    code = "\n".join(blocks) + "\nassert accuracy['LongHair'] > 0.85, accuracy\n"
    (tmp_path / "page.py").write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("with_glasses.png", "put_back.png", "longer.png", "longhair/model_index.json"):
        assert (tmp_path / name).is_file(), name


def test_the_four_notebooks_of_diffae_run_as_written(tmp_path):
    "On random weights in the published layout: autoencoder, 40 rows of a classifier, prior."
    import torch
    from latref_nb.autoencoder import DiffusionAutoencoder
    from latref_nb.core import save_image
    from latref_nb.faces import SynthFaces
    from latref_nb.latent import LatentPrior
    from latref_nb.official import classifiers_from_state_dict, diffae_pipeline, fill_by_rule

    stats = {"conds_mean": torch.zeros(1, 512), "conds_std": torch.ones(1, 512)}
    rows = fill_by_rule({"classifier.weight": (40, 512), "classifier.bias": (40,)})
    small = dict(image_size=32, patch_size=4, model_channels=32, channel_mult=(1, 1), enc_channel_mult=(1, 1, 1, 1))
    network = DiffusionAutoencoder(**small, attention_resolutions=())
    pipe = diffae_pipeline(network, classifiers_from_state_dict(rows | stats), LatentPrior(512, 16, 3))
    pipe.save_pretrained(tmp_path / "released/faces")
    for name, x in zip(("me", "her"), SynthFaces(2, 64, seed=1).batch([0, 1])["image"]):
        save_image(x, tmp_path / f"{name}.png")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/diffae.md").read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 5
    code = "\n".join(blocks) + "\nassert back.shape == wavy.shape == (1, 3, 32, 32) and len(new.images) == 4\n"
    (tmp_path / "page.py").write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("other_noise.png", "edited.png", "way_7.png", "new.png", "new_older.png"):
        assert (tmp_path / name).is_file(), name


def first_screen():
    "What the README shows before anything else."
    return (ROOT / "README.md").read_text(encoding="utf-8").partition("## Where to begin")[0]


def test_first_lines_of_the_readme_run_as_written(tmp_path):
    (code,) = re.findall(r"^```python\n(.*?)^```", first_screen(), re.M | re.S)
    assert len([line for line in code.splitlines() if line]) == 5
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0 and (tmp_path / "edited.png").is_file(), done.stderr[-2000:]


def test_first_screen_of_the_readme_has_a_picture_two_commands_and_the_table_of_the_card():
    told, card = first_screen(), (ROOT / "data/synthfaces64/README.md").read_text(encoding="utf-8")
    assert (
        told.index("![")
        < told.index("```python")
        < told.index("    make demo")
        < told.index("    make lab")
        < told.index("| nothing done |")
    )
    means = card[card.index("mean over tags") :].split("\n\n")[0]
    for name, words in {
        "source": "nothing done",
        "global_direction": "`Tag=value`",
        "latent": "`seed=`",
        "reference": "`ref=`",
    }.items():
        measured = re.search(rf"^{name} +(.*)$", means, re.M)[1].split()
        shown = re.search(rf"^\| {re.escape(words)}[^|]*\|(.*)\|$", told, re.M)[1].split("|")
        assert [v.strip() for v in shown] == [measured[i] for i in (0, 1, 2, 3, 6)], (
            f"{name}: run nbs/index.ipynb again"
        )


def test_sections_that_pages_name_are_in_the_chapters():
    from test_repo import heading_ids, links

    named = [
        (page.name, target)
        for page in sorted((ROOT / "docs").glob("*.md"))
        for target in links(page.read_text(encoding="utf-8"))
        if ".ipynb#" in target
    ]
    gone = [
        f"{page}: {target}"
        for page, target in named
        if target.partition("#")[2] not in heading_ids((ROOT / "docs" / target.partition("#")[0]).resolve())
    ]
    assert len(named) > 40 and not gone, gone


def test_every_asked_question_has_a_page():
    text = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs").glob("*.md"))
    for words in (
        "What is x_T",
        "inversion not give my image back",
        "put the crop back",
        "one attribute from a reference",
        "define a new tag",
        "My class is rare",
        "How long does training",
        "attention of an existing image",
        "choose the layer and the step",
        "save a picture",
        "no widget show",
        "without a GPU",
        "in VS Code",
        "in Colab",
        "reproduce the table",
    ):
        assert re.search(rf"^## .*{re.escape(words)}", text, re.M), words


def test_three_paths_lead_from_the_readme():
    readme, paths = ((ROOT / p).read_text(encoding="utf-8") for p in ("README.md", "docs/paths.md"))
    for path in ("Ten minutes", "An hour", "An afternoon"):
        assert f"](docs/paths.md#{path.lower().replace(' ', '-')})" in readme and f"## {path}\n" in paths, path
    told = readme[readme.index("## Three paths") : readme.index("## The tour")]
    for words in ("make lab", "nbs/15a_explore.ipynb", "latref_edit", "latref_course"):
        assert words in told, words
    for path in CHAPTERS:
        assert f"../nbs/{path.name}" in paths, f"{path.stem} is on no path"
    from latref_nb import explore

    source = Path(explore.__file__).read_text(encoding="utf-8")
    for button in re.findall(r"\*([A-Z][^*]+)\*", told.split("EditExplorer")[1])[:2]:
        assert f'"{button.strip("*")}"' in source, f"the explorer has no button {button!r}"


# ---- the site


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The built site: (folder, what Sphinx said). Built once, also when tests run in several processes."
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site"
    try:
        home.mkdir()
    except FileExistsError:
        wait_for((home / "said").exists)
    else:
        said = ""
        try:
            _, said = docs.build(home / "out")
        except SystemExit as e:
            said = str(e)
        (home / "said.part").write_text(said, encoding="utf-8")
        (home / "said.part").rename(home / "said")
    return home / "out/html", (home / "said").read_text(encoding="utf-8")


@needs_sphinx
def test_site_builds_without_a_warning(site):
    pages, said = site
    assert not said.strip(), said[-3000:]
    for path in CHAPTERS:
        assert (pages / f"nbs/{path.stem}.html").is_file()


@needs_sphinx
def test_links_lead_somewhere_and_nothing_is_loaded_from_elsewhere(site):
    assert not docs.broken_links(site[0])


@needs_sphinx
def test_source_stands_on_the_pages_of_the_package(site):
    page = (site[0] / "api/core.html").read_text(encoding="utf-8")
    assert 'id="latref_nb.core.load_image"' in page and "Read one picture, upright, as RGB" in page
    assert "TagSet.encode" in (site[0] / "api/tags.html").read_text(encoding="utf-8"), (
        "methods stand behind their class"
    )


def test_texts_for_the_search_hold_the_article_alone(tmp_path):
    reader = docs.Text()
    reader.feed(
        '<nav>menu</nav><article><h1 id="top">Title<a class="headerlink" href="#top">#</a></h1><p>One <b>b</b>old<br>line</p><script>x</script><p id="end">Last</p></article><p>foot</p>'
    )
    text = "".join(reader.parts)
    assert text == "Title One bold line Last" and text[reader.anchors["end"] :] == "Last"


def test_broken_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="gone.html">x</a><a href="#nowhere">y</a><p id="here"></p><a href="a.html#here">z</a><script src="https://cdn.example/x.js"></script>',
        encoding="utf-8",
    )
    assert docs.broken_links(tmp_path) == [
        "a.html: #nowhere",
        "a.html: gone.html",
        "a.html: loads https://cdn.example/x.js",
    ]


@needs_sphinx
@pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium or Chrome on this machine: install one to look at the site in a browser"
)
def test_three_pages_in_a_browser(site, tmp_path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(HANG * 1000)
        wrong = []
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("request", lambda r: wrong.append(f"asks for {r.url}") if r.url.startswith("http") else None)
        page.goto((site[0] / "index.html").as_uri())
        page.wait_for_url("**/docs/index.html")
        page.get_by_role("heading", name="latref_nb").first.wait_for()
        assert page.locator("article img").count() == 1, "no face on the first page"
        page.get_by_role("link", name="Questions", exact=True).first.click()
        page.get_by_role("heading", name="What is x_T?").wait_for()
        page.goto((site[0] / "nbs/03_schedule.html").as_uri())
        assert page.evaluate("Array.from(document.images).every(i => i.complete && i.naturalWidth > 0)"), (
            "a picture is missing"
        )
        fold = page.locator("details", has_text="Answer").first
        fold.locator("summary").click()
        fold.locator("p").first.wait_for()
        page.goto((site[0] / "search.html").as_uri() + "?q=reference_style")
        page.wait_for_selector("ul.search li a")
        assert "pipeline" in page.locator("ul.search").inner_text()
        page.wait_for_selector("ul.search li p.excerpt b", timeout=HANG * 1000)
        assert "The style of (tag, value) in reference faces" in page.locator("p.excerpt").first.inner_text()
        page.goto((site[0] / "api/directions.html").as_uri())
        too_wide = "Array.from(document.querySelectorAll('dl.py > dt, div.highlight pre')).filter(e => e.scrollWidth > e.clientWidth + 1).length"
        assert page.locator("dl.py > dt").count() > 20 and page.evaluate(too_wide) == 0, (
            "a signature runs out of its column"
        )
        for name in ("docs/index", "nbs/03_schedule", "api/styles"):
            page.goto((site[0] / f"{name}.html").as_uri())
            page.screenshot(path=tmp_path / f"{Path(name).name}.png")
            assert (tmp_path / f"{Path(name).name}.png").stat().st_size > 20_000
        browser.close()
    assert not wrong, wrong
