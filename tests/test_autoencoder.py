"The diffusion autoencoder: presets, its verbs, saving, and clear words for wrong input."

import copy, json
import pytest
import torch
from latref_nb.autoencoder import PRESETS, DiffusionAutoencoder, SemanticEncoder, from_preset
from latref_nb.sampling import invert, render
from latref_nb.unet import attention_layers

TINY = dict(
    image_size=16,
    patch_size=2,
    model_channels=16,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    enc_channel_mult=(1, 1, 2),
    num_heads=2,
    z_dim=8,
    time_embed_dim=16,
    prediction_type="v_prediction",
)


def filled(module, seed=0):
    g = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=g) * (0.1 if p.ndim == 1 else p[0].numel() ** -0.5)
    return module.eval()


@pytest.fixture(scope="module")
def model():
    return filled(DiffusionAutoencoder(**TINY)).requires_grad_(False)


@pytest.fixture(scope="module")
def x():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def empty(name, **changes):
    with torch.device("meta"):
        return from_preset(name, **changes)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_has_a_four_by_four_feature_map(name):
    m, size = empty(name), PRESETS[name]["image_size"]
    feats = m.encode_features(torch.empty(2, 3, size, size, device="meta"))
    assert feats.shape[2:] == (4, 4) and m.head(feats).shape == (2, m.config.z_dim)


def test_the_small_preset_is_small():
    m = empty("synthfaces64")
    assert m.num_parameters() <= 6.5e6 and m.config.z_dim == 128
    assert (m.config.prediction_type, m.config.schedule, m.config.dropout) == ("v_prediction", "linear", 0.0)


@pytest.mark.parametrize("name, millions", [("ffhq128_autoenc", 128.5), ("ffhq256_autoenc", 168.5)])
def test_the_published_presets_have_the_published_size(name, millions):
    assert abs(empty(name).num_parameters() / 1e6 - millions) < 0.1


def test_presets_can_be_changed():
    assert empty("synthfaces64", z_dim=32).config.z_dim == 32


def test_encode_is_head_after_features(model, x):
    assert torch.equal(model.encode(x), model.head(model.encode_features(x)))
    assert torch.equal(model.encode(x), model.encoder(x))


def test_forward_is_denoise(model, x):
    z = model.encode(x)
    assert torch.equal(model(x, 3, z), model.denoise(x, torch.tensor([3, 3, 3]), z))
    assert torch.equal(model(x, torch.tensor(3), z), model(x, torch.tensor([3]), z))


def test_one_alone_equals_the_same_in_a_batch(model, x):
    z = model.encode(x)
    torch.testing.assert_close(model.encode(x[1:2]), z[1:2], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(model(x[1:2], 500, z[1:2]), model(x, 500, z)[1:2], atol=1e-5, rtol=1e-4)


def test_saved_and_loaded_to_the_bit(model, x, tmp_path):
    model.save_pretrained(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    again = DiffusionAutoencoder.from_pretrained(tmp_path)
    ours, theirs = model.state_dict(), again.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)
    z = model.encode(x)
    assert torch.equal(again.encode(x), z) and torch.equal(again(x, 9, z), model(x, 9, z))
    config = json.loads((tmp_path / "config.json").read_text())
    assert all(config[k] == (list(v) if isinstance(v, tuple) else v) for k, v in TINY.items())


def test_copies_are_independent(model, x):
    other = copy.deepcopy(model)
    other.encoder.to_z.bias.data += 1
    assert not torch.equal(other.encode(x), model.encode(x))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "zero_snr"])
def test_schedule_is_the_configs(schedule):
    m = DiffusionAutoencoder(**{**TINY, "schedule": schedule, "num_train_timesteps": 50})
    assert m.schedule.T == 50 and m.schedule.kind == schedule


def test_gradients_reach_every_weight(x):
    m = filled(DiffusionAutoencoder(**TINY))
    m(x, 500, m.encode(x)).square().mean().backward()
    assert not [n for n, p in m.named_parameters() if p.grad is None or not p.grad.any()]


