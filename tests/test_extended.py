"z+: a code for every block."

import json

import pytest
import torch

from latref_nb.autoencoder import DiffusionAutoencoder
from latref_nb.core import make_generator
from latref_nb.extended import (
    Extended,
    code_layers,
    drawn,
    edit_extended,
    eval_extended,
    evaluate_extended,
    extended,
    fit_batches,
    fit_extended,
    layer_shares,
    most_layered,
    swap_layers,
)
from latref_nb.faces import SynthFaces
from latref_nb.judges import load_network
from style_case import style_pipeline


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
    with pytest.raises(ValueError, match="from 1 to steps=3, not 4"):
        fit_extended(ae, x, z, moments=(4,), **how)


def test_moments_of_a_fit_in_batches(ae, case):
    x, z = case
    how = dict(steps=4, num_inference_steps=2, moments=(1, 2))
    both, each = (fit_batches(ae, x, z, n, **how) for n in (2, 1))
    assert list(both) == [1, 2, 4]
    for m in both:
        assert both[m].shape == extended(ae, z).shape and torch.allclose(both[m], each[m], atol=1e-3)
    assert not torch.equal(both[1], both[2])


def test_faces_have_noise_of_their_own(ae, case):
    _, z = case
    both = drawn(ae, z, 2)
    assert torch.allclose(drawn(ae, z[1:], 2, [1]), both[1:], atol=1e-5), "face 1 has seed 1, alone or not"
    assert torch.allclose(drawn(ae, extended(ae, z), 2), both, atol=1e-5)
    assert not torch.allclose(drawn(ae, z, 2, [5, 6]), both, atol=1e-3)


def test_shares_of_layers(ae, case):
    x, z = case
    read = lambda o: {"mean": o.mean((2, 3)), "left": o[:, :, :, :8].mean((2, 3))}
    a, b = extended(ae, z), extended(ae, z.flip(0))
    found = layer_shares(ae, read, a, b, 2)
    assert found.sizes == [4, 8] and found.along.shape == (2, 2, 2) and (found.whole > 0).all()
    rows = found.rows()
    assert [r["factor"] for r in rows] == ["mean", "left"] and all(r["strongest"] in (4, 8) for r in rows)
    alone = layer_shares(ae, read, a[:1], b[:1], 2)
    assert torch.allclose(alone.along, found.along[:1], atol=1e-5), "a face's row is its own"


def test_what_counts_as_layered():
    whole = torch.tensor([[1.0, 1.0], [3.0, 1.0]])
    along = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[1.8, 0.6], [0.5, 0.5]]])
    assert most_layered(along, whole) == 1, "2.8 of 4 go with the first size; the second trait is shared"
    assert most_layered(along, whole, 0.8) == 0


@pytest.fixture(scope="module")
def pipe():
    return style_pipeline()


def test_an_edit_takes_every_face_to_another_value(pipe):
    faces = SynthFaces(3, 64, seed=2001, tags=pipe.tags)
    z = pipe.encode(faces.batch(range(3))["image"])
    both = edit_extended(pipe, faces, z, extended(pipe.autoencoder, z), load_network("judge"), 1)
    assert both.hits.shape == both.near.shape == (3, len(pipe.tags)) and both.hits.dtype == torch.bool
    assert (both.near > 0).all()


def test_the_claims(pipe):
    faces = SynthFaces(2, 64, seed=2002, tags=pipe.tags)
    networks = load_network("judge"), load_network("identity")
    found = evaluate_extended(pipe, faces, *networks, calls=1, steps=2)
    assert isinstance(found, Extended) and [(o.codes, o.updates) for o in found.seen] == [
        ("z", 0),
        ("free", 1),
        ("free", 2),
        ("penalty", 1),
        ("penalty", 2),
    ]
    claims = found.claims()
    assert [c.bar for c in claims.claims] == [3, 3, 0.5, -0.02, 4] and len(claims.rows) == 5 + len(found.shares.names)
    assert "one size of layers" in found.table() and "wall" in found.table()


def test_the_command(pipe, tmp_path, capsys):
    pipe.save_pretrained(tmp_path / "model")
    out = tmp_path / "claims.json"
    eval_extended(str(tmp_path / "model"), n=1, seed=2003, steps=1, calls=1, brief=True, device="cpu", json=str(out))
    said = json.loads(out.read_text())
    assert (
        len(said["claims"]) == 5
        and said["rows"][0]["codes"] == "z"
        and "z+ over z in 20 calls" in capsys.readouterr().out
    )
    with pytest.raises(ValueError, match="trained on"):
        eval_extended(str(tmp_path / "model"), n=1, seed=0)
