"Pictures: what goes in, what comes out, and that nothing half-written stays."

import html.parser, io, json, re, shutil
from pathlib import Path
import matplotlib as mpl, numpy as np, pytest, torch
from PIL import Image
from repo import HANG
from latref_nb import plots as P


def pics(n=6, size=16, channels=3):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def png(fig):
    return Image.open(io.BytesIO(P.figure_png(fig)))


KINDS = {
    "batch": lambda: pics(),
    "one": lambda: pics()[0],
    "grey": lambda: pics(channels=1),
    "half": lambda: pics().half(),
    "numpy": lambda: pics().numpy(),
    "bytes": lambda: [np.zeros((8, 10, 3), np.uint8)],
    "pil": lambda: Image.new("L", (9, 9)),
    "mixed": lambda: [pics()[0], None, Image.new("RGBA", (16, 16))],
    "grad": lambda: pics().requires_grad_(),
    "noised": lambda: pics() * 3,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_becomes_bytes(kind):
    out = [o for o in P.as_pictures(KINDS[kind]()) if o is not None]
    assert out and all(o.dtype == np.uint8 and o.ndim == 3 and o.shape[2] == 3 for o in out)


def test_pixels_are_the_images_own():
    x = torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 3).expand(3, 2, 3)
    assert P.as_pictures(x)[0][0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    "bad,words",
    [
        (torch.zeros(4, 8, 8), "shape (4, 8, 8)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "uint8"),
        (torch.full((3, 8, 8), 99.0), "0..255"),
        (torch.full((3, 8, 8), float("nan")), "NaN"),
        (["a.png"], "str"),
        ([], "no images"),
        ([None], "no images"),
        (torch.zeros(2, 2, 3, 8, 8), "shape (2, 3, 8, 8)"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(bad, words):
    with pytest.raises(ValueError) as e:
        P.as_pictures(bad)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_grid_shapes_and_labels():
    assert len(P.image_grid(pics(7), ncol=3).axes) == 9
    assert len(P.image_grid(pics(6), rows=["a", "b"]).axes) == 6
    assert len(P.image_grid([pics(2), pics(3)], cols=["x", "y", "z"]).axes) == 6
    assert len(P.image_grid(pics(2), titles=["a", "b"], title="t").axes) == 2
    for kw, words in (
        ({"rows": ["a"], "ncol": 3}, "1 row labels came for 2"),
        ({"cols": ["a", "b"], "ncol": 3}, "2 column labels came for 3"),
        ({"titles": ["a"]}, "1 titles came for 6"),
    ):
        with pytest.raises(ValueError, match=words):
            P.image_grid(pics(6), **kw)


def test_a_title_for_each_place_also_with_a_gap():
    fig = P.image_grid([[pics(1)[0], None], [pics(1)[0], pics(1)[0]]], titles=["a", "", "c", "d"])
    assert [ax.get_title() for ax in fig.axes] == ["a", "", "c", "d"]


def test_wide_grids_stay_within_the_page():
    for n in (1, 8, 30):
        assert png(P.image_grid(pics(n), ncol=n)).width <= P.WIDTH * 72 + 60


def test_long_labels_wrap():
    fig = P.image_strip(pics(2), ["a rather long caption for so small a picture", "b"])
    assert "\n" in fig.axes[0].get_title()


def test_rows_of_differently_shaped_images():
    assert png(P.image_grid([pics(1)[0], torch.zeros(3, 32, 16)])).height > 40


def test_heat_map_scale_is_shared_and_named():
    fig = P.heat_map(pics(2), [torch.rand(4, 4), 3 * torch.rand(8, 8)], label="weight")
    images = [im for ax in fig.axes[:2] for im in ax.images[1:]]
    assert images[0].get_clim() == images[1].get_clim() and fig.axes[-1].get_ylabel() == "weight"
    lo, hi = P.heat_map(None, torch.tensor([[-3.0, 1.0]]), symmetric=True).axes[0].images[0].get_clim()
    assert (lo, hi) == (-3, 3)
    assert P.heat_map(pics(1), torch.zeros(4, 4), vmin=0, vmax=1).axes[0].images[1].get_clim() == (0, 1)


@pytest.mark.parametrize(
    "heat,words",
    [
        (torch.zeros(3, 4, 4), "3 maps came for 2"),
        (torch.full((4, 4), float("inf")), "NaN or infinity"),
        (torch.zeros(2, 3, 4, 4), "a map of shape (3, 4, 4)"),
    ],
)
def test_bad_maps(heat, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        P.heat_map(pics(2), heat)


def test_code_bars():
    assert len(P.code_bars(torch.randn(3, 512), ["a", "b", "c"]).axes) == 3
    assert len(P.code_bars(torch.zeros(8)).axes) == 1
    with pytest.raises(ValueError, match="codes of shape"):
        P.code_bars(torch.zeros(1, 2, 3))


def test_line_plot_draws_what_came():
    fig = P.line_plot(
        [1, 10, 100],
        {"a": torch.tensor([1.0, 2.0, 3.0]), "b": ([1, 2], [5, 6])},
        logx=True,
        logy=True,
        band={"a": ([0.5, 1, 2], [2, 3, 4])},
        limit=(2, "bar"),
        xlabel="x",
        ylabel="y",
    )
    ax = fig.axes[0]
    assert (
        ax.get_xscale() == ax.get_yscale() == "log"
        and ax.lines[0].get_ydata().tolist() == [1, 2, 3]
        and ax.lines[1].get_xdata().tolist() == [1, 2]
    )
    assert len({l.get_color() for l in ax.lines[:2]}) == 2
    with pytest.raises(ValueError, match="2 values for 3"):
        P.line_plot([1, 2, 3], {"a": [1, 2]})
    with pytest.raises(ValueError, match="no lines"):
        P.line_plot(None, {})
    with pytest.raises(ValueError, match="A curve is"):
        P.line_plot(None, {"a": torch.zeros(2, 2)})


def test_many_lines_stay_apart():
    styles = {
        (l.get_color(), l.get_linestyle()) for l in P.line_plot(None, {str(i): [i, i] for i in range(20)}).axes[0].lines
    }
    assert len(styles) == 20


def test_bars_and_tables_write_their_numbers():
    text = lambda fig: [t.get_text() for ax in fig.axes for t in ax.texts]
    assert {"0.25", "0.50"} <= set(text(P.bar_plot({"a": 0.25, "b": 0.5})))
    assert {"1.00", "2.00", "3.00"} <= set(text(P.bar_plot({"s": {"a": 1, "b": 2}, "t": {"b": 3}}, limit=(1, "bar"))))
    assert {"0.123", "–", "name", "x"} <= set(
        text(P.table_figure([{"name": "x", "v": 0.1234}, {"name": "y", "v": None}]))
    )
    for f in (P.bar_plot, P.table_figure):
        with pytest.raises(ValueError, match="came"):
            f({})


def test_the_reader_s_settings_are_left_alone():
    before = dict(mpl.rcParams)
    P.line_plot(None, {"a": [1, 2]})
    P.new_figure(2, 2)
    assert dict(mpl.rcParams) == before


def test_figures_are_not_kept_by_pyplot():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    P.image_grid(pics())
    P.new_figure()
    assert plt.get_fignums() == before


def test_png_is_the_same_every_time_and_small_in_a_notebook():
    fig = P.image_grid(pics(32, 64), scale=1)
    assert P.figure_png(fig) == P.figure_png(fig)
    assert len(P.figure_png(fig, colors=96)) < 0.6 * len(P.figure_png(fig))
    bundle = fig._repr_mimebundle_()
    assert set(bundle) == {"image/png", "text/plain"} and isinstance(bundle["image/png"], str)


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg", ".jpg"])
def test_save_figure(tmp_path, suffix):
    p = P.save_figure(P.image_strip(pics(2)), tmp_path / "new" / f"a{suffix}")
    assert p.stat().st_size > 500 and [o.name for o in p.parent.iterdir()] == [f"a{suffix}"]


def test_save_figure_leaves_nothing_half_written(tmp_path, monkeypatch):
    fig = P.image_strip(pics(2))
    target = tmp_path / "a.png"
    target.write_bytes(b"old")
    with pytest.raises(ValueError, match="no figure format"):
        P.save_figure(fig, tmp_path / "a.face")

    def fail(path, **kw):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fig, "savefig", fail)
    with pytest.raises(OSError, match="disk is full"):
        P.save_figure(fig, target)
    assert target.read_bytes() == b"old" and [o.name for o in tmp_path.iterdir()] == ["a.png"]


def test_player_state_is_one():
    p = P.FramePlayer(pics(5), [f"t={i}" for i in range(5)], interval=99)
    seen = []
    p.observe(lambda c: seen.append(c.new), "index")
    first = p.picture.value
    p.slider.value = 3
    assert (p.index, p.play.value, seen) == (3, 3, [3]) and "t=3" in p.caption.value and p.picture.value != first
    p.play.value = 1
    assert p.slider.value == 1
    p.back.click()
    p.back.click()
    p.back.click()
    assert p.index == 0
    p.index = 4
    p.on.click()
    assert p.index == 4
    p.index = -7
    assert p.index == 0
    p.play.playing = True
    assert p.playing
    p.playing = False
    assert not p.play.playing


def test_player_frames_are_the_pixels():
    x = pics(2, 16)
    p = P.FramePlayer(x, size=64)
    shown = np.asarray(Image.open(io.BytesIO(p.picture.value)))
    assert shown.shape == (64, 64, 3) and (shown[::4, ::4] == P.as_pictures(x)[0]).all()


def test_player_still_and_faults():
    p = P.FramePlayer(pics(20))
    assert (
        len(p.still(6).axes) == 6
        and p.still(6).axes[-1].get_title() == "frame 19"
        and len(P.FramePlayer(pics(1)).still(8).axes) == 1
    )
    with pytest.raises(ValueError, match="2 titles came for 20"):
        P.FramePlayer(pics(20), ["a", "b"])
    with pytest.raises(ValueError, match="differ in size"):
        P.FramePlayer([torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)])


class _Tags(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href")]


def test_player_html_is_self_contained():
    p = P.FramePlayer(pics(3), ["<b>", "</script>", "ü"])
    page = p.to_html(page=True)
    t = _Tags(page)
    assert t.tags.count("script") == 2 and "b" not in t.tags and not t.links and "http" not in page
    data = json.loads(page.split('class="lr-data">')[1].split("</script>")[0])
    assert (
        data["titles"] == ["<b>", "</script>", "ü"]
        and len(data["frames"]) == 3
        and all(f.startswith("data:image/png;base64,") for f in data["frames"])
    )
    assert p.to_html() in page


CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_player_page_moves_by_mouse_and_keyboard(tmp_path):
    "Two players on one page, in a real browser: step, jump, scrub, play to the end, each on its own."
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    p = P.FramePlayer(pics(4), ["a", "b", "c", "d"], interval=40)
    (tmp_path / "page.html").write_text(
        p.to_html(page=True).replace("</body>", p.to_html() + "</body>"), encoding="utf-8"
    )
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        )
        try:
            page, errors = browser.new_page(), []
            page.on("pageerror", lambda e: errors.append(str(e)))
            page.goto((tmp_path / "page.html").as_uri())
            one, other = page.locator(".lr-player").all()
            caption, image = one.locator(".lr-cap"), one.locator("img")
            expect = sync_api.expect
            expect.set_options(timeout=HANG * 1000)
            page.set_default_timeout(HANG * 1000)
            expect(caption).to_have_text("a   (1 of 4)")
            first = image.get_attribute("src")
            one.focus()
            page.keyboard.press("ArrowRight")
            expect(caption).to_have_text("b   (2 of 4)")
            assert image.get_attribute("src") != first
            page.keyboard.press("End")
            expect(caption).to_have_text("d   (4 of 4)")
            page.keyboard.press("ArrowRight")
            expect(caption).to_have_text("d   (4 of 4)")
            one.locator("input").focus()
            page.keyboard.press("ArrowLeft")
            expect(caption).to_have_text("c   (3 of 4)")  # the slider's own keys
            one.locator("input").fill("0")
            expect(caption).to_have_text("a   (1 of 4)")
            one.locator("button").click()
            expect(caption).to_have_text("d   (4 of 4)")
            expect(one.locator("button")).to_have_text("▶")
            expect(other.locator(".lr-cap")).to_have_text("a   (1 of 4)")
            assert not errors
        finally:
            browser.close()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: P.image_grid(pics(24, 32), titles=[str(i) for i in range(24)], title="t"),
        lambda: P.line_plot(None, {"a": [1, 4, 2], "b": [2, 1, 1]}, band={"a": ([0, 3, 1], [2, 5, 3])}),
    ],
    ids=["grid", "lines"],
)
def test_fewer_colours_keep_white_paper_and_the_faces(draw):
    fig = draw()
    plain, few = (
        np.asarray(Image.open(io.BytesIO(P.figure_png(fig, colors=c, small=0))).convert("RGB"), dtype=float)
        for c in (None, 64)
    )
    paper = (plain == 255).all(-1)
    assert paper.mean() > 0.05 and (few[paper] == 255).mean() > 0.99 and np.abs(few - plain).mean() < 20
