"Claims: their intervals, their verdicts, and the file that keeps them."

import json, math
import pytest
import torch
from latref_nb.claims import Claim, Claims, claim_of, interval
from latref_nb.core import make_generator

MEAN = lambda a: a.mean()


def test_an_interval_is_that_of_the_formula_for_a_share():
    right = (torch.arange(600) < 540).float()
    low, high = interval(MEAN, right)
    assert abs((high - low) / 2 - 1.96 * math.sqrt(0.9 * 0.1 / 600)) < 0.003
    assert low < 0.9 < high


def test_it_is_the_same_for_a_seed_and_another_for_another():
    x = torch.randn(80, generator=make_generator(0))
    assert interval(MEAN, x) == interval(MEAN, x) != interval(MEAN, x, seed=1)


def test_it_covers_the_truth_about_as_often_as_it_says():
    inside = 0
    for i in range(200):
        low, high = interval(MEAN, torch.randn(60, generator=make_generator(i)), draws=200)
        inside += low <= 0 <= high
    assert 176 <= inside <= 198


def test_columns_of_the_same_faces_are_drawn_together():
    x = torch.randn(100, generator=make_generator(0))
    assert interval(lambda a, b: (a - b).mean(), x, x + 1) == pytest.approx((-1, -1), abs=1e-5)
    with pytest.raises(ValueError, match="the same faces in all"):
        interval(lambda a, b: 0, x, x[:5])
    with pytest.raises(ValueError, match="at least 1"):
        interval(MEAN, x[:0])


def test_draws_without_a_figure_are_left_out():
    x = torch.tensor([1.0, float("nan")])
    low, high = interval(MEAN, x)
    assert low == high == 1
    assert all(map(math.isnan, interval(MEAN, x[1:])))


@pytest.mark.parametrize("value, up, holds", [(0.5, True, True), (0.49, True, False), (0.5, False, True), (0.51, False, False)])
def test_a_claim_holds_or_does_not(value, up, holds):
    assert Claim("x", value, 0.5, up=up).holds is holds
    assert not Claim("x", math.nan, 0.5, up=up).holds


def test_the_file_has_the_agreed_fields(tmp_path):
    made = claim_of("as good", MEAN, torch.ones(4), bar=1.0, floor=0.5)
    path = Claims([made, Claim("unknown", math.nan, 1.0)], [{"row": "a", "x": math.inf}]).save(tmp_path / "c.json")
    read = json.loads(path.read_text())
    assert set(read["claims"][0]) == {"claim", "value", "bar", "up", "holds", "floor", "ceiling", "low", "high"}
    assert read["claims"][0]["holds"] and read["claims"][0]["low"] == read["claims"][0]["high"] == 1
    assert read["claims"][1]["value"] is None and not read["claims"][1]["holds"] and read["rows"] == [{"row": "a", "x": None}]
    assert "≥ 1" in Claims([made], []).table()
