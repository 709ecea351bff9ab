"z+: a code for every block."

import pytest
import torch

from latref_nb.autoencoder import DiffusionAutoencoder
from latref_nb.core import make_generator
from latref_nb.extended import code_layers, extended, fit_extended, layer_table, swap_layers


@pytest.fixture(scope="module")
def ae():
    torch.manual_seed(0)
    small = dict(image_size=16, patch_size=2, model_channels=16, channel_mult=(1, 2), num_res_blocks=1, z_dim=8)
    model = DiffusionAutoencoder(**small, attention_resolutions=(), enc_channel_mult=(1, 1)).requires_grad_(False)
    for p in model.parameters():
        p.normal_(0, 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def case(ae):
    g = make_generator(1)
    return torch.rand(2, 3, 16, 16, generator=g) * 2 - 1, torch.randn(2, 8, generator=g)


@torch.no_grad()
def test_one_code_everywhere_is_z_to_the_bit(ae, case):
    x, z = case
    layers = code_layers(ae)
    assert len(layers) == ae.unet.n_blocks and {o.size for o in layers} == {4, 8}
    assert torch.equal(ae.denoise(x, 500, extended(ae, z)), ae.denoise(x, 500, z))
    for i in range(len(layers)):
        other = swap_layers(extended(ae, z), extended(ae, z + 1), [i])
        assert not torch.equal(ae.denoise(x, 500, other), ae.denoise(x, 500, z)), f"block {i} reads layer {i}"
    with pytest.raises(ValueError, match="one for each of its blocks"):
        ae.denoise(x, 500, extended(ae, z)[:, 1:])


def test_a_fit(ae, case):
    x, z = case
    how = dict(steps=3, num_inference_steps=2)
    both = fit_extended(ae, x, z, generator=make_generator([1, 2]), **how)
    again = fit_extended(ae, x, z, generator=make_generator([1, 2]), **how)
    alone = fit_extended(ae, x[1:], z[1:], generator=make_generator([2]), **how)
    assert torch.equal(both.codes, again.codes) and torch.allclose(alone.codes[0], both.codes[1], atol=1e-3)
    assert both.errors.shape == (3, 2) and (both.lengths > 0).all()
    held = fit_extended(ae, x, z, penalty=100.0, generator=make_generator([1, 2]), **{**how, "steps": 8})
    free = fit_extended(ae, x, z, generator=make_generator([1, 2]), **{**how, "steps": 8})
    assert (held.lengths < free.lengths).all()
    with pytest.raises(ValueError, match="steps=0"):
        fit_extended(ae, x, z, steps=0)


def test_the_table_of_layers(ae, case):
    x, z = case
    read = lambda o: {"mean": o.mean((2, 3)), "left": o[:, :, :, :8].mean((2, 3))}
    a, b = extended(ae, z), extended(ae, z.flip(0))
    rows = layer_table(ae, read, a, b, torch.randn(2, 3, 16, 16, generator=make_generator(0)), 2)
    assert [r["factor"] for r in rows] == ["mean", "left"] and all(r["strongest"] in (4, 8) for r in rows)
