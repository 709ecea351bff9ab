"The blocks of the U-Net keep their promises: formulas, shapes, batches, and clear words for impossible sizes."

import copy, math
import pytest
import torch
import torch.nn.functional as F
from latref_nb.unet import (
    AttentionBlock,
    Layer,
    Middle,
    ResBlock,
    TimeEmbedding,
    UNet,
    attend,
    attend_and_keep,
    attention_layers,
    attention_weights,
    check_grid,
    down_path,
    downsample,
    group_norm,
    level_widths,
    modulate,
    timestep_embedding,
    up_path,
    upsample,
    use_processor,
)

SMALL = dict(
    image_size=16,
    patch_size=2,
    model_channels=16,
    channel_mult=(1, 1.5),
    num_res_blocks=1,
    attention_resolutions=(8,),
    num_heads=2,
    z_dim=8,
    time_embed_dim=24,
)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def filled(module, seed=0):
    "Every weight a small random number: fresh networks end in zeros."
    g = gen(seed)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=g) * (0.1 if p.ndim == 1 else p[0].numel() ** -0.5)
    return module.eval()


@pytest.fixture(scope="module")
def unet():
    return filled(UNet(**SMALL))


@pytest.fixture
def batch():
    g = gen(1)
    return torch.randn(3, 3, 16, 16, generator=g), torch.tensor([0, 500, 999]), torch.randn(3, 8, generator=g)


def test_timestep_embedding_is_cosines_then_sines():
    t = torch.tensor([0.0, 3.0, 999.0])
    e = timestep_embedding(t, 8)
    for i in range(4):
        rate = 10_000 ** (-i / 4)
        torch.testing.assert_close(e[:, i], torch.cos(t * rate), atol=1e-4, rtol=0)
        torch.testing.assert_close(e[:, 4 + i], torch.sin(t * rate), atol=1e-4, rtol=0)


def test_timestep_embedding_tells_all_steps_apart():
    e = timestep_embedding(torch.arange(1000), 64)
    assert torch.cdist(e, e).fill_diagonal_(9).min() > 0.01
    assert e.dtype == torch.float32 and timestep_embedding(torch.arange(3), 7).shape == (3, 7)


def test_time_embedding_follows_the_weights_dtype():
    assert TimeEmbedding(16, 8).to(torch.bfloat16)(torch.tensor([5])).dtype == torch.bfloat16


@pytest.mark.parametrize("channels, groups", [(64, 32), (96, 32), (16, 16), (48, 16), (3, 1)])
def test_group_norm_always_divides(channels, groups):
    assert group_norm(channels).num_groups == groups


