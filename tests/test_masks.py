"The picture mask: what it learns from, what it keeps, and the pipeline that carries it."

from types import SimpleNamespace

import pytest
import torch

from latref_nb.core import make_generator
from latref_nb.faces import SynthFaces
from latref_nb.masks import MaskTask, MaskWeights, PictureMask, train_mask
from latref_nb.metrics import edited_pictures, rows_at_hand
from latref_nb.edits import Edit
from latref_nb.pipeline import LatRefPipeline
from latref_nb.resuming import StepGenerator
from latref_nb.tags import CELEBA_TAGS
from style_case import style_pipeline
from consistency_case import FIT, batch_of, cache, classifiers, frozen  # noqa: F401 (fixtures)


def half_open(pipe):  # a mask that is shut above, open below
    mask = PictureMask.beside(pipe.autoencoder, pipe.mlp, grid=4, width=8)
    with torch.no_grad():
        for p in mask.net.parameters():
            p.zero_()
        mask.net[-1].bias.copy_(torch.tensor([-99.0] * 8 + [99.0] * 8))
    return mask.requires_grad_(False)


@pytest.fixture(scope="module")
def pipe():
    base = style_pipeline()
    parts = {k: m for k, m in base.components.items() if k != "picture_mask"}
    out = LatRefPipeline(**parts, picture_mask=half_open(base), inversion="fixed_point")
    out.set_progress_bar_config(disable=True)
    return out


@pytest.fixture(scope="module")
def x():
    return SynthFaces(8, 64, seed=5).batch([0, 3])["image"]


def test_style_edits_keep_the_source_outside_and_directions_do_not(pipe, x):
    "To the bit in the shut half; the open half is what was rendered."
    asked = Edit("Eyeglasses", "with", seed=1)
    go = lambda e=asked, **how: pipe(x, e, 3, output_type="pt", **how)
    out, whole = go(), go(keep=False)
    assert torch.equal(out.images[:, :, :16], x[:, :, :16]) and torch.allclose(
        out.images[:, :, -16:], whole.images[:, :, -16:], atol=1e-6
    )
    assert (
        not torch.equal(whole.images[:, :, :16], x[:, :, :16])
        and whole.mask is None
        and out.mask.shape == (2, 1, 64, 64)
    )
    assert torch.equal(out.z_edit, whole.z_edit)
    direction = Edit("Eyeglasses", "with", method="global_direction")
    assert go(direction).mask is None and torch.equal(go(direction, keep=True).images[:, :, :16], x[:, :, :16])
    assert go(()).mask is None, "no edit, no mask: the round trip shows what inversion keeps"
    assert go(Edit("Eyeglasses", "with", seed=1, mask=torch.ones(64, 64))).mask is None, (
        "an edit's own mask goes before"
    )
    assert go(x_T="random", generator=make_generator(0)).mask is None, (
        "other noise makes another picture; the source has no place in it"
    )
    one = pipe(x[1:], asked, 3, output_type="pt")
    assert torch.allclose(one.images, out.images[1:], atol=1e-3)


def test_the_way_between_two_edits_keeps_the_source(pipe, x):
    out = pipe.interpolate(
        x[:1], Edit("Eyeglasses", "with", seed=1), Edit("Eyeglasses", "with", seed=2), 3, 2, output_type="pt"
    )
    assert out.images.shape[0] == 3 and torch.equal(out.images[:, :, :16], x[:1].expand(3, -1, -1, -1)[:, :, :16])


def test_a_checkpoint_with_a_mask_comes_back_whole(pipe, x, tmp_path):
    pipe.save_pretrained(tmp_path / "m")
    back = LatRefPipeline.from_pretrained(tmp_path / "m")
    back.set_progress_bar_config(disable=True)
    z = torch.randn(2, 2, 128, generator=make_generator(0))
    assert torch.equal(back.picture_mask(*z), pipe.picture_mask(*z)) and set(back.parts) == set(pipe.parts)


def test_what_does_not_fit_is_refused(pipe, x):
    without = style_pipeline()
    without.register_modules(picture_mask=None)
    assert without(x, "Eyeglasses=with:seed=1", 1, output_type="pt").mask is None
    with pytest.raises(ValueError, match="latref_train mask"):
        without(x, "Eyeglasses=with:seed=1", 1, keep=True)
    other = PictureMask(pipe.tags, 64, 64)
    with pytest.raises(ValueError, match="codes of 64 numbers for images of 64 pixels, the autoencoder has 128 and 64"):
        LatRefPipeline(pipe.autoencoder, pipe.linear, pipe.mlp, picture_mask=other)
    with pytest.raises(ValueError, match="edits nothing"):
        LatRefPipeline(pipe.autoencoder, picture_mask=pipe.picture_mask)
    with pytest.raises(ValueError, match=r"\(B,128\) twice"):
        pipe.picture_mask(torch.zeros(2, 128), torch.zeros(1, 128))


