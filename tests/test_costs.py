"What is counted without running: it follows from shapes, and from nothing else."

import pytest
import torch
from latref_nb.autoencoder import from_preset
from latref_nb.costs import (
    BYTES_PER_WEIGHT,
    autoencoder_cost,
    card_rows,
    counted,
    faces_that_fit,
    hours,
    network_cost,
    removal_operations,
    style_cost,
)
from latref_nb.perceptual import FaceTrunk

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def auto():
    return autoencoder_cost("synthfaces64")


def test_costs_follow_from_the_shape(auto):
    assert 2.5 * auto.forward < auto.step < 3.5 * auto.forward and auto.kept > 64 * 64 * 3 * 4
    assert auto.weights == sum(p.numel() for p in from_preset("synthfaces64").parameters())
    assert autoencoder_cost("synthfaces64", batch=1) == autoencoder_cost("synthfaces64", batch=4) == auto
    assert autoencoder_cost("synthfaces64", model_channels=96).step > 1.5 * auto.step


def test_a_linear_layer_is_counted_to_the_operation():
    with torch.device("meta"):
        net, x = torch.nn.Linear(5, 7, bias=False), torch.empty(3, 5)
    cost = counted(net, lambda: net(x).sum(), 3)
    assert (cost.forward, cost.step, cost.weights) == (2 * 5 * 7, 4 * 5 * 7, 35)  # no gradient of x is asked for


def test_hours_double_with_the_samples_and_halve_with_the_rate(auto):
    a, b = (card_rows(auto, n) for n in (10**12, 2 * 10**12))
    assert [r["card"] for r in a] == [r["card"] for r in b]
    assert all(abs(y["hours"] - 2 * x["hours"]) <= 0.2 for x, y in zip(a, b))
    assert hours(1e18, 10) == 2 * hours(1e18, 20)
    for wrong in (lambda: hours(1e18, 0), lambda: hours(float("nan"), 1), lambda: card_rows(auto, 0)):
        with pytest.raises(ValueError, match="came; allowed"):
            wrong()


def test_what_fits_on_a_card(auto):
    n = faces_that_fit(auto, 12)
    assert auto.memory(n) <= 0.9 * 12e9 < auto.memory(n + 1) and auto.memory(0) == auto.weights * BYTES_PER_WEIGHT
    assert faces_that_fit(auto, 1e-3) == 0


def test_style_networks_cost_less_than_their_autoencoder_alone(auto):
    styles = style_cost("synthfaces64")
    assert 0 < styles.forward < styles.step < 2 * auto.step and styles.weights > 10**6
    assert style_cost("synthfaces64", decoded=1.0).step - styles.step == pytest.approx(auto.forward)
    assert removal_operations(auto, 6) == 12 * 9 * auto.forward
    assert network_cost(FaceTrunk, 64).step < auto.step
