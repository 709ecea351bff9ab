"Styles: codes, files, the extractor and the mapper."

import pytest
import torch
from latref_nb.autoencoder import DiffusionAutoencoder
from latref_nb.tags import CELEBA_TAGS, Tag, TagSet
from latref_nb.core import make_generator
from latref_nb.styles import (
    LatentMapper,
    ReferenceExtractor,
    StyleCode,
    encoder_config,
    load_styles,
    save_styles,
    swap_styles,
    tag_number,
    value_numbers,
    value_offsets,
)

TAGS = TagSet([Tag("Hat", ("without", "with")), Tag("Hair", ("black", "blond", "brown"))])
SIZES = dict(width=16, heads=2, layers=1, style_dim=6, n_tokens=3, token_dim=5)


def code(n=3, seed=0, d=6):
    g = make_generator(seed)
    return StyleCode(torch.randn(n, d, generator=g), torch.randn(n, 3, 5, generator=g))


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return DiffusionAutoencoder(
        image_size=32,
        patch_size=4,
        model_channels=16,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(),
        enc_patch_size=4,
        enc_channel_mult=(1, 2),
        z_dim=16,
    ).eval()


@pytest.fixture(scope="module")
def extractor(autoencoder):
    return ReferenceExtractor.beside(autoencoder, TAGS, bottleneck=4, **SIZES).eval()


@pytest.fixture(scope="module")
def mapper():
    torch.manual_seed(1)
    return LatentMapper(TAGS, 32, (8,), **SIZES).eval()


def test_an_extractor_beside_an_encoder_that_reads_its_whole_map():
    whole = DiffusionAutoencoder(
        image_size=32,
        patch_size=4,
        model_channels=16,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(),
        enc_patch_size=2,
        enc_channel_mult=(1, 1, 1),
        z_dim=16,
        enc_whole=True,
    )
    out = ReferenceExtractor.beside(whole, TAGS, bottleneck=4, **SIZES)
    assert encoder_config(whole)["whole"] and torch.equal(out.encoder.to_z.weight, whole.encoder.to_z.weight)
    assert out(torch.zeros(2, 3, 32, 32), "Hat", "with").vector.shape == (2, 6)


def test_reading_the_whole_map_adds_nothing_at_first_and_then_a_code(extractor, tmp_path):
    whole, x = (
        ReferenceExtractor.from_config({**extractor.config, "whole": True}).eval(),
        torch.rand(2, 3, 32, 32) * 2 - 1,
    )
    missing = whole.load_state_dict(extractor.state_dict(), strict=False).missing_keys
    assert missing == ["from_whole.weight", "from_whole.bias"] and torch.equal(
        whole(x, "Hair", "blond").flat(), extractor(x, "Hair", "blond").flat()
    )
    torch.nn.init.normal_(whole.from_whole.weight)
    assert not torch.allclose(whole(x, "Hair", "blond").flat(), extractor(x, "Hair", "blond").flat())
    whole.save_pretrained(tmp_path)
    again = ReferenceExtractor.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert torch.equal(again(x, "Hair", "blond").flat(), whole(x, "Hair", "blond").flat())


def test_mix_ends_and_gradient():
    a, b = code(), code(seed=1)
    assert torch.equal(a.mix(b, 0).flat(), a.flat()) and torch.allclose(a.mix(b, 1).flat(), b.flat())
    t = torch.tensor(0.5, requires_grad=True)
    a.mix(b, t).flat().sum().backward()
    assert torch.allclose(t.grad, (b.flat() - a.flat()).sum(), atol=1e-4)


def test_one_style_mixes_with_many():
    assert torch.allclose(code(4).mix(code(1, 3), 0.25).vector, 0.75 * code(4).vector + 0.25 * code(1, 3).vector)


def test_pieces_and_whole():
    a = code()
    assert torch.equal(StyleCode.cat(list(a)).flat(), a.flat()) and len(a[-1]) == 1 and len(a.repeat(2)) == 6
    with pytest.raises(IndexError):
        a[3]


@pytest.mark.parametrize("vector, tokens", [((2, 6), (3, 3, 5)), ((6,), (1, 3, 5)), ((2, 6), (2, 15))])
def test_shapes_are_refused(vector, tokens):
    with pytest.raises(ValueError, match="with the same B"):
        StyleCode(torch.zeros(vector), torch.zeros(tokens))


def test_styles_of_two_models_do_not_mix():
    with pytest.raises(ValueError, match="one model"):
        code().mix(code(d=8), 0.5)


def test_swap():
    a, b = {"Hat": code(), "Hair": code()}, {"Hat": code(seed=1), "Hair": code(seed=1)}
    assert swap_styles(a, b, "Hair") == {"Hat": a["Hat"], "Hair": b["Hair"]} and a["Hair"] is not b["Hair"]
    with pytest.raises(ValueError, match="Did you mean 'Hair'"):
        swap_styles(a, b, "Hairs")


def test_file_round_trip(tmp_path):
    path = save_styles(tmp_path / "s.safetensors", {"x/y": ("Hat", "with", code()), "z": code(1)}, "m")
    back = load_styles(path, "m")
    assert (
        back["x/y"][:2] == ("Hat", "with")
        and torch.equal(back["x/y"][2].flat(), code().flat())
        and torch.equal(back["z"].tokens, code(1).tokens)
    )


@pytest.mark.parametrize(
    "spoil, says", [(lambda b: b[:50], "damaged"), (lambda b: b"", "damaged"), (lambda b: b"no styles here", "damaged")]
)
def test_damaged_file(tmp_path, spoil, says):
    path = save_styles(tmp_path / "s.safetensors", {"a": code()})
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=says):
        load_styles(path)


