"The perceptual network: its formula by hand, what it orders, the roughening it is trained on, and what may go wrong."

import json

import pytest
import torch

from latref_nb import metrics, perceptual
from latref_nb.tags import CELEBA_TAGS
from latref_nb.core import make_generator
from latref_nb.datasets import cached
from latref_nb.directions import probe_accuracy
from latref_nb.faces import SynthFaces
from latref_nb.perceptual import (
    FaceTrunk,
    FactorFaces,
    PerceptualNet,
    PerceptualTask,
    face_head,
    fit_size,
    load_perceptual,
    roughen,
    soften,
)
from latref_nb.training import fit


@pytest.fixture(scope="module")
def net():
    return load_perceptual()


@pytest.fixture(scope="module")
def x():
    return SynthFaces(32, seed=104).batch(range(32))["image"]


def test_distance_is_its_formula(net, x):
    slow = torch.zeros(4)
    for a, b in zip(net.trunk(x[:4]), net.trunk(x[4:8])):
        for i in range(4):
            for r in range(a.shape[-1]):
                for c in range(a.shape[-1]):
                    slow[i] += (
                        (a[i, :, r, c] / a[i, :, r, c].norm() - b[i, :, r, c] / b[i, :, r, c].norm()).square().sum()
                        / a.shape[-1] ** 2
                        / 4
                    )
    assert torch.allclose(net.distance(x[:4], x[4:8]), slow, atol=1e-4)


def test_distance_orders_changes_and_has_a_gradient(net, x):
    noise = torch.randn(x.shape, generator=make_generator(0))
    d = net.distance
    sizes = [float(d(x, x + s * noise).mean()) for s in (0.0, 0.02, 0.1)] + [float(d(x, x.roll(1, 0)).mean())]
    assert sizes[0] == pytest.approx(0, abs=1e-6) and sizes == sorted(sizes)
    assert torch.allclose(d(x, x.flip(-1)), d(x.flip(-1), x), atol=1e-5)
    y = (x[:2] + 0.1).requires_grad_()
    d(x[:2], y).sum().backward()
    assert y.grad.abs().sum() > 0 and torch.isfinite(y.grad).all()


def test_a_descent_on_the_picture_comes_nearer(net, x):
    y = x[:4].clone()
    for _ in range(5):
        y.requires_grad_()
        (g,) = torch.autograd.grad(net.distance(y, x[4:8]).sum(), y)
        y = (y - 0.02 * g / g.square().mean((1, 2, 3), keepdim=True).sqrt()).detach()
    assert (net.distance(y, x[4:8]) < net.distance(x[:4], x[4:8])).all()


def test_predict_is_a_second_judge(net):
    b = SynthFaces(200, seed=77).batch(range(200))
    for y in (b["image"], roughen(b["image"], make_generator(0), mirror=False).clamp(-1, 1)):
        assert min(probe_accuracy(net.predict(y), b["labels"], net.tags).values()) >= 0.97
    big = SynthFaces(8, 128, seed=77).batch(range(8))["image"]
    assert torch.equal(net.predict(big), net.predict(fit_size(big, 64)))


def test_roughen_is_the_generators_and_keeps_the_face(x):
    a, b, c = (roughen(x, make_generator(s)) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and a.shape == x.shape and torch.isfinite(a).all()
    assert (a - x).abs().mean() < 0.5 and torch.equal(soften(x, torch.zeros(32, 1, 1, 1)), x)
    left = torch.zeros(64, 3, 64, 64)
    left[..., :16] = 1
    assert (roughen(left, make_generator(0), mirror=False)[..., :8].mean((1, 2, 3)) > 0.5).all()  # nothing is mirrored
    assert (roughen(left, make_generator(0))[..., -8:].mean((1, 2, 3)) > 0.5).float().mean() == pytest.approx(
        0.5, abs=0.25
    )


def test_trunk_halves_four_times():
    assert [tuple(f.shape[1:]) for f in FaceTrunk((8, 8, 16, 24))(torch.zeros(1, 3, 64, 64))] == [
        (8, 32, 32),
        (8, 16, 16),
        (16, 8, 8),
        (24, 4, 4),
    ]
    assert face_head(64, 24, 7)(torch.zeros(3, 24, 4, 4)).shape == (3, 7)


def test_factors_that_do_not_show_say_nothing():
    ds = SynthFaces(24, 64, seed=3)
    f, c = ds.factors(range(24)), CELEBA_TAGS.index("Eyeglasses")
    shown = {
        f"{t.name}={v}": ["colour"] if (t.name, v) == ("Eyeglasses", "with") else []
        for t in CELEBA_TAGS
        for v in t.values
    }
    plain, data = FactorFaces(ds, f), FactorFaces(ds, f, shown)
    known = plain.factors.shape[1] - sum(s.shape[1] for s in f.style.values())
    assert torch.equal(data.factors[:, :known], plain.factors[:, :known]) and torch.equal(
        plain.factors[:, known:], torch.cat([*f.style.values()], 1)
    )
    moved = data.factors[:, known:] != 0.5
    assert (
        int(moved.sum()) == int((f.labels[:, c] == 1).sum())
        and moved[f.labels[:, c] == 1].any(1).all()
        and torch.equal(data.factors[:, known:][moved], plain.factors[:, known:][moved])
    )


def test_training_is_by_the_task_and_loads_again(tmp_path):
    ds = SynthFaces(24, seed=9)
    net = PerceptualNet(widths=(8, 8, 8, 8))
    fit(
        PerceptualTask(net),
        FactorFaces(cached(ds, progress=False), ds.factors(range(24))),
        tmp_path,
        steps=2,
        batch_size=4,
        progress=False,
        trackers=(),
    )
    again = load_perceptual(tmp_path / "model")
    x = ds.batch(range(2))["image"]
    assert (
        torch.equal(net.eval()(x)[1], again(x)[1])
        and not again.training
        and not any(p.requires_grad for p in again.parameters())
    )
    assert again.tags == ds.tags and json.loads((tmp_path / "training.json").read_text())["steps"] == 2


def test_what_chapter_14_had_is_still_to_be_had_there(net):
    for name in ("FaceTrunk", "FactorFaces", "PerceptualNet", "PerceptualTask", "fit_size", "roughen", "soften"):
        assert getattr(metrics, name) is getattr(perceptual, name)
    other = metrics.load_network("perceptual")
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters()))


def test_a_wrong_folder_is_told(tmp_path):
    with pytest.raises((OSError, ValueError), match=str(tmp_path.name)):
        load_perceptual(tmp_path)
