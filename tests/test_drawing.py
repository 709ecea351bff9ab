"The painter: distances against counted pixels, values by name, parts, classes."

import pytest, torch
from latref_nb import drawing as P


def someone(**given):
    "Values of one or several faces: all in the middle, the tags at 0, but for those given."
    values = {n: 0.0 if n in P.STYLES else 0.5 for n in P.FACTORS} | given
    n = max(torch.as_tensor(v).numel() for v in values.values())
    return {name: torch.as_tensor(v).float().expand(n) for name, v in values.items()}


def grid(size):
    "x and y (S,S) of the middles of pixels in [-1, 1]."
    c = (torch.arange(size) + 0.5) * (2 / size) - 1
    return c[None].expand(size, size), c[:, None].expand(size, size)


def test_every_factor_has_one_name():
    assert len(P.FACTORS) == len(set(P.FACTORS)) == 62
    assert (len(P.IDENTITY), len(P.NUISANCE), len(P.STYLES), len(P.CLASSES)) == (22, 10, 6, 19)


def test_coverage_is_what_counting_gives():
    x, y = grid(1024)
    counted = (P.round_box(x, y, 0.7, 0.5, 0.25) < 0).float().view(32, 32, 32, 32).mean((1, 3))
    ours = P.cover(P.round_box(*grid(32), 0.7, 0.5, 0.25), 2 / 32)
    assert (ours - counted).abs().max() < 0.15 and (ours - counted).abs().mean() < 0.01


def test_a_box_with_the_radius_of_its_half_height_is_a_disc():
    x, y = grid(64)
    assert torch.allclose(P.round_box(x, y, 0.5, 0.5, 0.5), torch.sqrt(x * x + y * y) - 0.5, atol=1e-4)


def test_waves_and_bumps_keep_their_bounds():
    t = torch.linspace(-3, 3, 1001)
    assert P.wave(t).abs().max() <= 1 and torch.allclose(P.wave(t), P.wave(t + 1), atol=1e-4)
    assert P.bump(torch.tensor([0.0, 1.0, 2.0])).tolist() == [1, 0, 0]
    assert P.smooth(torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0])).tolist() == [0, 0, 0.5, 1, 1]


def test_a_ramp_passes_its_stops_and_mixes_between():
    got = P.ramp(P.FRAME, torch.linspace(0, 1, 7).view(7, 1, 1))[:, :, 0, 0]
    stops = torch.tensor(P.FRAME)
    assert torch.allclose(got[::2], stops, atol=1e-6)
    assert torch.allclose(got[1::2], (stops[1:] + stops[:-1]) / 2, atol=1e-6)


def test_a_picture_and_its_classes_come_from_one_run():
    s = P.draw(someone(Eyeglasses=[0, 1]), 64, masks=True)
    assert s.image.shape == (2, 3, 64, 64) and s.classes.shape == (2, 64, 64) and s.image.isfinite().all()
    assert torch.equal(s.image, P.draw(someone(Eyeglasses=[0, 1]), 64).image)
    glasses = (s.classes == P.CLASSES.index("eye_g")).flatten(1).sum(1)
    assert glasses[0] == 0 and glasses[1] > 60


def test_values_may_be_any_numbers_and_must_be_complete():
    ints = {n: v.long() for n, v in someone().items()}
    assert torch.equal(P.draw(ints, 32).image, P.draw({n: v.double() for n, v in ints.items()}, 32).image)
    with pytest.raises(ValueError, match="no value came for head_width, jaw; each of the 62") as e:
        P.draw({n: v for n, v in someone().items() if n not in ("jaw", "head_width")}, 32)
    assert "\n" not in str(e.value)


def test_paint_touches_only_its_window_and_where_alpha_is():
    s = P.Scene(someone(), 64, masks=True)
    w = s.window(-0.5, 0, -0.5, 0)
    d = s.xy(w)[0].abs() - 0.2
    s.paint(w, s.cover(d), s.rgb(1.0, 0.5, 0.25), "hat")
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[w] = True
    assert not s.image[:, :, ~inside].any() and s.image.amax() == 1
    assert (s.classes == P.CLASSES.index("hat")).any() and not (s.classes[:, ~inside]).any()