def test_gradient_checkpointing(x):
    grads = []
    for on in (False, True):
        m = filled(DiffusionAutoencoder(**TINY))
        if on:
            m.enable_gradient_checkpointing()
            assert m.unet.gradient_checkpointing and m.encoder.gradient_checkpointing
        m(x, 500, m.encode(x)).square().mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in m.parameters()]))
    torch.testing.assert_close(*grads, atol=1e-7, rtol=1e-4)


def test_attention_layers_are_named_by_place(model):
    assert {"unet.middle.attn", "encoder.middle.attn"} <= set(attention_layers(model))


def test_encoder_stages():
    e = filled(
        SemanticEncoder(
            32, model_channels=16, channel_mult=(1, 1, 2, 4), attention_resolutions=(8,), num_res_blocks=2, z_dim=5
        )
    )
    feats = e.features(torch.zeros(1, 3, 32, 32))
    assert feats.shape == (1, 32, 4, 4) and e.middle_features(feats).shape == (1, 64, 4, 4)
    assert e.pool(e.middle_features(feats)).shape == (1, 5)


def test_an_encoder_of_one_level():
    e = SemanticEncoder(4, model_channels=16, channel_mult=(1,), z_dim=5)
    assert e.features(torch.zeros(1, 3, 4, 4)).shape == (1, 16, 4, 4) and e(torch.zeros(1, 3, 4, 4)).shape == (1, 5)


def test_it_samples(model, x):
    z = model.encode(x)
    x_T = invert(model, x, z, 3).x_T
    assert render(model, x_T, z, 3).images.shape == x.shape


def test_half_precision_weights(model, x):
    low = copy.deepcopy(model).to(torch.bfloat16)
    z = low.encode(x.bfloat16())
    assert z.dtype == torch.bfloat16 and (z.float() - model.encode(x)).norm() / model.encode(x).norm() < 0.05
    with torch.autocast("cpu", torch.bfloat16):
        assert model.encode(x).isfinite().all()


WRONG = {
    "no batch": (lambda m, x: m.encode(x[0]), r"shape \(3, 16, 16\).*Add a batch dimension: x\[None\]"),
    "size": (
        lambda m, x: m.encode(x[..., :15]),
        r"shape \(3, 3, 16, 15\); allowed: a floating-point tensor \(B, 3, 16, 16\)",
    ),
    "channels": (lambda m, x: m.encode(x[:, :1]), r"shape \(3, 1, 16, 16\)"),
    "bytes": (
        lambda m, x: m.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)),
        r"torch.uint8.*x.float\(\) / 127.5 - 1",
    ),
    "double": (lambda m, x: m.encode(x.double()), r"dtype torch.float64, the model torch.float32"),
    "not a tensor": (lambda m, x: m.encode([1, 2]), "x is a list; .*load_images"),
    "xt": (lambda m, x: m(x[0], 1, torch.zeros(1, 8)), "xt has shape"),
    "codes": (lambda m, x: m(x, 1, torch.zeros(2, 8)), r"z is \(2, 8\); allowed: a tensor \(3, 8\)"),
    "code width": (lambda m, x: m(x, 1, torch.zeros(3, 9)), r"z is \(3, 9\)"),
    "no code": (lambda m, x: m(x, 1, None), r"z is NoneType"),
    "steps": (lambda m, x: m(x, [1, 2], torch.zeros(3, 8)), r"t has shape \(2,\); allowed: one number or \(3,\)"),
    "preset": (lambda m, x: from_preset("synthfaces46"), "Did you mean 'synthfaces64'"),
    "prediction": (lambda m, x: DiffusionAutoencoder(prediction_type="epsilom"), "Did you mean 'epsilon'"),
    "schedule": (lambda m, x: DiffusionAutoencoder(schedule="cosin"), "Did you mean 'cosine'"),
    "odd size": (
        lambda m, x: DiffusionAutoencoder(**{**TINY, "image_size": 17}),
        "image_size=17 .*choose a multiple of 4",
    ),
    "encoder levels": (
        lambda m, x: DiffusionAutoencoder(**{**TINY, "enc_channel_mult": (1,) * 6}),
        "choose a multiple of 32",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_named_in_one_line(case, model, x):
    call, said = WRONG[case]
    with pytest.raises(ValueError, match=said) as e:
        call(model, x)
    assert "\n" not in str(e.value)
