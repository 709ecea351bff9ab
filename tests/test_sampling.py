"Sampling and inversion against diffusers and closed forms, and the promises of the loop."

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DPMSolverMultistepInverseScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
)
from torch import nn

from latref_nb.autoencoder import DiffusionAutoencoder
from latref_nb.core import make_generator
from latref_nb.sampling import (
    INVERSIONS,
    RENDERERS,
    LinearAutoencoder,
    Trajectory,
    anderson_mix,
    ddim_step,
    few_step,
    invert,
    random_xT,
    render,
    round_trip,
    sampling_timesteps,
)
from latref_nb.schedule import PREDICTIONS, make_schedule


def smooth_images(n, size=16, seed=0):
    "Random smooth pictures in [-1, 1]."
    coarse = torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.tanh(nn.functional.interpolate(coarse, size=(size, size), mode="bicubic"))


@pytest.fixture(scope="module", params=PREDICTIONS)
def oracle(request):
    return LinearAutoencoder(smooth_images(80), z_dim=12, prediction_type=request.param)


@pytest.fixture(scope="module")
def v_oracle():
    return LinearAutoencoder(smooth_images(80), z_dim=12)


@pytest.fixture(scope="module")
def net():
    "A small network with random weights in every layer."
    torch.manual_seed(0)
    net = DiffusionAutoencoder(
        image_size=16,
        model_channels=32,
        channel_mult=(1, 2),
        enc_channels=32,
        enc_channel_mult=(1, 2),
        attention_resolutions=(8,),
        num_res_blocks=1,
        z_dim=16,
        dropout=0.5,
        prediction_type="v_prediction",
    )
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.03 * torch.randn_like(p))
    return net.eval()


@pytest.fixture(scope="module")
def faces():
    return smooth_images(4, seed=9)


def by_hand(scheduler, model, x, z, n, **kwargs):
    scheduler.set_timesteps(n)
    for t in scheduler.timesteps:
        x = scheduler.step(model.denoise(x, torch.full((len(x),), int(t)), z), int(t), x, **kwargs).prev_sample
    return x


def relative(a, b):
    return float((a - b).norm() / b.norm())


def common(model, kind="linear"):
    return dict(beta_schedule="linear", prediction_type=model.config.prediction_type)


@pytest.mark.parametrize("n, spacing", [(1, "leading"), (7, "leading"), (20, "leading"), (10, "trailing")])
@pytest.mark.parametrize("clip", [True, False])
def test_render_equals_diffusers_ddim(oracle, n, clip, spacing):
    z = torch.randn(3, 12, generator=make_generator(1))
    x_T = random_xT(oracle, z, make_generator(2))
    theirs = by_hand(
        DDIMScheduler(1000, clip_sample=clip, timestep_spacing=spacing, **common(oracle)),
        oracle,
        x_T,
        z,
        n,
        use_clipped_model_output=True,
    )
    assert relative(render(oracle, x_T, z, n, clip=clip, spacing=spacing).images, theirs) < 1e-3


def test_invert_equals_diffusers_inverse(v_oracle, faces):
    z = v_oracle.encode(faces)
    for n in (5, 20):
        theirs = by_hand(DDIMInverseScheduler(1000, clip_sample=False, **common(v_oracle)), v_oracle, faces, z, n)
        assert relative(invert(v_oracle, faces, z, n, method="ddim_late", clip=False).x_T, theirs) < 1e-4


@pytest.mark.parametrize(
    "method, kind", [("dpmsolver++", DPMSolverMultistepScheduler), ("unipc", UniPCMultistepScheduler)]
)
def test_solvers_equal_diffusers(v_oracle, method, kind):
    z = torch.randn(2, 12, generator=make_generator(1))
    x_T = random_xT(v_oracle, z, make_generator(2))
    theirs = by_hand(
        kind(1000, final_sigmas_type="sigma_min", timestep_spacing="linspace", **common(v_oracle)), v_oracle, x_T, z, 8
    )
    ours = render(v_oracle, x_T, z, 8, method=method)
    assert relative(ours.images, theirs) < 1e-3 and ours.network_calls == 8
    if method == "dpmsolver++":
        assert torch.equal(few_step(v_oracle, x_T, z, 8).images, ours.images)


