"Style modulation: the pieces against slow versions, the whole, and its switches."

import pytest
import torch
import torch.nn.functional as F
from latref_nb.tags import Tag, TagSet
from latref_nb.modulation import (
    MultiScaleMask,
    StyleModulation,
    TokenAttention,
    adain,
    style_attention_layers,
    use_style_processor,
)
from latref_nb.styles import StyleCode
from latref_nb.unet import attend, attend_and_keep

TAGS = TagSet([Tag("Hat", ("without", "with")), Tag("Hair", ("black", "blond", "brown"))])
SIZES = dict(feat_dim=8, width=16, blocks=2, style_dim=6, token_dim=5, vector_dim=7, heads=2)


def make(**change):
    torch.manual_seed(0)
    m = StyleModulation(TAGS, **SIZES, **change).eval()
    torch.nn.init.normal_(m.post[1].weight, std=0.2)
    for t in m.translators:
        torch.nn.init.normal_(t.transformer.proj_out.weight, std=0.2)
    return m


@pytest.fixture(scope="module")
def inputs():
    g = torch.Generator().manual_seed(0)
    return torch.randn(3, 8, 4, 4, generator=g), StyleCode(
        torch.randn(3, 6, generator=g), torch.randn(3, 4, 5, generator=g)
    )


def test_adain_sets_statistics():
    x = adain(torch.randn(2, 3, 9, 9), torch.tensor([[1.0, 2, 3]] * 2), torch.tensor([[0.0, 1, 2]] * 2))
    assert torch.allclose(x.std((2, 3)), torch.tensor([1.0, 2, 3]).expand(2, 3), atol=1e-3) and torch.allclose(
        x.mean((2, 3)), torch.tensor([0.0, 1, 2]).expand(2, 3), atol=1e-4
    )


def test_constant_channels_stay_finite():
    assert torch.equal(adain(torch.ones(1, 2, 4, 4), torch.ones(1, 2), torch.zeros(1, 2)), torch.zeros(1, 2, 4, 4))


def test_attention_is_torchs():
    a = TokenAttention(16, 5, 2)
    x, w = torch.randn(2, 9, 16), torch.randn(2, 4, 5)
    assert torch.allclose(
        a(x, w),
        a.to_out(
            F.scaled_dot_product_attention(a.split(a.to_q(x)), a.split(a.to_k(w)), a.split(a.to_v(w)))
            .transpose(1, 2)
            .flatten(2)
        ),
        atol=1e-5,
    )


def test_fresh_module_is_the_identity(inputs):
    feats, code = inputs
    assert torch.equal(StyleModulation(TAGS, **SIZES)(feats, "Hair", "blond", code), feats)


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [{}, dict(flat=True), dict(residual=False), dict(use_vectors=False), dict(use_cross=False), dict(use_mask=False)],
)
def test_values_face_by_face(inputs, change):
    feats, code = inputs
    m = make(**change)
    out = m(feats, "Hair", torch.tensor([2, 0, 1]), code)
    for i, v in enumerate(("brown", "black", "blond")):
        assert torch.allclose(out[i : i + 1], m(feats[i : i + 1], 1, v, code[i]), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    "change, part, matters",
    [
        ({}, "tokens", True),
        (dict(use_cross=False), "tokens", False),
        ({}, "vector", True),
        (dict(use_cross=False), "vector", True),
    ],
)
def test_what_a_style_reaches(inputs, change, part, matters):
    feats, code = inputs
    m = make(**change)
    other = StyleCode(code.vector + (part == "vector"), code.tokens + torch.randn(3, 4, 5) * (part == "tokens"))
    assert torch.allclose(m(feats, 0, 1, code), m(feats, 0, 1, other), atol=1e-5) != matters


@torch.no_grad()
def test_mask_keeps_the_input(inputs):
    feats, code = inputs
    m = make()
    mask = m.mask(feats, "Hat", "with", code)
    assert mask.shape == (3, 16, 4, 4) and 0 < mask.min() and mask.max() < 1
    for b in m.translators[0].masks[1].branches:
        b[2].bias.fill_(-1e4)  # closed everywhere
    e = m.pre(feats)
    assert torch.allclose(m(feats, "Hat", "with", code), feats + m.post(e), atol=1e-5)


def test_masks_begin_with_equal_branches():
    k = MultiScaleMask(4)
    h = torch.randn(2, 4, 5, 5)
    assert torch.allclose(k(h), sum(b(h) for b in k.branches) / 3)


def test_no_unused_parameters(inputs):
    for change in ({}, dict(use_vectors=False), dict(use_cross=False), dict(use_mask=False), dict(flat=True)):
        m = make(**change)
        (sum(m(inputs[0], t, torch.arange(3) % len(TAGS[t]), inputs[1]).square().sum() for t in TAGS.names)).backward()
        assert not [n for n, p in m.named_parameters() if p.grad is None], change


def test_processors_by_name(inputs):
    feats, code = inputs
    m = make()
    assert list(style_attention_layers(m)) == [f"modulation.{t}.{k}" for t in TAGS.names for k in ("self", "cross")]
    assert list(style_attention_layers(make(flat=True), "*.cross")) == ["modulation.all.cross"]
    with pytest.raises(RuntimeError), use_style_processor(m, attend_and_keep, "*.cross") as found:
        plain = m(feats, "Hat", "with", code)
        raise RuntimeError
    assert all(f.processor is attend for f in found.values()) and torch.allclose(
        plain, m(feats, "Hat", "with", code), atol=1e-5
    )
    assert found["modulation.Hat.cross"].last_weights.shape == (3, 2, 16, 4)
    with pytest.raises(ValueError, match="modulation.Hat.self"), use_style_processor(m, attend, "nothing"):
        pass


@pytest.mark.parametrize(
    "feats, code, tag, value, says",
    [
        ((3, 4, 4, 4), (3, 6, 5), "Hat", 1, "Needed"),
        ((3, 8, 4, 4), (2, 6, 5), "Hat", 1, "2 styles"),
        ((3, 8, 4, 4), (3, 7, 5), "Hat", 1, "own extractor"),
        ((3, 8, 4, 4), (3, 6, 9), "Hat", 1, "own extractor"),
        ((3, 8, 4, 4), (3, 6, 5), "Hut", 1, "Did you mean 'Hat'"),
        ((3, 8, 4, 4), (3, 6, 5), "Hair", "brawn", "Did you mean 'brown'"),
    ],
)
def test_what_does_not_fit(feats, code, tag, value, says):
    with pytest.raises(ValueError, match=says):
        make()(torch.zeros(feats), tag, value, StyleCode(torch.zeros(code[:2]), torch.zeros(code[0], 4, code[2])))


def test_a_bare_vector_is_no_style():
    with pytest.raises(ValueError, match="StyleCode"):
        make()(torch.zeros(3, 8, 4, 4), 0, 0, torch.zeros(3, 6))


def test_saved_and_loaded(tmp_path, inputs):
    m = make(residual=False, scale_offset=2.0)
    m.save_pretrained(tmp_path)
    back = StyleModulation.from_pretrained(tmp_path)
    assert (
        back.tags == TAGS
        and back.config.scale_offset == 2
        and torch.allclose(back(inputs[0], 1, 2, inputs[1]), m(inputs[0], 1, 2, inputs[1]), atol=1e-5)
    )
