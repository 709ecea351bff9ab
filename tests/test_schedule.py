"The noise schedules against diffusers, the conversions against each other, and what wrong input says."

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr as their_rescale

from latref_nb.schedule import (
    KINDS,
    PREDICTIONS,
    WEIGHTINGS,
    add_noise,
    linear_betas,
    loss_weight,
    make_schedule,
    predict_eps,
    predict_v,
    predict_x0,
    rescale_zero_terminal_snr,
    signal_noise,
    snr,
    training_target,
    velocity,
)

THEIRS = {
    "linear": dict(beta_schedule="linear"),
    "cosine": dict(beta_schedule="squaredcos_cap_v2"),
    "zero_snr": dict(beta_schedule="linear", rescale_betas_zero_snr=True),
}


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(3)
    return (
        torch.rand(5, 3, 8, 8, generator=g) * 2 - 1,
        torch.randn(5, 3, 8, 8, generator=g),
        torch.tensor([0, 17, 250, 640, 998]),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler])
def test_equal_to_diffusers(kind, scheduler, batch):
    x0, noise, t = batch
    ours, theirs = make_schedule(kind), scheduler(1000, **THEIRS[kind])
    assert torch.allclose(ours.alphas_cumprod, theirs.alphas_cumprod, atol=2e-6)
    assert torch.allclose(add_noise(x0, noise, t, ours), theirs.add_noise(x0, noise, t), atol=5e-4)
    assert torch.allclose(velocity(x0, noise, t, ours), theirs.get_velocity(x0, noise, t), atol=5e-4)


def test_rescaling_equals_diffusers():
    betas = linear_betas().float()
    theirs = torch.cumprod(1 - their_rescale(betas), 0)
    ours = rescale_zero_terminal_snr(torch.cumprod(1 - betas, 0))
    assert torch.allclose(ours, theirs, atol=2e-6) and ours[-1] == 0


@pytest.mark.parametrize("T", [10, 50, 100, 4000])
def test_any_number_of_steps_ends_in_noise(T):
    for kind in KINDS:
        s = make_schedule(kind, T)
        assert s.T == T and (s.alphas_cumprod.diff() <= 0).all() and 0 <= s.alphas_cumprod[-1] < 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", PREDICTIONS)
def test_conversions_are_inverse_to_each_other(kind, what, batch):
    x0, noise, t = (v.double() if v.is_floating_point() else v for v in batch)
    s = make_schedule(kind)
    xt, out = add_noise(x0, noise, t, s), training_target(x0, noise, t, s, what)
    assert torch.allclose(predict_x0(out, xt, t, s, what), x0, atol=1e-8)
    assert torch.allclose(predict_eps(out, xt, t, s, what), noise, atol=1e-8)
    assert torch.allclose(predict_v(out, xt, t, s, what), velocity(x0, noise, t, s), atol=1e-8)


def test_v_leads_back_even_from_pure_noise(batch):
    x0, noise, _ = batch
    s = make_schedule("zero_snr")
    assert torch.allclose(
        predict_x0(velocity(x0, noise, 999, s), add_noise(x0, noise, 999, s), 999, s, "v_prediction"), x0, atol=1e-6
    )
    with pytest.raises(ValueError, match="v_prediction"):
        predict_x0(noise, noise, 999, s, "epsilon")


def test_the_two_levels_beside_the_table():
    s, like = make_schedule(), torch.zeros(2, 3, 4, 4)
    assert [float(f.squeeze()) for f in signal_noise(-1, s, like)] == [1, 0]
    assert [float(f.squeeze()) for f in signal_noise(s.T, s, like)] == [0, 1]


@pytest.mark.parametrize("what", PREDICTIONS)
def test_weightings_mean_the_same_for_every_prediction(what):
    s, t = make_schedule(), torch.arange(1000)
    r = snr(s, t).double()
    on_x0 = {"epsilon": r, "sample": 1, "v_prediction": 1 + r}[what]
    assert torch.allclose(loss_weight(s, t, "min_snr", what).double() * on_x0, r.clamp(max=5), rtol=1e-5)
    assert torch.allclose(loss_weight(s, t, "p2", what).double() * on_x0, r / (1 + r), rtol=1e-5)
    assert (loss_weight(s, t, "plain", what) == 1).all()


@pytest.mark.parametrize("kind", WEIGHTINGS)
@pytest.mark.parametrize("what", PREDICTIONS)
def test_weights_are_finite_at_zero_snr(kind, what):
    w = loss_weight(make_schedule("zero_snr"), torch.arange(1000), kind, what)
    assert torch.isfinite(w).all() and (w >= 0).all()