def test_inverse_solver_equals_diffusers(v_oracle, faces):
    z = v_oracle.encode(faces)
    theirs = by_hand(DPMSolverMultistepInverseScheduler(1000, **common(v_oracle)), v_oracle, faces, z, 10)
    assert relative(invert(v_oracle, faces, z, 10, method="dpmsolver++").x_T, theirs) < 1e-3


def test_step_clips_as_diffusers_does_with_and_without_new_noise():
    s, g = make_schedule(), make_generator(0)
    x, out = torch.randn(2, 3, 4, 4, generator=g), torch.randn(2, 3, 4, 4, generator=g)
    theirs = DDIMScheduler(1000, beta_schedule="linear", clip_sample=True)
    theirs.set_timesteps(10)
    for renew in (True, False):
        ours = ddim_step(x, out, 500, 400, s, clip=True, use_clipped_model_output=renew)
        their = theirs.step(out, 500, x, use_clipped_model_output=renew)
        assert torch.allclose(ours.prev_sample, their.prev_sample, atol=1e-4) and torch.allclose(
            ours.pred_original_sample, their.pred_original_sample, atol=1e-4
        )
    assert ddim_step(x, out, 500, 400, s, clip=0.5).pred_original_sample.abs().max() == 0.5


def test_a_step_there_and_back_with_the_same_noise_is_nothing():
    s, g = make_schedule(), make_generator(0)
    x, eps = torch.randn(2, 3, 4, 4, generator=g).double(), torch.randn(2, 3, 4, 4, generator=g).double()
    up = ddim_step(x, eps, 300, 400, s, clip=False).prev_sample
    assert torch.allclose(ddim_step(up, eps, 400, 300, s, clip=False).prev_sample, x, atol=1e-9)


def test_levels_of_the_published_convention(v_oracle, faces):
    "DiffAE's: the image as if at the first step, x_T is the last noise; rendering starts at the last step and ends clean."
    z = v_oracle.encode(faces)
    up = invert(v_oracle, faces, z, 10, method="ddim", return_trajectory=True)
    assert up.timesteps == [0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]
    last, x900 = up.xs[-1], up.xs[-2]
    eps = ddim_step(
        x900, v_oracle.denoise(x900, torch.tensor([900]), z), 900, 800, v_oracle.schedule, "v_prediction"
    ).pred_epsilon
    assert torch.allclose(last, eps, atol=1e-4)
    assert render(v_oracle, up.x_T, z, 10).timesteps == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0, -1]


def test_all_inversions_come_to_the_exact_flow(v_oracle, faces):
    z = v_oracle.encode(faces)
    for method in INVERSIONS:
        errors = []
        for n in (25, 250):
            up = invert(v_oracle, faces, z, n, method=method, clip=False)
            errors.append(relative(up.x_T, v_oracle.exact_xT(faces, z, min(up.timesteps[-1], 999))))
        assert errors[1] < errors[0] / 2 and errors[1] < 0.2, (method, errors)


def test_fixed_point_inverts_any_step_and_more_calls_help(oracle, faces):
    z = oracle.encode(faces)
    error = {
        k: relative(
            round_trip(oracle, faces, 20, z=z, method="fixed_point", iterations=k, clip=False).rendered.images, faces
        )
        for k in (1, 2, 4)
    }
    plain = relative(round_trip(oracle, faces, 20, z=z, method="ddim", clip=False).rendered.images, faces)
    assert error[1] < plain and error[4] < error[2] < error[1] and error[4] < 0.05, (plain, error)


def test_fixed_point_on_a_network_that_is_not_linear(net, faces):
    z = net.encode(faces).detach()
    error = [
        relative(round_trip(net, faces, 10, z=z, method="fixed_point", iterations=k, clip=False).rendered.images, faces)
        for k in (1, 3, 6)
    ]
    assert error[2] < error[1] < error[0]