def test_evaluation_tells_style_and_mask_apart(pipe, x):
    z = pipe.encode(x)
    src = SimpleNamespace(x=x, z=z, x_T=pipe.invert(x, z, 2), steps=2, faces=SynthFaces(8, 64, seed=5))
    wish = SimpleNamespace(
        tag="Eyeglasses", value="with", rows=torch.tensor([0, 1]), references=torch.tensor([[2], [4]]), truth=x
    )
    made = {
        m: edited_pictures(pipe, src, wish, torch.tensor([0, 1]), m, {})
        for m in ("reference", "reference_whole", "global_direction", "global_direction_kept", "latent")
    }
    kept = {m for m, y in made.items() if torch.equal(y[:, :, :16], x[:, :, :16])}
    assert kept == {"reference", "latent", "global_direction_kept"} and torch.allclose(
        made["reference"][:, :, -16:], made["reference_whole"][:, :, -16:], atol=1e-6
    )
    assert {"reference_whole", "global_direction_kept"} <= set(rows_at_hand(pipe))
    bare = SimpleNamespace(
        **{k: getattr(pipe, k) for k in ("linear", "mlp", "modulation", "extractor", "mapper")}, picture_mask=None
    )
    assert not {"reference_whole", "global_direction_kept"} & set(rows_at_hand(bare))


def test_pairs_are_read_both_ways(frozen, cache):  # noqa: F811
    "x and a, y and b belong together, forwards and backwards; some of each occur."
    task, b = MaskTask(frozen, PictureMask.beside(frozen.autoencoder, frozen.mlp, grid=4, width=8)), batch_of(cache, 12)
    x, y, a, c, (z, gone, also, both) = task.pair(b, StepGenerator(0, 0, 12))
    back = (a != z).any(1)
    assert (
        0 < back.sum() < 12
        and torch.equal(c[~back], gone[~back])
        and torch.equal(a[back], gone[back])
        and torch.equal(c[back], z[back])
    )
    first = b["images"].float() / 127.5 - 1
    assert torch.allclose(x[~back], first[~back], atol=1e-5) and torch.allclose(y[back], first[back], atol=1e-5)
    assert not torch.equal(gone, also), "two different tags"
    assert torch.allclose(both - z, (gone - z) + (also - z), atol=1e-5)


def test_a_dear_place_stays_shut(frozen, cache, tmp_path):  # noqa: F811
    "The price decides: free places open, dear ones shut; a training that is called again is not done again."
    go = lambda out, area, steps=40: train_mask(
        frozen.autoencoder,
        classifiers(frozen),
        cache,
        tmp_path / out,
        steps,
        critic=frozen.critic,
        weights=MaskWeights(area=area),
        grid=4,
        width=16,
        **{**FIT, "lr": 2e-2},
    )
    z, w = cache.column("z")[:6], cache.column("z")[6:12]
    free, dear = (go(n, a)(z, w).mean() for n, a in (("free", 0.0), ("dear", 1e4)))
    assert dear < 0.5 < free
    whole, again = go("once", 1.0), go("once", 1.0)
    assert torch.equal(whole.net[0].weight, again.net[0].weight) and torch.equal(whole.z_mean, frozen.mlp.z_mean)


def test_the_command_shows_the_whole_picture_when_asked(pipe, x, tmp_path, monkeypatch):
    "Without --whole the shut half of a file's edit is the file's own; with it, it is not, and edits.json says so."
    import json
    import sys

    from latref_nb import commands
    from latref_nb.core import load_image, save_image

    save_image(x[0], tmp_path / "a.png")
    pipe.save_pretrained(tmp_path / "m")
    upper = {}
    for name, more in (("kept", []), ("whole", ["--whole"])):
        monkeypatch.setattr(
            sys,
            "argv",
            [
                "latref_edit",
                str(tmp_path / "a.png"),
                "--edit",
                "Eyeglasses=with:seed=1",
                "--model",
                str(tmp_path / "m"),
                "--out",
                str(tmp_path / name),
                "--steps",
                "2",
                "--device",
                "cpu",
                *more,
            ],
        )
        with pytest.raises(SystemExit) as e:
            commands.latref_edit()
        assert not e.value.code
        upper[name] = torch.equal(
            load_image(tmp_path / name / "a_edited.png", 64)[:, :16], load_image(tmp_path / "a.png", 64)[:, :16]
        )
        assert ("keep" in json.loads((tmp_path / name / "edits.json").read_text())) == bool(more)
    assert upper == {"kept": True, "whole": False}


def test_one_tag_is_enough(frozen, cache):
    "Without a second tag the pair is still a pair."
    task = object.__new__(MaskTask)
    task.frozen = SimpleNamespace(tags=[CELEBA_TAGS[0]], autoencoder=frozen.autoencoder)
    b = batch_of(cache)
    b |= {k: b[k][:, :1] for k in ("removed", "removed_feats")}
    x, y, *_ = task.pair(b, StepGenerator(0, 0, 6))
    assert x.shape == y.shape == (6, 3, 16, 16) and not torch.equal(x, y)