def test_styles_of_another_model(tmp_path):
    path = save_styles(tmp_path / "s.safetensors", {"a": code()}, "his")
    with pytest.raises(ValueError, match="'his'.*'hers'"):
        load_styles(path, "hers")


def test_names_and_numbers():
    assert (
        value_offsets(TAGS) == [0, 2]
        and tag_number(TAGS, "Hair") == 1
        and value_numbers(TAGS, 1, "brown", 2).tolist() == [2, 2]
    )


@pytest.mark.parametrize(
    "tag, value, says",
    [
        ("Hats", 0, "Did you mean 'Hat'"),
        ("Hair", "blonde", "Did you mean 'blond'"),
        (2, 0, "0 to 1"),
        ("Hat", 2, "0 to 1"),
        ("Hair", torch.tensor([0, -1, 0]), "-1"),
        ("Hair", torch.zeros(2).long(), "3 faces"),
        ("Hair", torch.zeros(3), "float"),
    ],
)
def test_unknown_tags_and_values(tag, value, says):
    with pytest.raises(ValueError, match=says):
        value_numbers(TAGS, tag, value, 3)


@torch.no_grad()
def test_extractor_starts_from_the_autoencoder(autoencoder, extractor):
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.allclose(
        extractor.features(x), autoencoder.encoder.middle_features(autoencoder.encode_features(x)), atol=1e-5
    )
    assert extractor.encoder.conv_in.weight.data_ptr() != autoencoder.encoder.conv_in.weight.data_ptr()


@torch.no_grad()
def test_extractor_takes_values_face_by_face(extractor):
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    each = extractor(x, "Hair", torch.tensor([2, 0, 1]))
    for i, v in enumerate(("brown", "black", "blond")):
        assert torch.allclose(each[i].flat(), extractor(x[i : i + 1], "Hair", v).flat(), atol=1e-5)
    assert extractor.squeezed(extractor.features(x), 0, 1).shape == (3, 4)


def test_extractor_refuses_other_features(extractor):
    with pytest.raises(ValueError, match="Needed"):
        extractor.code(torch.zeros(1, 32, 8, 8), "Hat", "with")


@torch.no_grad()
def test_mapper(mapper):
    x, noise = torch.rand(3, 3, 32, 32) * 2 - 1, mapper.draw_noise(3, make_generator(0))
    each = mapper(x, 1, torch.tensor([2, 0, 1]), noise)
    assert torch.allclose(each[0].flat(), mapper(x[:1], "Hair", "brown", noise[:1]).flat(), atol=1e-5)
    assert not torch.allclose(each.flat(), mapper(x, 1, torch.tensor([2, 0, 1]), noise.flip(0)).flat(), atol=1e-3)
    with pytest.raises(ValueError, match="draw_noise"):
        mapper(x, 0, 0, noise[:2])


def test_saved_and_loaded(extractor, mapper, tmp_path):
    for m in (extractor, mapper):
        m.save_pretrained(tmp_path / type(m).__name__)
        back = type(m).from_pretrained(tmp_path / type(m).__name__)
        assert back.tags == TAGS and all(
            torch.equal(a, b) for a, b in zip(m.state_dict().values(), back.state_dict().values())
        )


def test_encoder_config_makes_the_same_encoder(autoencoder):
    ext = ReferenceExtractor(CELEBA_TAGS, encoder_config(autoencoder))
    assert {k: v.shape for k, v in ext.encoder.state_dict().items()} == {
        k: v.shape for k, v in autoencoder.encoder.state_dict().items()
    }


# ---- what a code is a style of


def test_networks_name_what_they_make(extractor, mapper):
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    for made in (extractor(x, "Hair", "blond"), mapper(x, "Hair", 1, mapper.draw_noise(2))):
        assert (made.tag, made.value) == ("Hair", "blond")
        for o in (made[0], made.to(torch.float64), made.repeat(2), made.mix(code(1), 0.5), StyleCode.cat([made, made])):
            assert (o.tag, o.value) == ("Hair", "blond")
    assert extractor(x, "Hair", torch.tensor([0, 2])).value is None, "two values in one batch"


@pytest.mark.parametrize("tag, value", [("Hat", "with"), ("Hair", "black")])
def test_a_style_of_something_else_is_refused(extractor, tag, value):
    made = extractor(torch.zeros(1, 3, 32, 32), "Hair", "blond")
    with pytest.raises(ValueError, match=f"a style of Hair=blond came for {tag}={value}"):
        made.check_for(tag, value)
    assert made.check_for("Hair", "blond") is made and code().check_for(tag, value) is not None


def test_one_code_in_a_file(extractor, tmp_path):
    made = extractor(torch.zeros(2, 3, 32, 32), "Hair", "blond")
    back = StyleCode.load(made.save(tmp_path / "blond.safetensors", "mine"), "mine")
    assert (
        torch.equal(back.flat(), made.flat())
        and (back.tag, back.value) == ("Hair", "blond")
        and str(back) == "StyleCode(Hair=blond: 2 styles, s 6, W 3×5)"
    )
    with pytest.raises(ValueError, match="belongs to the model 'mine'"):
        StyleCode.load(tmp_path / "blond.safetensors", "yours")
    save_styles(tmp_path / "two.safetensors", {"a": made, "b": ("Hair", "blond", made)})
    assert [type(o) for o in load_styles(tmp_path / "two.safetensors").values()] == [StyleCode, tuple], (
        "each comes back as it was given"
    )
    with pytest.raises(ValueError, match=r"holds 2 styles \(a, b\)"):
        StyleCode.load(tmp_path / "two.safetensors")