def test_modulate_is_time_then_code():
    h, a, b, c = torch.randn(4, 2, 6, 3, 3, generator=gen())
    ts, zs = torch.cat([a[:, :, 0, 0], b[:, :, 0, 0]], 1), c[:, :, 0, 0]
    want = (h * (1 + a[:, :, :1, :1]) + b[:, :, :1, :1]) * (1 + c[:, :, :1, :1])
    torch.testing.assert_close(modulate(h, ts, zs), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_resampling(dtype):
    x = torch.randn(2, 3, 8, 8, generator=gen()).to(dtype)
    torch.testing.assert_close(
        downsample(x), F.avg_pool2d(x, 2), atol=2e-2 if dtype == torch.bfloat16 else 1e-6, rtol=0
    )
    assert torch.equal(upsample(x)[:, :, 1::2, ::2], x)


def test_a_fresh_conditional_block_is_its_shortcut():
    b, x = ResBlock(16, 24, time_dim=8, z_dim=4), torch.randn(2, 16, 4, 4, generator=gen())
    assert torch.equal(b(x, torch.randn(2, 8), torch.randn(2, 4)), b.shortcut(x))


def test_an_unconditional_block_has_no_second_half():
    assert {n.split(".")[0] for n, _ in ResBlock(16).named_parameters()} == {"norm_in", "conv_in"}


@pytest.mark.parametrize("resample, side", [(None, 4), ("down", 2), ("up", 8)])
def test_resampling_blocks(resample, side):
    b = filled(ResBlock(16, time_dim=8, z_dim=4, resample=resample))
    assert b(torch.ones(1, 16, 4, 4), torch.ones(1, 8), torch.ones(1, 4)).shape == (1, 16, side, side)


@pytest.mark.parametrize("side", [4, 8, 12])
@pytest.mark.parametrize("heads", [1, 4])
def test_attention_processors_agree(side, heads):
    a, x = filled(AttentionBlock(16, heads)), torch.randn(2, 16, side, side, generator=gen())
    usual = a(x)
    with use_processor(a, attend_and_keep):
        torch.testing.assert_close(a(x), usual, atol=1e-5, rtol=1e-4)
    with use_processor(a, lambda block, q, k, v: F.scaled_dot_product_attention(q, k, v)):
        torch.testing.assert_close(a(x), usual, atol=1e-5, rtol=1e-4)
    assert a.last_weights.shape == (2, heads, side * side, side * side)


def test_attention_weights_sum_to_one_in_low_precision():
    q = torch.randn(1, 2, 9, 4, generator=gen()).bfloat16()
    w = attention_weights(q, q)
    assert w.dtype == torch.float32
    torch.testing.assert_close(w.sum(-1), torch.ones(1, 2, 9), atol=1e-4, rtol=0)


def test_attention_over_other_tokens():
    q, kv = torch.randn(2, 1, 16, 4, generator=gen()), torch.randn(2, 1, 5, 4, generator=gen(1))
    torch.testing.assert_close(attend(None, q, kv, kv), F.scaled_dot_product_attention(q, kv, kv), atol=1e-5, rtol=1e-4)


def test_processors_come_back_after_an_error(unet):
    names = list(attention_layers(unet))
    assert "middle.attn" in names and len(attention_layers(unet, "up.*")) == 2
    with pytest.raises(KeyError):
        with use_processor(unet, attend_and_keep, "up.*") as blocks:
            assert list(blocks) == [n for n in names if n.startswith("up.")]
            assert unet.middle.attn.processor is attend
            raise KeyError
    assert all(b.processor is attend for b in attention_layers(unet).values())


def test_no_such_attention_layer(unet):
    with pytest.raises(ValueError, match="No attention layer fits 'side.*'; there are: .*middle.attn"):
        with use_processor(unet, attend, "side.*"):
            pass


def test_processors_are_no_weights(unet):
    before = list(unet.state_dict())
    with use_processor(unet, attend_and_keep):
        assert list(unet.state_dict()) == before


@pytest.mark.parametrize(
    "size, patch, levels, said",
    [
        (63, 1, 3, "multiple of 4"),
        (64, 4, 6, "multiple of 128"),
        (0, 1, 1, "multiple of 1"),
        (10, 4, 1, "multiple of 4"),
    ],
)
def test_impossible_sizes(size, patch, levels, said):
    with pytest.raises(ValueError, match=said):
        check_grid(size, patch, levels)


def test_heads_must_divide():
    with pytest.raises(ValueError, match="num_heads=5 does not divide 16 channels"):
        AttentionBlock(16, 5)


def test_paths_match_each_other():
    down, channels = down_path(16, [16, 24, 32], 2, (8,))
    assert channels == [16, 16, 16, 16, 24, 24, 24, 32, 32] and len(down) == 8
    up = up_path(4, [16, 24, 32], channels, 2, (8,))
    assert len(up) == len(channels)
    assert [layer.attn is not None for layer in up] == [False] * 3 + [True] * 3 + [False] * 3
    assert [layer.up is not None for layer in up] == [False, False, True, False, False, True, False, False, False]


def test_broken_multipliers():
    assert level_widths(64, (1, 1.5, 2)) == [64, 96, 128]


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_output_has_the_images_shape(patch, batch):
    xt, t, z = batch
    out = UNet(**{**SMALL, "patch_size": patch})(xt, t, z)
    assert out.shape == xt.shape and not out.any()  # fresh: the last convolution is zero


def test_one_alone_equals_the_same_in_a_batch(unet, batch):
    with torch.no_grad():
        whole = unet(*batch)
        for i in range(3):
            torch.testing.assert_close(unet(*(v[i : i + 1] for v in batch)), whole[i : i + 1], atol=1e-5, rtol=1e-4)


def test_time_and_code_are_heard(unet, batch):
    xt, t, z = batch
    with torch.no_grad():
        usual = unet(xt, t, z)
        assert (unet(xt, t.flip(0), z) - usual)[[0, 2]].abs().mean() > 1e-3
        assert (unet(xt, t, z + 1) - usual).abs().mean() > 1e-3


def test_every_weight_is_used(unet, batch):
    unet = copy.deepcopy(unet)
    unet(*batch).square().mean().backward()
    idle = [n for n, p in unet.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def test_gradient_checkpointing_changes_nothing(unet, batch):
    grads = []
    for flag in (False, True):
        u = copy.deepcopy(unet)
        u.gradient_checkpointing = flag
        u(*batch).square().mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in u.parameters()]))
    torch.testing.assert_close(*grads, atol=1e-7, rtol=1e-4)


def test_channels_last_gives_the_same(unet, batch):
    xt, t, z = batch
    with torch.no_grad():
        other = copy.deepcopy(unet).to(memory_format=torch.channels_last)(
            xt.contiguous(memory_format=torch.channels_last), t, z
        )
        torch.testing.assert_close(other, unet(*batch), atol=1e-5, rtol=1e-4)


def test_bfloat16_autocast_is_near(unet, batch):
    with torch.no_grad():
        usual = unet(*batch)
        with torch.autocast("cpu", torch.bfloat16):
            low = unet(*batch).float()
    assert (low - usual).norm() / usual.norm() < 0.05


def test_double_precision(unet, batch):
    xt, t, z = batch
    with torch.no_grad():
        out = copy.deepcopy(unet).double()(xt.double(), t, z.double())
    assert out.dtype == torch.float64
    torch.testing.assert_close(out.float(), unet(*batch), atol=1e-5, rtol=1e-3)


def test_dropout_only_in_training(batch):
    u = filled(UNet(**SMALL, dropout=0.5))
    with torch.no_grad():
        assert torch.equal(u(*batch), u(*batch))
        u.train()
        torch.manual_seed(0)
        assert not torch.equal(u(*batch), u(*batch))


def test_layer_and_middle_pass_conditions_on():
    x, temb, z = torch.randn(1, 16, 4, 4, generator=gen()), torch.ones(1, 8), torch.ones(1, 4)
    block = dict(time_dim=8, z_dim=4)
    layer = filled(Layer(ResBlock(16, **block), AttentionBlock(16), ResBlock(16, resample="up", **block)))
    assert layer(x, temb, z).shape == (1, 16, 8, 8)
    assert not torch.equal(layer(x, temb, z), layer(x, 2 * temb, z))
    middle = filled(Middle(16, 2, **block))
    assert not torch.equal(middle(x, temb, z), middle(x, temb, 2 * z))