def test_the_order_of_errors_in_x0_eps_and_v(batch):
    "An error in x0 shows up times SNR in eps and times 1 + SNR in v: what the weightings rest on."
    x0, noise, _ = (v.double() if v.is_floating_point() else v for v in batch)
    s, t = make_schedule(), 250
    xt, wrong = add_noise(x0, noise, t, s), x0 + 0.1
    e_x0 = ((wrong - x0) ** 2).mean()
    e_eps = ((predict_eps(wrong, xt, t, s, "sample") - noise) ** 2).mean()
    e_v = ((predict_v(wrong, xt, t, s, "sample") - velocity(x0, noise, t, s)) ** 2).mean()
    assert torch.allclose(e_eps / e_x0, snr(s, t).double(), rtol=1e-5) and torch.allclose(
        e_v / e_x0, 1 + snr(s, t).double(), rtol=1e-5
    )


def test_dtype_and_batch_shape_are_kept(batch):
    x0, noise, t = batch
    s = make_schedule()
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert add_noise(x0.to(dtype), noise.to(dtype), t, s).dtype == dtype
    codes = torch.randn(5, 7)
    assert add_noise(codes, torch.randn(5, 7), t, s).shape == (5, 7)
    assert torch.equal(add_noise(x0, noise, t, s)[1], add_noise(x0[1:2], noise[1:2], 17, s)[0])


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda x, s: make_schedule("cosinus"), "choose one of linear, cosine, zero_snr"),
        (lambda x, s: make_schedule("linear", 1), "at least 2"),
        (lambda x, s: add_noise(x, x, 1000, s), "0 to 999"),
        (lambda x, s: add_noise(x, x, -1, s), "0 to 999"),
        (lambda x, s: add_noise(x, x, 3.0, s), "whole numbers"),
        (lambda x, s: add_noise(x, x, torch.rand(2), s), "whole numbers"),
        (lambda x, s: add_noise(x, x[:1], 3, s), "shapes must be the same"),
        (lambda x, s: add_noise(x, x, torch.tensor([1, 2, 3]), s), "one per image"),
        (lambda x, s: predict_x0(x, x[:1], 3, s), "shapes must be the same"),
        (lambda x, s: predict_x0(x, x, 3, s, "eps"), "choose one of epsilon, sample, v_prediction"),
        (lambda x, s: training_target(x, x, 3, s, "eps"), "choose one of epsilon"),
        (lambda x, s: loss_weight(s, 3, "snr"), "choose one of plain, min_snr, p2"),
    ],
)
def test_wrong_input_is_one_clear_line(call, says):
    with pytest.raises(ValueError, match=says) as e:
        call(torch.zeros(2, 3, 4, 4), make_schedule())
    assert "\n" not in str(e.value)


@pytest.fixture(scope="module")
def published():
    "Numbers of P2's code and of its paper's formula (jychoi118/P2-weighting), k = 1."
    from pathlib import Path

    from safetensors.torch import load_file

    return load_file(Path(__file__).parent / "fixtures/p2.safetensors")


@pytest.mark.parametrize("gamma", ["0", "0.5", "1"])
def test_p2_is_the_published_weight_and_loss(published, gamma):
    p, s = published, make_schedule()
    t, name = p["timesteps"], f"k1_g{gamma}"
    weight = loss_weight(s, t, "p2", "epsilon", p2_k=1.0, p2_gamma=float(gamma))
    assert torch.allclose(weight, p[f"weight_{name}"], rtol=1e-5)
    assert torch.allclose(snr(s, t).double(), p["snr"], rtol=1e-5)
    assert torch.allclose(add_noise(p["x0"], p["noise"], t, s), p["x_t"], atol=1e-5)
    error = (p["prediction"] - p["noise"]).square().flatten(1).mean(1)
    assert torch.allclose(weight * error, p[f"mse_{name}"], rtol=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_the_papers_curve_is_the_codes_times_the_bounds_weight(published, gamma):
    p, beta = published, linear_betas()
    bar, t, name = torch.cumprod(1 - beta, 0), published["timesteps"], f"k1_g{gamma:g}"
    curve = (1 - beta) * (1 - bar) / beta * (1 + bar / (1 - bar)) ** -gamma
    assert torch.allclose(curve[t], p[f"paper_unnormalised_{name}"], rtol=1e-9)
    assert torch.allclose((curve / curve.sum())[t], p[f"paper_normalised_{name}"], rtol=1e-9)