def test_anderson_solves_a_linear_equation_in_few_steps():
    g = make_generator(0)
    A = torch.randn(2, 3, 3, generator=g).double() * 0.2 + torch.eye(3)
    b, y, guesses, residuals = torch.randn(2, 3, generator=g).double(), torch.zeros(2, 3).double(), [], []
    for _ in range(6):
        guesses.append(y)
        residuals.append(b - (A @ y[..., None])[..., 0])
        y = anderson_mix(guesses, residuals, depth=3)
    assert (b - (A @ y[..., None])[..., 0]).abs().max() < 1e-4


@pytest.mark.parametrize("method", INVERSIONS)
def test_alone_equals_in_a_batch(net, faces, method):
    z = net.encode(faces).detach()
    every, one = (invert(net, faces[k], z[k], 6, method=method).x_T for k in (slice(None), slice(2, 3)))
    assert relative(every[2:3], one) < 1e-4


@pytest.mark.parametrize("method", RENDERERS)
def test_one_generator_per_image(net, method):
    z = torch.randn(3, 16, generator=make_generator(5))
    every = render(net, random_xT(net, z, make_generator([1, 2, 3])), z, 5, method=method).images
    one = render(net, random_xT(net, z[2:], make_generator([3])), z[2:], 5, method=method).images
    assert relative(every[2:], one) < 1e-4


def test_z_is_computed_once_and_calls_are_counted(net, faces, monkeypatch):
    counts = {"encode": 0, "denoise": 0}
    for name in counts:

        def counted(*args, name=name, inner=getattr(net, name)):
            counts[name] += 1
            return inner(*args)

        monkeypatch.setattr(net, name, counted)
    up, down = round_trip(net, faces, 5, method="fixed_point", iterations=2)
    assert counts == {"encode": 1, "denoise": 15} and (up.network_calls, down.network_calls) == (10, 5)


def test_dropout_is_off_and_modes_come_back(net, faces):
    net.train()
    net.unet.eval() if hasattr(net, "unet") else None
    modes = [m.training for m in net.modules()]
    z = net.encode(faces).detach()
    a, b = (render(net, faces, z, 3).images for _ in range(2))
    with pytest.raises(ValueError):
        render(net, faces, z, 0)
    same = [m.training for m in net.modules()] == modes
    net.eval()
    assert torch.equal(a, b) and same


def test_gradients_only_when_asked_for(net, faces):
    z = torch.randn(4, 16, generator=make_generator(0), requires_grad=True)
    assert not render(net, faces, z, 2).images.requires_grad
    render(net, faces, z, 2, grad=True).images.sum().backward()
    assert z.grad.abs().sum() > 0


def test_trajectory_has_what_a_plot_needs(v_oracle, faces):
    z = v_oracle.encode(faces)
    t = render(v_oracle, faces, z, 6, return_trajectory=True)
    assert t.xs.shape == (7, 4, 3, 16, 16) and t.x0s.shape == (6, 4, 3, 16, 16) and len(t.timesteps) == 7
    assert torch.equal(t.xs[0], t.x_T) and torch.equal(t.xs[-1], t.images)
    bare = render(v_oracle, faces, z, 6)
    assert isinstance(bare, Trajectory) and bare.xs is None and bare.x0s is None and torch.equal(bare.images, t.images)


def test_callback_sees_every_step_and_may_change_course(v_oracle, faces):
    z, seen = v_oracle.encode(faces), []
    render(
        v_oracle,
        faces,
        z,
        4,
        callback_on_step_end=lambda i, t, state: seen.append((i, t, state["t_next"], sorted(state))),
    )
    assert [s[:3] for s in seen] == [(0, 750, 500), (1, 500, 250), (2, 250, 0), (3, 0, -1)] and seen[0][3] == [
        "t_next",
        "x0",
        "xt",
        "z",
    ]
    changed = render(
        v_oracle, faces, z, 4, callback_on_step_end=lambda i, t, state: {"xt": torch.zeros_like(faces), "z": 0 * z}
    )
    assert (changed.images == 0).all()
    new_z = render(v_oracle, faces, z, 4, callback_on_step_end=lambda i, t, state: {"z": -z})
    assert relative(new_z.images, render(v_oracle, faces, z, 4).images) > 0.05


def test_the_loop_takes_the_step(v_oracle, faces):
    def halved(*args, **kwargs):
        out = ddim_step(*args, **kwargs)
        return out._replace(prev_sample=out.prev_sample / 2)

    z = v_oracle.encode(faces)
    assert relative(render(v_oracle, faces, z, 1, step=halved).images, render(v_oracle, faces, z, 1).images / 2) < 1e-6


def test_half_precision_leaves_x_in_float32(net, faces):
    z = net.encode(faces).detach()
    full = render(net, faces, z, 4)
    auto = render(net, faces, z, 4, dtype=torch.bfloat16, channels_last=True)
    half = net.to(torch.bfloat16)
    weights = render(half, faces, z, 4)
    net.float()
    for other in (auto, weights):
        assert other.images.dtype == torch.float32 and relative(other.images, full.images) < 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_the_same_on_a_gpu(net, faces):
    z = net.encode(faces).detach()
    up, down = round_trip(net, faces, 5, z=z, method="fixed_point", iterations=2)
    net.cuda()
    up2, down2 = round_trip(net, faces.cuda(), 5, z=z.cuda(), method="fixed_point", iterations=2)
    net.cpu()
    assert up2.x_T.is_cuda and relative(down2.images.cpu(), down.images) < 1e-2


def test_timesteps():
    for n in (1, 3, 10, 37, 999, 1000):
        for spacing in ("leading", "trailing", "linspace", "quadratic"):
            steps = sampling_timesteps(1000, n, spacing)
            assert len(steps) == n and all(0 <= a < b <= 999 for a, b in zip(steps, steps[1:])), (n, spacing)


def test_zero_terminal_snr_starts_from_pure_noise():
    model = LinearAutoencoder(smooth_images(40), z_dim=8, schedule="zero_snr")
    z = torch.randn(2, 8, generator=make_generator(0))
    out = render(model, random_xT(model, z, make_generator(1)), z, 10, spacing="trailing")
    assert out.timesteps[0] == 999 and torch.isfinite(out.images).all()
    x = smooth_images(2, seed=4)
    for method in ("ddim_late", "fixed_point"):
        assert torch.isfinite(invert(model, x, model.encode(x), 1, method=method, spacing="trailing").x_T).all()


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda m, x, z: render(m, x, z[:1]), "one code per image"),
        (lambda m, x, z: render(m, x, None), "one code per image"),
        (lambda m, x, z: render(m, x[0], z), "float tensor"),
        (lambda m, x, z: render(m, x.to(torch.uint8), z), "float tensor"),
        (lambda m, x, z: render(m, x[..., :8], z), r"works on \(B,3,16,16\)"),
        (lambda m, x, z: render(m, x, z, 1001), "1 to 1000"),
        (lambda m, x, z: render(m, x, z, 0, method="unipc"), "1 to 1000"),
        (lambda m, x, z: render(m, x, z, method="dpmsolver"), "Did you mean 'dpmsolver"),
        (lambda m, x, z: render(m, x, z, spacing="even"), "Choose one of leading"),
        (lambda m, x, z: invert(m, x * 127.5 + 127.5, z), "0..255"),
        (lambda m, x, z: invert(m, x * float("nan"), z), "NaN"),
        (lambda m, x, z: invert(m, x, z, method="fixedpoint"), "Did you mean 'fixed_point'"),
        (lambda m, x, z: invert(m, x, z, method="unipc"), "Choose one of ddim"),
        (lambda m, x, z: invert(m, x, z, method="fixed_point", iterations=0), "at least 1"),
        (lambda m, x, z: random_xT(m, z, make_generator([1])), "one"),
    ],
)
def test_wrong_input_is_one_clear_line(v_oracle, faces, call, says):
    with pytest.raises(ValueError, match=says) as e:
        call(v_oracle, faces, v_oracle.encode(faces))
    assert "\n" not in str(e.value)
