"The pipeline's contract on a tiny random model: edits as data, outputs, conventions, saving, and everything a checkpoint can be wrong in."

import itertools, json, os, shutil, struct, subprocess, sys, warnings
from pathlib import Path
import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from latref_nb import batch, pipeline
from latref_nb.autoencoder import DiffusionAutoencoder
from latref_nb.core import load_image, make_generator
from latref_nb.images import ImageError
from latref_nb.tags import CELEBA_TAGS, Tag, TagSet
from latref_nb.directions import ValueClassifier
from latref_nb.drawing import CLASSES
from latref_nb.faces import SynthFaces
from latref_nb.modulation import StyleModulation
from latref_nb.batch import edit_files, encode_dataset, fit_pipeline, join_images, own_products
from latref_nb.checkpoints import CheckpointError, load_part
from latref_nb.edits import GUIDANCES, INVERTED, Edit, class_mask, edit_regions, guidances_of, load_mask
from latref_nb.parts import PARTS
from latref_nb.pipeline import LatRefOutput, LatRefPipeline
from latref_nb.sampling import round_trip
from latref_nb.styles import LatentMapper, ReferenceExtractor, StyleCode

torch.set_num_threads(1)  # tiny work: threads only wait for one another
SIZE, Z = 32, 16


def shake(model):
    "Weights also where a fresh network has zeros."
    for p in model.parameters():
        if not p.abs().sum():
            torch.nn.init.normal_(p, std=0.05)
    return model


def tiny_styles(ae, tags):
    "Style networks of a few weights on an autoencoder."
    sizes = dict(style_dim=6, token_dim=8)
    mod = StyleModulation(tags, 32, width=16, blocks=1, vector_dim=4, heads=2, **sizes)
    torch.nn.init.normal_(mod.post[1].weight, std=0.5)
    return dict(
        modulation=shake(mod),
        extractor=ReferenceExtractor.beside(ae, tags, side=4, width=16, heads=2, layers=1, n_tokens=2, **sizes),
        mapper=LatentMapper(tags, SIZE, (8,), width=16, heads=2, layers=1, n_tokens=2, **sizes),
    )


def tiny_pipeline(tags=CELEBA_TAGS, seed=0, styles=False, **settings):
    "Random weights everywhere, so that the code and the styles matter."
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ae = shake(
            DiffusionAutoencoder(
                image_size=SIZE,
                patch_size=4,
                enc_patch_size=2,
                model_channels=32,
                channel_mult=(1, 1),
                num_res_blocks=1,
                attention_resolutions=(),
                enc_channels=32,
                enc_channel_mult=(1, 1, 1),
                z_dim=Z,
                prediction_type="v_prediction",
            )
        )
        z = torch.randn(200, Z)
        labels = torch.stack([torch.randint(0, len(t), (200,)) for t in tags], 1)
        pipe = fit_pipeline(
            ae, z, labels, tags, make_generator(seed), linear={"steps": 10}, mlp={"steps": 10}, **settings
        )
        if styles:
            pipe = LatRefPipeline(ae, pipe.linear, pipe.mlp, **tiny_styles(ae, tags), **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def x():
    return torch.rand(3, 3, SIZE, SIZE, generator=make_generator(1)) * 2 - 1


@pytest.fixture(scope="module")
def styled():
    return tiny_pipeline(styles=True, sure=2)


@pytest.fixture(scope="module")
def refs():
    return torch.rand(3, 3, SIZE, SIZE, generator=make_generator(2)) * 2 - 1


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    pipe.save_pretrained(path)
    return path


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def near(a, b):
    "Equal but for rounding: sums of one network may be taken in another order in another run."
    return torch.allclose(a, b, atol=1e-5)


def refused(f, *contains, exc=ValueError):
    "`f` raises `exc` with one line that contains all of `contains`."
    with pytest.raises(exc) as e:
        f()
    said = str(e.value)
    assert "\n" not in said and len(said) < 500, said
    for c in contains:
        assert c in said, said


@pytest.mark.parametrize(
    "text,edit",
    [
        ("Eyeglasses=with", Edit("Eyeglasses", "with")),
        ("HairColor=blond:gain=0.8", Edit("HairColor", "blond", gain=0.8)),
        (
            " Smiling = without : method=image_specific : gain=-1",
            Edit("Smiling", "without", method="image_specific", gain=-1.0),
        ),
    ],
)
def test_edits_from_words(text, edit):
    assert Edit.parse(text) == edit and Edit.parse(str(edit)) == edit and hash(edit) == hash(Edit.parse(text))


@pytest.mark.parametrize(
    "text,contains",
    [
        ("", "name=value"),
        ("Eyeglasses", "name=value"),
        ("=with", "name=value"),
        ("Eyeglasses=", "name=value"),
        ("A=b:gain", "name=value"),
        ("A=b:gian=1", "Did you mean 'gain'?"),
        ("A=b:gain=much", "not a number"),
        ("A=b:gain=nan", "not finite"),
        ("A=b:gain=inf", "not finite"),
        ("A=b:method=global", "Did you mean 'global_direction'?"),
    ],
)
def test_words_that_are_no_edit(text, contains):
    refused(lambda: Edit.parse(text), contains)


@pytest.mark.parametrize(
    "field,value,contains",
    [
        ("gain", 10**400, "not a number"),
        ("gain", float("inf"), "not finite"),
        ("gain", 1e30, "from -1000 to 1000"),
        ("gain", torch.zeros(2), "not a number"),
        ("gain", None, "not a number"),
        ("gain", "x" * 9999, "not a number"),
        ("seed", 2**63, "below 2⁶³"),
        ("seed", -(2**64), "below 2⁶³"),
        ("seed", [1, 2**70], "below 2⁶³"),
        ("seed", float("inf"), "whole number"),
        ("seed", float("nan"), "whole number"),
        ("seed", 1.5, "whole number"),
        ("seed", torch.zeros(2), "whole number"),
        ("seed", "9" * 9999, "whole number"),
        ("seed", b"1x", "whole number"),
        ("tag", 0, "Words are needed"),
        ("tag", None, "Words are needed"),
        ("value", 1, "Words are needed"),
        ("value", ["with"], "Words are needed"),
        ("tag", {}, "Words are needed"),
    ],
)
def test_fields_that_are_no_edit(field, value, contains):
    refused(lambda: Edit(**{"tag": "Eyeglasses", "value": "with", field: value}), contains)
    if isinstance(value, (str, int, float, list)):
        refused(lambda: Edit.from_dict({"tag": "Eyeglasses", "value": "with", field: value}), contains)


def test_seeds_up_to_the_last(styled, x):
    for seed in (2**63 - 1, -(2**63) + 1, "12", 3.0):
        assert len(styled(x[:1], glasses(seed=seed), 1).images) == 1


@pytest.mark.parametrize("path", ["~/her.png", Path("~/her.png"), "~/a:b.png"])
def test_the_home_folder_in_an_edit(path):
    for e in (Edit("Male", "with", reference=path), Edit("Male", "with", mask=path)):
        assert (e.reference or e.mask) == os.path.expanduser(str(path)) and Edit.parse(str(e)) == e


def test_edits_are_checked_against_the_checkpoint(pipe, x):
    refused(lambda: pipe(x, ["Eyeglasess=with"]), "Did you mean 'Eyeglasses'?", "Known: Smiling")
    refused(lambda: pipe(x, Edit("HairColor", "blonde")), "Did you mean 'blond'?")
    refused(lambda: pipe(x, [3]), "int came as an edit")
    assert pipe.check_edits(
        ["Smiling=with", Edit("Male", "with"), {"tag": "Bangs", "value": "without", "gain": 0.5}]
    ) == [Edit("Smiling", "with"), Edit("Male", "with"), Edit("Bangs", "without", gain=0.5)]
    assert pipe.check_edits(None) == [] and pipe.check_edits("Male=with") == [Edit("Male", "with")]


def test_output_holds_everything(pipe, x):
    out = pipe(x, ["Eyeglasses=with", "HairColor=blond:method=image_specific"], 4)
    assert isinstance(out, LatRefOutput) and len(out.images) == 3 and out.images[0].size == (SIZE, SIZE)
    assert out.x_T.shape == x.shape and out.z.shape == out.z_edit.shape == (3, Z) and out.zs.shape == (3, 3, Z)
    assert torch.equal(out.zs[0], out.z) and torch.equal(out.zs[-1], out.z_edit) and torch.equal(out.source, x)
    assert {t: tuple(p.shape) for t, p in out.probabilities.items()} == {t.name: (2, 3, len(t)) for t in CELEBA_TAGS}
    assert out.inverted is None and out["z"] is out.z
    assert [str(e) for e in out.edits] == ["Eyeglasses=with", "HairColor=blond:method=image_specific"]


def test_no_edits_is_the_round_trip(pipe, x):
    out = pipe(x, num_inference_steps=5, output_type="pt")
    want = round_trip(pipe.autoencoder, x, 5).rendered.images.clamp(-1, 1)
    assert torch.allclose(out.images, want, atol=1e-5) and torch.equal(out.z, out.z_edit)


def test_the_verbs_compose_to_the_call(pipe, x):
    z = pipe.encode(x)
    x_T = pipe.invert(x, z, 5)
    z_edit = pipe.edit(z, ["Male=with", "Young=without"])
    out = pipe(x, ["Male=with", "Young=without"], 5, output_type="pt")
    assert torch.allclose(pipe.render(x_T, z_edit, 5), out.images, atol=1e-5)
    assert torch.allclose(pipe.edit(pipe.edit(z, "Male=with"), "Young=without"), z_edit, atol=1e-4) and torch.allclose(
        out.x_T, x_T, atol=1e-5
    )


def test_gain(pipe, x):
    z = pipe.encode(x)
    for method in ("global_direction", "image_specific"):
        full, half, none = (pipe.edit(z, Edit("Eyeglasses", "with", method=method, gain=g)) - z for g in (1, 0.5, 0))
        assert none.abs().max() < 1e-5 and torch.allclose(half, full / 2, atol=1e-5) and full.norm() > 1e-3


def test_a_wish_that_is_fulfilled_already_changes_nothing(x):
    eager = tiny_pipeline(sure=0.0)
    z = eager.encode(x)
    assert torch.equal(eager.edit(z, "Male=with"), z) and not torch.equal(eager.edit(z, "Male=with:gain=-1"), z)
    p = eager.read(z)["Male"][:, 1]
    some = tiny_pipeline(sure=float(p.median()))
    moved = (some.edit(z, "Male=with") != z).any(1)
    assert moved.tolist() == (p < p.median()).tolist()


def test_method_of_the_checkpoint_is_the_default(pipe, x):
    z = pipe.encode(x)
    other = tiny_pipeline(method="image_specific", options={"image_specific": {"max_steps": 1, "step": 0.5}})
    other.autoencoder.load_state_dict(pipe.autoencoder.state_dict())
    assert torch.allclose(other.edit(z, "Bangs=with"), other.edit(z, "Bangs=with:method=image_specific"))
    step = other.mlp.normalise(other.edit(z, "Bangs=with")) - other.mlp.normalise(z)
    assert torch.allclose(step.norm(dim=1), torch.full((3,), 0.5), atol=1e-3)


def test_an_image_alone_and_in_a_batch(pipe, x):
    both = pipe(x, "Smiling=with:method=image_specific", 4, output_type="pt")
    alone = pipe(x[1:2], "Smiling=with:method=image_specific", 4, output_type="pt")
    assert torch.allclose(both.images[1], alone.images[0], atol=1e-4)
    drawn = [
        pipe(o, None, 4, x_T="random", generator=make_generator(s), output_type="pt").x_T
        for o, s in ((x, [5, 6, 7]), (x[2:], [7]))
    ]
    assert torch.equal(drawn[0][2], drawn[1][0])


def test_noise_given_drawn_or_inverted(pipe, x):
    z, x_T = pipe.encode(x), torch.randn(x.shape, generator=make_generator(3))
    out = pipe(x, None, 4, x_T=x_T, output_type="pt")
    assert out.x_T is x_T and torch.allclose(out.images, pipe.render(x_T, z, 4), atol=1e-5)
    a, b, c = (pipe(x, None, 2, x_T="random", generator=make_generator(s), output_type="pt").images for s in (1, 1, 2))
    assert near(a, b) and not torch.equal(a, c)


def test_output_types(pipe, x):
    pt, np_, pil = (pipe(x, None, 3, output_type=o).images for o in ("pt", "np", "pil"))
    assert pt.shape == x.shape and pt.min() >= -1 and pt.max() <= 1
    assert (
        np_.shape == (3, SIZE, SIZE, 3) and np_.min() >= 0 and np.allclose(np_, (pt.movedim(1, -1) + 1) / 2, atol=1e-5)
    )
    assert (load_image(pil[0]) - pt[0]).abs().max() < 1.01 / 127.5 and (
        load_image(np_[0]) - pt[0]
    ).abs().max() < 1.01 / 127.5
    refused(lambda: pipe(x, output_type="jpeg"), "output_type 'jpeg'", "pil, pt, np, latent")


def test_an_array_that_came_out_goes_in_again(pipe, x):
    out = pipe(x, None, 3, output_type="np").images
    assert (
        torch.allclose(pipe.load_images(out), torch.stack([load_image(o) for o in out]))
        and pipe(out, None, 2, output_type="np").images.shape == out.shape
    )


def test_codes_without_rendering(pipe, x):
    whole, codes = pipe(x, "Male=with", 3, output_type="pt"), pipe(x, "Male=with", 3, output_type="latent")
    assert near(codes.images, whole.z_edit) and near(pipe.render(codes.x_T, codes.images, 3), whole.images)


def test_a_plain_tuple(pipe, x):
    out = pipe(x, "Male=with", 3, output_type="pt", return_dict=False)
    assert isinstance(out, tuple) and near(out[0], pipe(x, "Male=with", 3, output_type="pt").images)


def test_image_is_another_name_for_images(pipe, x):
    assert near(pipe(image=x, num_inference_steps=2, output_type="pt").images, pipe(x, (), 2, output_type="pt").images)
    refused(lambda: pipe(), "no images came")
    refused(lambda: pipe(x, image=x), "Give one of the two")


def test_schedulers_by_name_and_from_diffusers(pipe, x):
    by = lambda s, n=4: pipe(x, "Male=with", n, scheduler=s, output_type="pt").images
    assert (
        near(by(None), by("ddim"))
        and near(by(diffusers.DPMSolverMultistepScheduler()), by("dpmsolver++"))
        and not near(by("unipc"), by("ddim"))
    )
    refused(lambda: by("euler"), "scheduler 'euler'", "dpmsolver++")
    refused(lambda: by(diffusers.DDPMScheduler()), "scheduler 'DDPMScheduler'", "UniPCMultistepScheduler")


@pytest.mark.parametrize(
    "edits",
    ["Male=with:seed=5", "Male=with:seed=5,8,2", [Edit("Male", "with", seed=5, mask=np.eye(SIZE))], "Smiling=with"],
)
def test_several_pictures_of_each_image(styled, x, edits):
    "They are those that single calls make, with seeds that count on."
    edits = styled.check_edits(edits)
    many = styled(x, edits, 3, num_images_per_prompt=2, output_type="pt")
    assert many.images.shape == (6, 3, SIZE, SIZE) and torch.equal(many.source[0], many.source[1])
    for i, j in ((0, 0), (1, 1), (2, 1)):
        seed = edits[0].seed if not isinstance(edits[0].seed, tuple) else edits[0].seed[i]
        one = styled(
            x[i : i + 1],
            [Edit(e.tag, e.value, seed=None if seed is None else seed + j, mask=e.mask) for e in edits],
            3,
            output_type="pt",
        )
        assert torch.allclose(one.images[0], many.images[2 * i + j], atol=1e-4)


def test_several_pictures_in_the_styles_of_as_many_references(styled, x, refs):
    codes = styled.reference_style(refs, "Male", "with")
    a, b = (
        styled(x, Edit("Male", "with", **how), 3, num_images_per_prompt=2, output_type="pt").images
        for how in (dict(reference=refs), dict(style=codes))
    )
    assert torch.allclose(a, b, atol=1e-5) and torch.allclose(
        a[0::2], styled(x, Edit("Male", "with", reference=refs), 3, output_type="pt").images, atol=1e-4
    )
    refused(lambda: styled(x, num_images_per_prompt=0), "num_images_per_prompt=0")


def test_a_style_of_another_tag_is_refused(styled, refs):
    glasses = styled.reference_style(refs[:1], "Eyeglasses", "with")
    refused(lambda: Edit("Smiling", "with", style=glasses), "a style of Eyeglasses=with came for Smiling=with")
    refused(
        lambda: styled.modulate(refs, "Eyeglasses", "without", glasses), "Eyeglasses=with came for Eyeglasses=without"
    )


def test_images_of_every_kind(pipe, x, tmp_path):
    im = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8))
    im.save(tmp_path / "me.png")
    want = load_image(im, SIZE)
    for src in (im, tmp_path / "me.png", str(tmp_path / "me.png"), np.array(im), [im], want, want[None], [want]):
        assert torch.allclose(pipe.load_images(src), want[None])
    assert pipe.load_images([im, want, np.array(im)]).shape == (3, 3, SIZE, SIZE)
    refused(lambda: pipe([]), "Give at least one")
    refused(lambda: pipe(torch.zeros(1, 3, 9, 9)), f"(B,3,{SIZE},{SIZE}) is needed")
    refused(lambda: pipe(x * 200), "[-1, 1]")
    refused(lambda: pipe(tmp_path / "no.png"), "no such file", exc=ImageError)
    refused(lambda: pipe((x > 0)), "floats")
    refused(lambda: pipe(x, num_inference_steps=0), "num_inference_steps")
    refused(lambda: pipe(x, num_inference_steps=2000), "1 to 1000")


def test_callback_in_diffusers_form(pipe, x):
    seen = []

    def note(p, step, timestep, state):
        assert p is pipe
        seen.append((step, timestep, sorted(state)))

    pipe(x, None, 4, callback_on_step_end=note)
    assert [s for s, *_ in seen] == [0, 1, 2, 3] and seen[0][1] > seen[-1][1] and {"xt", "x0", "z"} <= set(seen[0][2])
    assert not torch.equal(
        *(
            pipe(x, None, 4, output_type="pt", callback_on_step_end=f).images
            for f in (None, lambda p, i, t, s: {"z": s["z"] + 1})
        )
    )


def test_trajectories_on_request(pipe, x):
    out = pipe(x, "Male=with", 4, return_trajectory=True)
    assert out.inverted.xs.shape == (5, 3, 3, SIZE, SIZE) == out.rendered.xs.shape and torch.equal(
        out.inverted.x_T, out.x_T
    )


def test_progress_bar_is_diffusers(pipe, x, capsys):
    p = tiny_pipeline()
    p.set_progress_bar_config(ascii=True)
    p(x, None, 2)
    assert "4/4" in capsys.readouterr().err
    p.set_progress_bar_config(disable=True)
    p(x, None, 2)
    assert capsys.readouterr().err == ""


def test_nothing_keeps_gradients_or_modes(pipe, x):
    out = pipe(x, "Male=with:method=image_specific", 2, output_type="pt")
    assert not any(o.requires_grad for o in (out.images, out.z, out.z_edit, out.x_T)) and not any(
        p.requires_grad for m in pipe.parts.values() for p in m.parameters()
    )


def test_half_precision(pipe, x):
    a = pipe(x, "Male=with", 3, output_type="pt").images
    b = pipe(x, "Male=with", 3, output_type="pt", dtype=torch.bfloat16).images
    c = tiny_pipeline().to(torch.bfloat16)(x, "Male=with", 3, output_type="pt").images
    assert (a - b).abs().mean() < 0.05 and (a - c).abs().mean() < 0.1 and c.dtype == torch.float32


def test_parts_must_fit(pipe):
    lin, mlp, ae = pipe.linear, pipe.mlp, pipe.autoencoder
    few = ValueClassifier(Z, TagSet(list(CELEBA_TAGS)[:2]), "mlp")
    wide = ValueClassifier(Z + 1, CELEBA_TAGS, "mlp")
    refused(lambda: LatRefPipeline(ae, lin, few), "different tags")
    refused(lambda: LatRefPipeline(ae, lin, wide), "Fit it on this autoencoder's codes")
    refused(lambda: LatRefPipeline(ae, mlp, mlp), "kind='linear'")
    refused(lambda: LatRefPipeline(ae, lin, mlp, method="x"), "Known: global_direction")
    refused(lambda: LatRefPipeline(ae, lin, mlp, inversion="x"), "inversion")
    refused(lambda: pipe.check_tags(few.tags), "is needed")
    assert pipe.check_tags(CELEBA_TAGS) is pipe


def test_saved_and_loaded(pipe, saved, x):
    back = LatRefPipeline.from_pretrained(saved)
    back.set_progress_bar_config(disable=True)
    for name, m in pipe.parts.items():
        ours, theirs = m.state_dict(), back.components[name].state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert back.tags == pipe.tags and back.config.method == pipe.config.method and back.name_or_path == str(saved)
    assert torch.allclose(
        back(x, "Male=with", 3, output_type="pt").images, pipe(x, "Male=with", 3, output_type="pt").images, atol=1e-4
    )


def test_settings_and_strengths_travel(tmp_path):
    from latref_nb.directions import Calibration

    p = tiny_pipeline(
        method="image_specific", inversion="fixed_point", iterations=2, options={"image_specific": {"confidence": 0.9}}
    )
    p.linear.set_strengths("global_direction", Calibration({("Male", "with"): 2.5}))
    p.save_pretrained(tmp_path / "m")
    back = LatRefPipeline.from_pretrained(tmp_path / "m")
    assert (back.config.method, back.config.inversion, back.config.iterations, back.config.options) == (
        "image_specific",
        "fixed_point",
        2,
        {"image_specific": {"confidence": 0.9}},
    )
    assert back.linear.strength("global_direction", "Male", "with") == 2.5
    assert LatRefPipeline.from_pretrained(tmp_path / "m", method="global_direction").config.method == "global_direction"
    assert (
        LatRefPipeline.from_pretrained(tmp_path / "m", torch_dtype=torch.bfloat16).autoencoder.dtype == torch.bfloat16
    )


def test_saving_again_keeps_the_model_card_and_replaces_the_rest(pipe, copy):
    (copy / "README.md").write_text("card")
    pipe.save_pretrained(copy)
    assert (copy / "README.md").read_text() == "card" and LatRefPipeline.from_pretrained(copy).tags == CELEBA_TAGS
    assert os.listdir(copy.parent) == ["tiny"]


def damage_cut(p):
    (p / "autoencoder" / "diffusion_pytorch_model.safetensors").write_bytes(
        (p / "autoencoder" / "diffusion_pytorch_model.safetensors").read_bytes()[:5000]
    )


def damage_zeros(p):
    (p / "linear" / "diffusion_pytorch_model.safetensors").write_bytes(bytes(5000))


def damage_empty(p):
    (p / "mlp" / "diffusion_pytorch_model.safetensors").write_bytes(b"")


def damage_no_weights(p):
    (p / "mlp" / "diffusion_pytorch_model.safetensors").unlink()


def damage_no_part(p):
    shutil.rmtree(p / "linear")


def damage_no_index(p):
    (p / "model_index.json").unlink()


def damage_index(p):
    (p / "model_index.json").write_text("{")


def damage_foreign_index(p):
    (p / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')


def damage_list_index(p):
    (p / "model_index.json").write_text("[]")


def damage_foreign_part(p):
    shutil.rmtree(p / "autoencoder")
    shutil.copytree(p / "mlp", p / "autoencoder")


def damage_config(p):
    edit_json(p / "autoencoder" / "config.json", z_dim=Z + 1)


def damage_config_type(p):
    edit_json(p / "autoencoder" / "config.json", channel_mult="wide")


def damage_depth(p):
    edit_json(p / "autoencoder" / "config.json", num_res_blocks=2)


def damage_fewer(p):
    edit_json(p / "autoencoder" / "config.json", enc_channel_mult=[1, 1])


def damage_tags(p):
    edit_json(p / "mlp" / "config.json", tags=[{"name": "Beard", "values": ["without", "with"], "attributes": []}])


def damage_tags_type(p):
    edit_json(p / "mlp" / "config.json", tags=7)


def damage_method(p):
    edit_json(p / "model_index.json", method="magic")


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "damage", [f for n, f in list(globals().items()) if n.startswith("damage_")], ids=lambda f: f.__name__[7:]
)
def test_checkpoints_that_cannot_be_used(copy, damage):
    damage(copy)
    refused(lambda: LatRefPipeline.from_pretrained(copy), str(copy), exc=CheckpointError)


def test_names_that_are_no_checkpoint(tmp_path):
    refused(lambda: LatRefPipeline.from_pretrained("synthfaces46"), "no such folder", "Shipped:", exc=CheckpointError)
    refused(lambda: LatRefPipeline.from_pretrained(tmp_path), "model_index.json", exc=CheckpointError)
    refused(lambda: LatRefPipeline.from_pretrained(tmp_path / "gone"), "no such folder", exc=CheckpointError)
    refused(lambda: load_part(DiffusionAutoencoder, tmp_path), "config.json", exc=CheckpointError)


def index(p, **changes):
    edit_json(p / "model_index.json", **changes)


@pytest.mark.parametrize(
    "changes",
    [
        dict(autoencoder=None),
        dict(autoencoder=[None, None]),
        dict(autoencoder=3),
        dict(autoencoder="DiffusionAutoencoder"),
        dict(autoencoder={}),
        dict(autoencoder=["latref_nb.autoencoder"]),
        dict(linear=[["a"], "ValueClassifier"]),
        dict(linear=7),
        dict(linear={"a": 1}),
        dict(linear=True),
        dict(linear="x"),
        dict(linear=["diffusers", "UNet2DConditionModel"]),
        dict(linear=[1, 2]),
        dict(mlp=[[], []]),
        dict(modulation=["latref_nb.modulation", "StyleModulation"]),
        dict(method=3),
        dict(method=None),
        dict(method=["global_direction"]),
        dict(method={}),
        dict(inversion=1),
        dict(inversion=[]),
        dict(iterations="2"),
        dict(iterations=2.5),
        dict(iterations=0),
        dict(iterations=10**9),
        dict(iterations=True),
        dict(iterations=None),
        dict(sure="high"),
        dict(sure=None),
        dict(sure=float("nan")),
        dict(sure=[]),
        dict(sure=True),
        dict(options=3),
        dict(options=["a"]),
        dict(options="words"),
        dict(options={"magic": {}}),
        dict(options={"global_direction": 3}),
        dict(options={"global_direction": ["a"]}),
        dict(options={"image_specific": {"stepp": 1}}),
        dict(bogus=1),
        dict(_class_name=["LatRefPipeline"]),
        dict(_class_name=None),
    ],
    ids=str,
)
def test_an_index_of_other_types(copy, changes):
    index(copy, **changes)
    refused(lambda: LatRefPipeline.from_pretrained(copy), str(copy), exc=CheckpointError)


@pytest.mark.parametrize(
    "dtype, want",
    [
        (None, torch.float32),
        ("float32", torch.float32),
        ("float16", torch.float16),
        (torch.float16, torch.float16),
        ("torch.float64", torch.float64),
        ("auto", torch.float32),
    ],
)
@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
def test_dtypes_by_name(saved, dtype, want, name):
    p = LatRefPipeline.from_pretrained(saved, **{name: dtype})
    assert p.autoencoder.dtype == want and p.mlp.dtype == torch.float32


def test_stored_in_half_read_as_saved_or_whole(tmp_path):
    p = tiny_pipeline()
    p.autoencoder.half()
    p.save_pretrained(tmp_path / "m")
    assert LatRefPipeline.from_pretrained(tmp_path / "m", torch_dtype="auto").autoencoder.dtype == torch.float16
    back = LatRefPipeline.from_pretrained(tmp_path / "m").autoencoder
    assert back.dtype == torch.float32 and all(
        torch.equal(v, p.autoencoder.state_dict()[k].float()) for k, v in back.state_dict().items()
    )


def test_diffusers_arguments(saved):
    how = dict(
        use_safetensors=True,
        local_files_only=True,
        cache_dir="/nowhere",
        revision="main",
        token=None,
        force_download=False,
        low_cpu_mem_usage=True,
        variant=None,
    )
    assert LatRefPipeline.from_pretrained(saved, **how).tags == CELEBA_TAGS
    assert LatRefPipeline.from_pretrained(saved, method="image_specific", sure=2).config.sure == 2


@pytest.mark.parametrize(
    "how, words",
    [
        (dict(torch_dtyp="float16"), "Did you mean 'torch_dtype'?"),
        (dict(varient="x"), "Did you mean 'variant'?"),
        (dict(modulaton=None), "Did you mean 'modulation'?"),
        (dict(methd="x"), "Did you mean 'method'?"),
        (dict(device_map="auto"), "Known: torch_dtype"),
        (dict(use_safetensors=False), "safetensors files only"),
        (dict(torch_dtype="float61"), "torch_dtype='float61'"),
        (dict(torch_dtype="int8"), "int8"),
        (dict(torch_dtype=torch.int8), "torch.int8"),
        (dict(torch_dtype=3), "torch_dtype=3"),
        (dict(variant="../up"), "a short word"),
        (dict(variant="fp16"), "diffusion_pytorch_model.fp16.safetensors"),
        (dict(linear=3), "Give a ValueClassifier, or None"),
        (dict(linear="mlp"), "linear='mlp'"),
        (dict(autoencoder=None), "autoencoder=None"),
        (dict(mlp=torch.nn.Linear(1, 1)), "Give a ValueClassifier"),
        (dict(method="magic"), "magic"),
        (dict(iterations="many"), "many"),
        (dict(options={"global_direction": {"metrik": 1}}), "Did you mean 'metric'?"),
    ],
    ids=str,
)
def test_arguments_that_are_none(saved, how, words):
    refused(lambda: LatRefPipeline.from_pretrained(saved, **how), words)


def test_parts_are_replaced_or_left_out(styled, tmp_path):
    styled.save_pretrained(tmp_path / "m")
    load = lambda **how: LatRefPipeline.from_pretrained(tmp_path / "m", **how)
    for name in ("linear", "mlp", "mapper", "extractor"):
        assert set(load(**{name: None}).parts) == set(styled.parts) - {name}
    assert set(load(modulation=None).parts) == {"autoencoder", "linear", "mlp"}, (
        "what nothing else could use is left out with it"
    )
    other = shake(StyleModulation(CELEBA_TAGS, 32, width=16, blocks=1, vector_dim=4, heads=2, style_dim=6, token_dim=8))
    (tmp_path / "m" / "modulation" / "diffusion_pytorch_model.safetensors").write_bytes(b"not read")
    assert load(modulation=other).modulation is other
    refused(lambda: load(modulation=StyleModulation(CELEBA_TAGS, 7, width=32, blocks=1)), "trained together")


@pytest.mark.parametrize("name", [None, 3, [], "", b"x"[:0], "x" * 300, "a\0b"])
def test_names_that_are_none(name):
    refused(lambda: LatRefPipeline.from_pretrained(name), exc=CheckpointError)


# ---- saving: loaded again by the same call, or refused


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("variant", [None, "fp16", "ema"])
def test_variants_load_again(pipe, tmp_path, variant):
    pipe.save_pretrained(tmp_path / "m", variant=variant)
    back = LatRefPipeline.from_pretrained(tmp_path / "m", variant=variant)
    assert all(torch.equal(v, back.mlp.state_dict()[k]) for k, v in pipe.mlp.state_dict().items())
    if variant:
        refused(
            lambda: LatRefPipeline.from_pretrained(tmp_path / "m"), f"Give variant='{variant}'", exc=CheckpointError
        )


@pytest.mark.parametrize(
    "how, words",
    [
        (dict(safe_serialization=False), "only safetensors"),
        (dict(max_shard_size="10KB"), "max_shard_size"),
        (dict(max_shard_size=10**12), "max_shard_size"),
        (dict(variant="a/b"), "a short word"),
    ],
    ids=str,
)
def test_what_would_not_load_again_is_not_saved(pipe, copy, how, words):
    before = tree(copy)
    refused(lambda: pipe.save_pretrained(copy, **how), words)
    assert tree(copy) == before and os.listdir(copy.parent) == ["tiny"]


@pytest.mark.parametrize("part", ["autoencoder", "linear", "mlp"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_leave_the_old_folder(copy, part, bad):
    p, before = tiny_pipeline(), tree(copy)
    next(iter(p.parts[part].state_dict().values())).view(-1)[0] = bad
    refused(lambda: p.save_pretrained(copy), f"the {part} is not saved")
    assert tree(copy) == before and os.listdir(copy.parent) == ["tiny"]


@pytest.mark.parametrize("place", [".", "./", "../tiny", ""])
def test_dot_is_a_place(pipe, copy, monkeypatch, place):
    monkeypatch.chdir(copy)
    if not place:
        return refused(lambda: pipe.save_pretrained(place), "empty path")
    pipe.save_pretrained(place)
    assert (
        os.path.samefile(os.getcwd(), copy)
        and os.path.exists("model_index.json")
        and os.listdir(copy.parent) == ["tiny"]
    ), "the folder one stands in stays the same folder"
    assert LatRefPipeline.from_pretrained(place).tags == LatRefPipeline.from_pretrained(".").tags == CELEBA_TAGS


def test_what_else_lies_in_the_folder_stays(pipe, styled, tmp_path):
    styled.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "notes").mkdir()
    (tmp_path / "m" / "notes" / "mine.txt").write_text("mine")
    (tmp_path / "m" / "link").symlink_to("nowhere")
    (tmp_path / "m" / "README.md").write_text("card")
    pipe.save_pretrained(tmp_path / "m")
    assert (
        (tmp_path / "m" / "notes" / "mine.txt").read_text() == "mine"
        and (tmp_path / "m" / "link").is_symlink()
        and (tmp_path / "m" / "README.md").read_text() == "card"
        and os.listdir(tmp_path) == ["m"]
    )
    assert set(LatRefPipeline.from_pretrained(tmp_path / "m").parts) == {"autoencoder", "linear", "mlp"} and not list(
        (tmp_path / "m").glob(".new*")
    )


def test_other_tags(tmp_path):
    mood = TagSet([Tag("Mood", ("calm", "glad", "sad")), Tag("Hat", ("without", "with"))])
    p = tiny_pipeline(mood)
    p.save_pretrained(tmp_path / "m")
    p = LatRefPipeline.from_pretrained(tmp_path / "m")
    assert p.tags == mood and p.check_edits("Mood=glad") == [Edit("Mood", "glad")]
    refused(lambda: p.check_edits("Smiling=with"), "Known: Mood, Hat")
    refused(lambda: p.check_tags(CELEBA_TAGS), "checkpoint trained on these tags", exc=CheckpointError)


def test_a_full_disk_keeps_the_old_checkpoint(pipe, copy):
    import resource

    old, before = resource.getrlimit(resource.RLIMIT_FSIZE), {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, old[1]))
    try:
        refused(lambda: pipe.save_pretrained(copy), "cannot write", exc=OSError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before and os.listdir(copy.parent) == ["tiny"]


@pytest.fixture
def folder(tmp_path):
    "Five pictures of several formats and sizes, and three bad files among them."
    d = tmp_path / "in"
    d.mkdir()
    rng = np.random.default_rng(0)
    for i, s in enumerate([".png", ".jpg", ".webp", ".bmp", ".png"]):
        Image.fromarray(rng.integers(0, 255, (40 + i, 50, 3), dtype=np.uint8)).save(d / f"{i}{s}")
    (d / "1a.png").write_text("a letter")
    (d / "1b.png").touch()
    (d / "3a.png").write_bytes((d / "0.png").read_bytes()[:300])
    return d


def test_files_bad_ones_are_skipped_the_rest_is_done(pipe, folder, tmp_path):
    said = []
    files = sorted(folder.iterdir()) + [folder / "gone.png"]
    report = edit_files(
        pipe,
        iter(files),
        ["Eyeglasses=with"],
        tmp_path / "out",
        batch_size=2,
        num_inference_steps=2,
        report=said.append,
    )
    assert len(report.done) == 5 and len(report.failed) == 4 and len(said) == 9
    names = {f"{i}_{k}.png" for i in range(5) for k in ("edited", "strip")} | {"edits.json"}
    assert set(os.listdir(tmp_path / "out")) == names
    data = json.loads((tmp_path / "out" / "edits.json").read_text())
    assert data["edits"] == ["Eyeglasses=with"] and data["num_inference_steps"] == 2 and data["files"] == report.rows
    for r in report.done:
        assert load_image(tmp_path / "out" / r["edited"]).shape == (3, SIZE, SIZE) and load_image(
            tmp_path / "out" / r["strip"]
        ).shape == (3, SIZE, 2 * SIZE + 2)
        assert (
            CELEBA_TAGS.encode(r["before"]).min() >= 0
            and CELEBA_TAGS.encode(r["after"]).min() >= 0
            and all(0 <= p <= 1 for p in r["probability"]["Eyeglasses=with"])
        )
    for r in report.failed:
        assert "\n" not in r["error"] and Path(r["file"]).name in r["error"]


def test_files_do_not_depend_on_the_batch(pipe, folder, tmp_path):
    files = sorted(folder.glob("[0-4].*"))
    how = dict(num_inference_steps=2, seed=4, x_T="random")
    for n in (1, 3):
        edit_files(pipe, files, "Male=with", tmp_path / str(n), batch_size=n, **how)
    for i in range(5):
        assert (
            load_image(tmp_path / "1" / f"{i}_edited.png") - load_image(tmp_path / "3" / f"{i}_edited.png")
        ).abs().max() < 2.01 / 127.5


def test_files_of_one_name_do_not_overwrite_each_other(pipe, folder, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.copy(folder / "0.png", tmp_path / "other" / "0.png")
    report = edit_files(
        pipe, [folder / "0.png", tmp_path / "other" / "0.png"], None, tmp_path / "out", num_inference_steps=1
    )
    assert [r["edited"] for r in report.rows] == ["0_edited.png", "0-2_edited.png"]


def test_files_into_places_that_cannot_be_written(pipe, folder):
    refused(lambda: edit_files(pipe, [folder / "0.png"], None, folder / "0.png" / "out"), "cannot write", exc=OSError)


def test_stopped_in_the_middle_the_report_is_there(pipe, folder, tmp_path):
    def stop(row):
        if Path(row["file"]).stem == "3":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edit_files(
            pipe,
            sorted(folder.glob("[0-4].*")),
            None,
            tmp_path / "out",
            batch_size=2,
            num_inference_steps=1,
            report=stop,
        )
    assert [Path(r["file"]).stem for r in json.loads((tmp_path / "out" / "edits.json").read_text())["files"]] == [
        "0",
        "1",
        "2",
        "3",
    ]
    assert not [p for p in (tmp_path / "out").iterdir() if ".part" in p.name]


@pytest.mark.parametrize(
    "where,what",
    [("load_image", "reading"), ("_edit_some", "editing"), ("save_image", "saving"), ("join_images", "the strip")],
)
@pytest.mark.parametrize(
    "kind",
    [
        TypeError,
        KeyError,
        MemoryError,
        RecursionError,
        RuntimeError,
        OSError,
        ValueError,
        ZeroDivisionError,
        struct.error,
        UnicodeEncodeError,
    ],
)
def test_whatever_one_file_throws_is_its_row(pipe, folder, tmp_path, monkeypatch, where, what, kind):
    "The third of five files fails in one of four places, alone or in a batch; the others are done."
    error = kind("ascii", "x", 0, 1, what) if kind is UnicodeEncodeError else kind(f"{what}\nfailed")
    real, bad = getattr(batch, where), load_image(folder / "2.webp", SIZE)

    def is_bad(o):
        return (
            str(o).endswith(("2.webp", "2_edited.png"))
            or isinstance(o, torch.Tensor)
            and o.shape == bad.shape
            and torch.equal(o, bad)
        )

    def failing(*args, **how):
        seen = [
            p for o in args for p in (o if isinstance(o, (list, torch.Tensor)) else [o])
        ]  # pictures of a batch, one by one
        if any(is_bad(o) for o in seen):
            raise error
        return real(*args, **how)

    monkeypatch.setattr(batch, where, failing)
    report = edit_files(
        pipe, sorted(folder.glob("[0-4].*")), ["Male=with"], tmp_path / "out", batch_size=4, num_inference_steps=1
    )
    assert [Path(r["file"]).stem for r in report.rows] == list("01234") and [
        Path(r["file"]).name for r in report.failed
    ] == ["2.webp"]
    said = report.failed[0]["error"]
    assert (
        "\n" not in said
        and "2.webp" in said
        and (kind in (OSError, ValueError, UnicodeEncodeError) or kind.__name__ in said)
    )
    assert json.loads((tmp_path / "out" / "edits.json").read_text())["files"] == report.rows
    assert set(os.listdir(tmp_path / "out")) == {f"{i}_{k}.png" for i in "0134" for k in ("edited", "strip")} | {
        "edits.json"
    }


def test_a_batch_that_is_too_large_is_edited_one_by_one(pipe, folder, tmp_path, monkeypatch):
    real, seen, files = batch._edit_some, [], sorted(folder.glob("[0-4].*"))

    def small(pipe, images, seeds, *rest):
        seen.append((len(images), list(seeds)))
        if len(images) > 1:
            raise torch.OutOfMemoryError("too large")
        return real(pipe, images, seeds, *rest)

    whole = edit_files(pipe, files, "Male=with", tmp_path / "whole", seed=7, num_inference_steps=2, x_T="random")
    monkeypatch.setattr(batch, "_edit_some", small)
    single = edit_files(pipe, files, "Male=with", tmp_path / "single", seed=7, num_inference_steps=2, x_T="random")
    assert [n for n, _ in seen] == [5, 1, 1, 1, 1, 1] and [s for _, s in seen[1:]] == [[7 + i] for i in range(5)]
    for a, b in zip(whole.done, single.done):
        assert (load_image(whole.out / a["edited"]) - load_image(single.out / b["edited"])).abs().max() < 2.01 / 127.5


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_stopped_within_a_batch_the_report_is_there(pipe, folder, tmp_path, monkeypatch, error):
    real = batch.save_image

    def stop(x, path, **how):
        if path.name == "3_strip.png":
            raise error
        return real(x, path, **how)

    monkeypatch.setattr(batch, "save_image", stop)
    with pytest.raises(error):
        edit_files(pipe, sorted(folder.glob("[0-4].*")), None, tmp_path / "out", batch_size=5, num_inference_steps=1)
    rows = json.loads((tmp_path / "out" / "edits.json").read_text())["files"]
    assert [Path(r["file"]).stem for r in rows] == ["0", "1", "2"]
    assert set(os.listdir(tmp_path / "out")) == {f"{i}_{k}.png" for i in "012" for k in ("edited", "strip")} | {
        "edits.json"
    }


def test_what_is_wrong_with_all_files_is_said_once(pipe, styled, folder, tmp_path):
    files = [folder / "0.png"]
    for how, words in (
        (dict(num_inference_steps=0), "num_inference_steps"),
        (dict(num_inference_steps=10**6), "num_inference_steps"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(seed=2**63), "out of range"),
        (dict(seed="x"), "whole number"),
    ):
        refused(lambda: edit_files(pipe, files, None, tmp_path / "out", **how), words)
    soft = [Edit("Male", "with", mask=torch.full((SIZE, SIZE), 0.5))] * 12
    refused(lambda: edit_files(pipe, files, soft, tmp_path / "out"), "Call twice")
    refused(
        lambda: edit_files(styled, files, Edit("Male", "with", mask=upper.expand(2, -1, -1)), tmp_path / "out"),
        "one for all",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("names", [["../evil_edited.png", "/etc/x_edited.png"], ["a_edited.png"]])
def test_a_record_speaks_only_of_files_beside_it(tmp_path, names):
    (tmp_path / "edits.json").write_text(json.dumps({"files": [{"edited": n} for n in names]}))
    assert own_products(tmp_path) == (
        {"a_edited.png", "a_strip.png", "a_compare.png"} if names == ["a_edited.png"] else set()
    )


def test_join_images(x):
    assert torch.equal(join_images(x)[:, :, SIZE + 2 : 2 * SIZE + 2], x[1]) and join_images(x[:1]).shape == x[0].shape


# ---- styles

glasses = lambda **how: Edit("Eyeglasses", "with", **how)
upper = torch.zeros(SIZE, SIZE)
upper[: SIZE // 2] = 1


@pytest.fixture(autouse=True)
def no_words_about_references():
    "Random faces wear nothing: what is said of it has a test of its own."
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*does not look like")
        yield


@pytest.mark.parametrize(
    "text,edit",
    [
        ("Eyeglasses=with:ref=her.png", glasses(reference="her.png")),
        ("Eyeglasses=with:seed=3:gain=0.8:mask=m.png", glasses(seed=3, gain=0.8, mask="m.png")),
        (r"Eyeglasses=with:ref=C:\faces\her own.png:gain=2", glasses(reference=r"C:\faces\her own.png", gain=2)),
        ("Eyeglasses=with:ref=a:b.png:mask=/x/y:z.png", glasses(reference="a:b.png", mask="/x/y:z.png")),
        ("Eyeglasses=with:seed=1,2,-3", glasses(seed=[1, 2, -3])),
        ("Eyeglasses=with:method=direction", glasses(method="direction")),
    ],
)
def test_styles_in_words_and_json(text, edit):
    assert (
        Edit.parse(text) == edit
        and str(edit) == text
        and Edit.from_dict(json.loads(json.dumps(edit.to_dict()))) == edit
    )
    assert (
        hash(edit) == hash(Edit.parse(text))
        and edit != glasses()
        and glasses(reference=Path("her.png")) == glasses(reference="her.png")
    )


def test_what_has_no_words(styled, refs):
    code = styled.reference_style(refs, "Eyeglasses", "with")
    for e in (glasses(reference=refs), glasses(style=code), glasses(mask=upper)):
        assert "<" in str(e) and e == e and e != glasses()
        refused(lambda: e.to_dict(), "JSON cannot hold")
    assert glasses(style=code) == glasses(style=code) and glasses(style=code) != glasses(style=code[:1])


@pytest.mark.parametrize(
    "how,contains",
    [
        (dict(reference="a.png", seed=3), ("reference and seed", "one source")),
        (dict(seed=1, method="direction"), ("seed and method",)),
        (dict(seed="x"), ("not a whole number",)),
        (dict(seed=1.5), ("not a whole number",)),
        (dict(style=3), ("a int came as a style",)),
        (dict(reference="global_direction"), ("method='global_direction'",)),
        (dict(method="latent"), ("Known: global_direction",)),
    ],
)
def test_edits_that_contradict_themselves(how, contains):
    refused(lambda: glasses(**how), *contains)


@pytest.mark.parametrize(
    "text,contains",
    [
        ("A=b:ref=x:ref=y", "twice"),
        ("A=b:seed=x", "whole number"),
        ("A=b:rfe=x", "Did you mean 'ref'?"),
        ("A=b:style=x", "option"),
        ("A=b:ref=", "name=value"),
    ],
)
def test_words_of_styles_that_are_no_edit(text, contains):
    refused(lambda: Edit.parse(text), contains)


def test_dicts_that_are_no_edit(pipe):
    refused(lambda: pipe.check_edits({"tag": "Male", "value": "with", "gian": 2}), "Did you mean 'gain'?")
    refused(lambda: pipe.check_edits({"tag": "Male"}), "has no value")


def test_edits_of_one_call_that_contradict_each_other(styled, x):
    refused(lambda: styled(x, ["HairColor=blond", "HairColor=black"]), "both blond and black")
    refused(
        lambda: styled.edit(styled.encode(x), ["Male=with:gain=0.5", "Young=with", "Male=without"]),
        "Male shall be both",
    )
    refused(lambda: styled(x, [Edit("HairColor", "blond", mask=upper), "HairColor=black"]), "give each its mask")
    assert (
        len(styled.check_edits([Edit("HairColor", "blond", mask=upper), Edit("HairColor", "black", mask=1 - upper)]))
        == 2
        and len(styled.check_edits(["Male=with:gain=0.5"] * 2)) == 2
    )


def test_one_style_edit_is_the_formula(styled, x, refs):
    z, code = styled.encode(x), styled.reference_style(refs, "Eyeglasses", "with")
    for g in (1.0, 0.9, -0.5):
        want = z + g * (styled.modulate(x, "Eyeglasses", "with", code) - z)
        assert torch.allclose(styled.edit(z, glasses(style=code, gain=g), x=x), want, atol=1e-5) and torch.allclose(
            styled.edit(z, glasses(reference=refs, gain=g), feats=styled.features(x)), want, atol=1e-5
        )
    assert (styled.modulate(x, "Eyeglasses", "with", code) - z).abs().max() > 1e-2


def test_a_chain_moves_features_and_code(styled, x, refs):
    g, h = 0.9, 0.7
    F, head = styled.features(x), styled.autoencoder.head
    z = styled.encode(x)
    a, b = (
        styled.reference_style(refs, "Eyeglasses", "with"),
        styled.latent_style(x, "HairColor", "blond", generator=make_generator([5] * 3)),
    )
    with torch.no_grad():
        F1 = F + g * (styled.modulation(F, "Eyeglasses", "with", a) - F)
        z1 = z + g * (head(styled.modulation(F, "Eyeglasses", "with", a)) - head(F))
        z2 = styled.edit(z1, "Male=with")
        z3 = z2 + h * (head(styled.modulation(F1, "HairColor", "blond", b)) - head(F1))
    out = styled(x, [glasses(reference=refs, gain=g), "Male=with", Edit("HairColor", "blond", seed=5, gain=h)], 2)
    for got, want in zip(out.zs, (z, z1, z2, z3)):
        assert torch.allclose(got, want, atol=1e-4)
    assert (
        out.styles[1] is None
        and near(out.styles[0].vector, a.vector)
        and torch.allclose(out.styles[2].tokens, b.tokens, atol=1e-6)
    )


def test_gain_0_is_the_identity_to_the_bit(styled, x, refs):
    z = styled.encode(x)
    for how in (dict(reference=refs), dict(seed=1), dict(method="global_direction"), dict(method="image_specific")):
        assert torch.equal(styled.edit(z, glasses(gain=0, **how), x=x), z)
    assert near(
        styled(x, glasses(reference=refs, gain=0), 3, output_type="pt").images,
        styled(x, None, 3, output_type="pt").images,
    )


def test_style_networks_change_nothing_about_the_rest(pipe, styled, x):
    for e in (None, "Male=with", "Male=with:method=image_specific"):
        assert near(pipe(x, e, 2, output_type="pt").images, styled(x, e, 2, output_type="pt").images)


def test_a_batch_is_its_images_one_by_one(styled, x, refs):
    for edits in (
        lambda i: glasses(reference=refs[i]),
        lambda i: glasses(seed=4),
        lambda i: [glasses(reference=refs[i]), Edit("HairColor", "blond", seed=7), "Male=with"],
        lambda i: glasses(reference=refs[i], mask=upper),
    ):
        both = styled(x, edits(slice(None)), 3, output_type="pt")
        for i in range(3):
            one = styled(x[i : i + 1], edits(slice(i, i + 1)), 3, output_type="pt")
            assert torch.allclose(both.images[i], one.images[0], atol=2e-4) and torch.allclose(
                both.z_edit[i], one.z_edit[0], atol=1e-4
            )


def test_one_reference_for_all_or_one_for_each(styled, x, refs, tmp_path):
    from latref_nb.core import save_image

    file = save_image(refs[0], tmp_path / "her.png")
    z = styled.encode(x)
    one, path = styled.edit(z, glasses(reference=refs[:1]), x=x), styled.edit(z, f"Eyeglasses=with:ref={file}", x=x)
    assert torch.allclose(
        one, styled.edit(z, glasses(reference=refs[:1].expand(3, -1, -1, -1)), x=x), atol=1e-5
    ) and torch.allclose(one, path, atol=2e-2)
    assert torch.allclose(
        styled.edit(z, glasses(reference=[str(file), refs[1], Image.open(file)]), x=x)[1],
        styled.edit(z, glasses(reference=refs), x=x)[1],
        atol=1e-4,
    )
    refused(lambda: styled(x, glasses(reference=refs[:2])), "2 references came for 3 images", "one for each")
    refused(lambda: styled(x, glasses(seed=[1, 2])), "2 seeds came for 3 images")
    refused(
        lambda: styled(x, glasses(style=styled.reference_style(refs[:2], "Eyeglasses", "with"))), "2 styles came for 3"
    )
    refused(lambda: styled(x, glasses(reference=tmp_path / "gone.png")), "gone.png", exc=ImageError)


def test_seeds_decide(styled, x):
    z = styled.encode(x)
    a, b, c = (styled.edit(z, glasses(seed=s), x=x) for s in (1, 1, 2))
    assert near(a, b) and (a - c).abs().max() > 1e-4
    assert torch.allclose(styled.edit(z, glasses(seed=[1, 2, 1]), x=x), torch.stack([a[0], c[1], a[2]]), atol=1e-5)


def test_noise_given_or_drawn(styled, x):
    xi = styled.mapper.draw_noise(3, make_generator([1] * 3))
    assert near(
        styled.latent_style(x, "Male", "with", xi).vector,
        styled.latent_style(x, "Male", "with", generator=make_generator([1] * 3)).vector,
    )


def test_what_style_edits_need(styled, x, refs):
    z = styled.encode(x)
    code = styled.reference_style(refs, "Male", "with")
    refused(lambda: styled.edit(z, Edit("Male", "with", style=code)), "give x=images")
    refused(lambda: styled.edit(z, glasses(seed=1), feats=styled.features(x)), "give x=images")
    assert styled.edit(z, "Male=with").shape == z.shape


def test_who_has_the_value_is_left_alone_by_noise_and_restyled_by_references(x, refs):
    eager = tiny_pipeline(styles=True, sure=0.0)
    z = eager.encode(x)
    assert torch.equal(eager.edit(z, glasses(seed=1), x=x), z) and not torch.equal(
        eager.edit(z, glasses(seed=1, gain=-1), x=x), z
    )
    assert (eager.edit(z, glasses(reference=refs), x=x) != z).any(1).all()


def test_a_reference_without_the_value_is_told(styled, x, refs, tmp_path):
    chances = styled.read(styled.encode(refs))["Eyeglasses"][:, 1]
    value = "with" if chances.min() < 0.5 else "without"
    p = chances if value == "with" else 1 - chances
    i = int(p.argmin())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(
            lambda: styled(x, Edit("Eyeglasses", value, reference=refs[i])),
            f"does not look like Eyeglasses={value}",
            f"gives it {p[i]:.2f}",
            exc=UserWarning,
        )


def test_styles_of_another_model(styled, x):
    refused(lambda: styled(x, glasses(style=StyleCode(torch.zeros(1, 7), torch.zeros(1, 2, 8)))), "d_s = 7")
    refused(lambda: styled(x, glasses(style=StyleCode(torch.zeros(1, 6), torch.zeros(1, 2, 9)))), "d_w = 9")


# ---- checkpoints with less, or more


def test_saved_and_loaded_with_styles(styled, x, refs, tmp_path):
    styled.save_pretrained(tmp_path / "m")
    back = LatRefPipeline.from_pretrained(tmp_path / "m")
    back.set_progress_bar_config(disable=True)
    assert set(os.listdir(tmp_path / "m")) == {
        "autoencoder",
        "linear",
        "mlp",
        "modulation",
        "extractor",
        "mapper",
        "model_index.json",
    }
    for name, m in styled.parts.items():
        theirs = back.parts[name].state_dict()
        assert all(torch.equal(v, theirs[k]) for k, v in m.state_dict().items())
    edits = [glasses(reference=refs), Edit("Male", "with", seed=2)]
    assert near(back(x, edits, 2, output_type="pt").images, styled(x, edits, 2, output_type="pt").images)


def test_half_precision_storage(x, refs, tmp_path):
    a = tiny_pipeline(styles=True, sure=2)
    want = a(x, glasses(reference=refs), 2, output_type="pt").images
    for k, m in a.parts.items():
        if k not in a.classifiers:
            m.half()
    a.save_pretrained(tmp_path / "m")
    back = LatRefPipeline.from_pretrained(tmp_path / "m")
    back.set_progress_bar_config(disable=True)
    assert (
        back.modulation.dtype == back.autoencoder.dtype == torch.float32
        and (back(x, glasses(reference=refs), 2, output_type="pt").images - want).abs().max() < 0.1
    )
    assert (
        back.to(torch.bfloat16).modulation.dtype == torch.float32
        and back(x, glasses(seed=1), 2, output_type="pt").images.dtype == torch.float32
    )


def test_without_style_networks(pipe, x, refs):
    assert pipe.modulation is None and pipe(x, "Male=with", 1).styles == [None]
    refused(
        lambda: pipe(x, glasses(reference=refs)),
        "Eyeglasses=with:ref=<Tensor> needs modulation and extractor",
        "latref_train styles",
    )
    refused(lambda: pipe(x, glasses(seed=1)), "modulation and mapper")
    refused(lambda: pipe.reference_style(refs, "Male", "with"), "needs modulation and extractor")
    refused(lambda: pipe.latent_style(x, "Male", "with"), "mapper")
    refused(lambda: pipe.modulate(x, "Male", "with", None), "needs modulation")


def test_without_classifiers(styled, x, refs, tmp_path):
    bare = LatRefPipeline(styled.autoencoder, modulation=styled.modulation, extractor=styled.extractor)
    bare.save_pretrained(tmp_path / "m")
    bare = LatRefPipeline.from_pretrained(tmp_path / "m")
    bare.set_progress_bar_config(disable=True)
    assert (
        set(bare.parts) == {"autoencoder", "modulation", "extractor"}
        and bare.tags == CELEBA_TAGS
        and bare.classifiers == {}
    )
    out = bare(x, glasses(reference=refs), 2, output_type="pt")
    assert (
        near(out.images, styled(x, glasses(reference=refs), 2, output_type="pt").images)
        and out.probabilities is None
        and bare.read(out.z) is None
    )
    refused(lambda: bare(x, "Male=with"), "needs linear", "Edit by a reference")
    refused(lambda: bare(x, "Male=with:seed=1"), "needs mapper")


def test_files_without_classifiers_and_with_references(styled, folder, refs, tmp_path):
    bare = LatRefPipeline(styled.autoencoder, modulation=styled.modulation, extractor=styled.extractor)
    bare.set_progress_bar_config(disable=True)
    report = edit_files(
        bare,
        [folder / "0.png", folder / "1.jpg"],
        [f"Eyeglasses=with:ref={folder / '2.webp'}:mask={folder / '3.bmp'}"],
        tmp_path / "out",
        num_inference_steps=1,
    )
    assert [set(r) for r in report.rows] == [{"file", "edited", "strip"}] * 2 and json.loads(report.path.read_text())[
        "edits"
    ][0].startswith("Eyeglasses=with:ref=")
    refused(
        lambda: edit_files(styled, [folder / "0.png"], f"Male=with:ref={folder / 'gone.png'}", tmp_path / "new"),
        "gone.png",
        exc=ImageError,
    )
    refused(lambda: edit_files(styled, [folder / "0.png"], glasses(reference=refs), tmp_path / "new"), "one for all")
    refused(
        lambda: edit_files(styled, [folder / "0.png"], glasses(seed=1, mask=torch.zeros(SIZE, SIZE)), tmp_path / "new"),
        "is empty",
    )
    assert not (tmp_path / "new").exists()


def test_style_parts_must_fit(styled, pipe):
    ae, mod, ext, m = (styled.components[k] for k in ("autoencoder", "modulation", "extractor", "mapper"))
    few = TagSet(list(CELEBA_TAGS)[:2])
    make = lambda **how: LatRefPipeline(ae, **how)
    refused(lambda: make(), "edits nothing")
    refused(lambda: make(extractor=ext), "without a modulation")
    refused(lambda: make(modulation=mod, mapper=LatentMapper(few, SIZE, style_dim=6, token_dim=8)), "different tags")
    refused(lambda: make(modulation=StyleModulation(CELEBA_TAGS, 31, width=16, blocks=1)), "31 features", "has 32")
    refused(
        lambda: make(modulation=mod, mapper=LatentMapper(CELEBA_TAGS, 64, style_dim=6, token_dim=8)),
        "looks at 64 pixels",
    )
    refused(
        lambda: make(modulation=mod, mapper=LatentMapper(CELEBA_TAGS, SIZE, style_dim=9, token_dim=8)),
        "sizes 9 and 8",
        "takes 6 and 8",
    )
    refused(lambda: make(linear=pipe.linear, modulation=StyleModulation(few, 32, width=16, blocks=1)), "different tags")


@pytest.mark.parametrize("part", ["modulation", "extractor", "mapper"])
def test_damaged_style_networks(styled, tmp_path, part):
    styled.save_pretrained(tmp_path / "m")
    weights = tmp_path / "m" / part / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:900])
    refused(lambda: LatRefPipeline.from_pretrained(tmp_path / "m"), str(tmp_path / "m" / part), exc=CheckpointError)
    shutil.rmtree(tmp_path / "m" / part)
    refused(lambda: LatRefPipeline.from_pretrained(tmp_path / "m"), str(tmp_path / "m"), exc=CheckpointError)


# ---- masks


def test_masks_of_every_kind(tmp_path):
    arr = upper.numpy()
    Image.fromarray((arr * 255).astype(np.uint8)).save(tmp_path / "m.png")
    for m in (
        upper,
        upper.bool(),
        upper[None],
        upper[None, None],
        arr,
        arr.astype(bool),
        (arr * 255).astype(np.uint8),
        arr.astype(np.uint8),
        Image.open(tmp_path / "m.png"),
        str(tmp_path / "m.png"),
    ):
        assert torch.allclose(load_mask(m, SIZE), upper[None, None], atol=1e-6), type(m)
    assert load_mask(upper.expand(3, -1, -1), SIZE).shape == (3, 1, SIZE, SIZE)


@pytest.mark.parametrize(
    "mask,contains",
    [
        (torch.ones(SIZE, SIZE + 8), f"is {SIZE + 8}×{SIZE}"),
        (torch.ones(3, 4, SIZE, SIZE), "has shape"),
        (torch.zeros(SIZE, SIZE), "is empty"),
        (torch.ones(SIZE, SIZE) * 2, "range over [2, 2]"),
        (torch.full((SIZE, SIZE), float("nan")), "range over"),
        (torch.stack([upper, upper * 0, upper]), "empty for image 1"),
        (torch.ones(2, SIZE, SIZE), "2 masks came for 3 images"),
    ],
)
def test_masks_that_cannot_be_used(styled, x, mask, contains):
    refused(lambda: styled(x, glasses(seed=1, mask=mask), 1), contains)


def test_mask_files_that_are_none(styled, x, tmp_path):
    (tmp_path / "letter.png").write_text("Dear")
    refused(lambda: styled(x, glasses(mask=tmp_path / "letter.png")), "not an image", exc=ImageError)
    refused(lambda: styled(x, glasses(mask="hair")), "class_mask(masks, 'hair')")
    refused(lambda: styled(x, glasses(mask="gone.png")), "no such file", exc=ImageError)


def test_class_masks():
    masks = SynthFaces(4, SIZE, 5).masks([0, 1])
    own = class_mask(masks, "hair")
    assert torch.equal(own, masks[:, CLASSES.index("hair")].float()) and torch.equal(
        class_mask(masks[0], ["hair", "skin"]),
        (masks[0, CLASSES.index("hair")] | masks[0, CLASSES.index("skin")]).float(),
    )
    refused(lambda: class_mask(masks, "hairs"), "Did you mean 'hair'?")
    refused(lambda: class_mask(masks[:, :5], "hair"), "one layer for each class")


@pytest.mark.parametrize("inversion", ["ddim", "fixed_point", "dpmsolver++"])
def test_outside_a_mask_the_source_stays(x, refs, inversion):
    p = tiny_pipeline(styles=True, sure=2, inversion=inversion)
    out = p(x, glasses(reference=refs, mask=upper), 4, output_type="pt", return_trajectory=True)
    assert (
        torch.equal(out.images[:, :, SIZE // 2 :], x[:, :, SIZE // 2 :])
        and (out.images - x)[:, :, : SIZE // 2].abs().max() > 1e-2
    )
    assert (
        out.rendered.xs.shape == (5, 3, 3, SIZE, SIZE)
        and out.rendered.x0s.shape == (4, 3, 3, SIZE, SIZE)
        and torch.equal(out.rendered.xs[-1].clamp(-1, 1), out.images)
    )


def test_outside_a_mask_at_every_step(styled, x, refs):
    out = styled(x, glasses(reference=refs, mask=upper), 4, output_type="pt", return_trajectory=True)
    levels = out.inverted.timesteps
    for t, xt in zip(out.rendered.timesteps[1:], out.rendered.xs[1:]):
        assert torch.equal(xt[..., SIZE // 2 :, :], out.inverted.xs[levels.index(max(t, 0))][..., SIZE // 2 :, :]), t


def test_masks_with_noise_that_is_given(styled, x, refs):
    noise = torch.randn(x.shape, generator=make_generator(3))
    for how in (dict(x_T=noise), dict(x_T="random", generator=make_generator(3))):
        assert torch.equal(
            styled(x, glasses(reference=refs, mask=upper), 3, output_type="pt", **how).images[:, :, SIZE // 2 :],
            x[:, :, SIZE // 2 :],
        )


def test_a_mask_of_ones_is_no_mask(styled, x, refs):
    a, b = (
        styled(x, [glasses(reference=refs, mask=m), "Male=with"], 3, output_type="pt")
        for m in (torch.ones(SIZE, SIZE), None)
    )
    assert torch.allclose(a.images, b.images, atol=1e-5) and torch.allclose(a.z_edit, b.z_edit, atol=1e-5)


def test_an_edit_shows_in_its_own_mask_only(styled, x, refs):
    "Below, only the second edit is left: the picture must not depend on the first there, but for what the network carries across."
    masks = [upper[None, None], None]
    assert [sorted(c) for c, _ in edit_regions(masks)] == [[0, 1], [1]] and [
        sorted(c) for c, _ in edit_regions([upper[None, None], 1 - upper[None, None]])
    ] == [[0], [1]]
    soft = torch.rand(1, 1, 4, 4, generator=make_generator(0))
    parts = edit_regions([soft, None, soft.flip(3)])
    assert torch.allclose(sum(w for _, w in parts), torch.ones(1, 1, 4, 4)) and len(parts) == 4
    one, alone = (
        [styled(x, e, n, output_type="pt").images for n in (1, 3)]
        for e in ([glasses(reference=refs, mask=upper), "Male=with"], "Male=with")
    )
    assert (
        torch.allclose(one[0][:, :, SIZE // 2 :], alone[0][:, :, SIZE // 2 :], atol=1e-5)
        and (one[1] - alone[1])[:, :, : SIZE // 2].abs().max() > 1e-3
    )


def by_hand(masks):
    "Every set of edits, looked at one by one: what `edit_regions` must give."
    out = []
    for chosen in itertools.product((True, False), repeat=len(masks)):
        w = torch.ones(1, 1, 1, 1)
        for m, inside in zip(masks, chosen):
            w = w * ((m if inside else 1 - m) if m is not None else float(inside))
        if w.max() > 0:
            out.append((frozenset(i for i, inside in enumerate(chosen) if inside), w))
    return out


def some_masks(kind, n):
    "n masks that overlap not at all, a little, softly, or wholly; some for every place, one for each of two images."
    g = make_generator(n)
    hard = lambda: (torch.rand(1, 1, 6, 6, generator=g) > 0.7).float()
    stripes = [torch.eye(6)[i % 6].expand(6, 6)[None, None].clone() for i in range(n)]
    return {
        "stripes": stripes,
        "hard": [hard() for _ in range(n)],
        "soft": [torch.rand(1, 1, 6, 6, generator=g) for _ in range(n)],
        "same": stripes[:1] * n,
        "none": [None] * n,
        "some": [None if i % 2 else hard() for i in range(n)],
        "two": [torch.cat([hard(), hard()]) for _ in range(n)],
    }[kind]


@pytest.mark.parametrize("kind", ["stripes", "hard", "soft", "same", "none", "some", "two"])
@pytest.mark.parametrize("n", [0, 1, 3, 5])
def test_regions_are_those_that_occur(kind, n):
    got, want = edit_regions(some_masks(kind, n)), by_hand(some_masks(kind, n))
    assert [c for c, _ in got] == [c for c, _ in want] and all(
        torch.equal(a.expand(b.shape), b) for (_, a), (_, b) in zip(got, want)
    )


@pytest.mark.parametrize("kind", ["stripes", "same", "none"])
def test_many_masks_cost_as_many_regions(kind):
    assert len(edit_regions(some_masks(kind, 200))) <= 65


@pytest.mark.parametrize("kind,n", [("soft", 7), ("soft", 300)])
def test_masks_that_meet_in_too_many_ways_are_refused(pipe, x, kind, n):
    refused(lambda: edit_regions(some_masks(kind, n)), "more than 64 ways", "Call twice")


def test_twelve_masked_edits_are_quick(pipe, x):
    "Twelve places, thirteen renderings of two steps, where there were 4096."
    edits = [
        Edit("Male" if i % 2 else "Young", "with", mask=(torch.arange(SIZE) // 2 == i).float().expand(SIZE, -1))
        for i in range(12)
    ]
    out = pipe(x[:1], edits, 2, output_type="pt")
    assert torch.equal(out.images[..., 24:], x[:1, ..., 24:]) and len(edit_regions(pipe._masks(edits, 1))) == 13


def test_callbacks_see_the_blend(styled, x, refs):
    seen = []

    def note(p, i, t, state):
        seen.append({k: tuple(state[k].shape) for k in ("xt", "x0", "z")})

    edits = [glasses(reference=refs, mask=upper), "Male=with"]
    a = styled(x, edits, 3, output_type="pt", callback_on_step_end=note).images
    assert seen == [dict(xt=(3, 3, SIZE, SIZE), x0=(3, 3, SIZE, SIZE), z=(3, Z))] * 3
    b = styled(x, edits, 3, output_type="pt", callback_on_step_end=lambda p, i, t, s: {"z": s["z"] + 1}).images
    c = styled(x, edits, 3, output_type="pt", callback_on_step_end=lambda p, i, t, s: {"xt": s["xt"] * 0}).images
    assert not torch.equal(a, b) and (c.abs() < 1e-6).all()


# ---- between two edits


def test_interpolation_ends_in_the_edits(styled, x, refs):
    for a, b in (
        (glasses(reference=refs[:1]), glasses(seed=2, gain=0.5)),
        ("HairColor=black", Edit("HairColor", "blond", seed=1)),
        (None, glasses(seed=1)),
        (glasses(reference=refs, mask=upper), glasses(seed=2, mask=upper)),
        (["Male=with", glasses(seed=1)], "Young=without"),
    ):
        out = styled.interpolate(x, a, b, 3, 3, output_type="pt")
        images = out.images.unflatten(0, (3, 3))
        for k, end in ((0, a), (2, b)):
            assert torch.allclose(images[:, k], styled(x, end, 3, output_type="pt").images, atol=2e-4), (a, b, k)
        assert (
            out.z_edit.shape == (9, Z)
            and (images[:, 1] - images[:, 0]).abs().max() > 1e-4
            and out.source.shape == (9, 3, SIZE, SIZE)
        )


def test_styles_of_one_value_are_mixed_as_codes(styled, x, refs):
    out = styled.interpolate(x, glasses(reference=refs[:1]), glasses(reference=refs[1:2], gain=0.5), 5, 1)
    a, b = (styled.reference_style(refs[i : i + 1], "Eyeglasses", "with") for i in (0, 1))
    assert torch.allclose(out.styles[0].vector[1], a.mix(b, 0.25).vector[0], atol=1e-5) and len(out.images) == 15
    assert torch.allclose(
        out.z_edit[7:8], styled.edit(out.z[7:8], glasses(style=a.mix(b, 0.5), gain=0.75), x=x[1:2]), atol=1e-4
    )
    assert styled.interpolate(x, "Male=with", "Male=with:gain=2", 2, 1).styles == []


def test_interpolation_refuses(styled, x):
    refused(lambda: styled.interpolate(x, None, "Male=with", 1), "n=2")
    refused(lambda: styled.interpolate(x, None, "Male=wiht"), "Did you mean 'with'?")
    refused(lambda: styled.interpolate(x, None, "Male=with", output_type="x"), "pil, pt, np")


def test_interpolation_fades_a_mask_in(styled, x):
    out = styled.interpolate(x, glasses(seed=1, mask=upper), glasses(seed=1), 3, 3, output_type="pt").images.unflatten(
        0, (3, 3)
    )
    below = (out - x[:, None])[..., SIZE // 2 :, :].abs().flatten(2).amax(2)
    assert (below[:, 0] == 0).all() and (below[:, 1] > 0).all() and (below[:, 2] > 0).all()


def test_interpolated_codes_without_rendering(styled, x):
    ends = (glasses(seed=1), glasses(seed=2))
    codes = styled.interpolate(x, *ends, 3, 2, output_type="latent")
    assert torch.equal(codes.images, codes.z_edit) and codes.images.shape == (9, Z)
    assert near(codes.z_edit, styled.interpolate(x, *ends, 3, 2).z_edit)


# ---- how often the networks run


def passes(pipe, work):
    "How many images run through the encoder, its head, and the extractor's encoder."
    counts, encoder = dict(encoder=0, head=0, extractor=0), pipe.autoencoder.encoder
    places = dict(encoder=encoder.conv_in, head=encoder.to_z)
    if pipe.extractor is not None:
        places["extractor"] = pipe.extractor.encoder.conv_in

    def count(name):
        return lambda module, given, out: counts.update({name: counts[name] + len(out)})

    hooks = [m.register_forward_hook(count(name)) for name, m in places.items()]
    try:
        work()
    finally:
        for h in hooks:
            h.remove()
    return tuple(counts.values())


a_style = lambda p, refs, **how: glasses(style=p.reference_style(refs, "Eyeglasses", "with"), **how)
blond = lambda **how: Edit("HairColor", "blond", seed=5, **how)


@pytest.mark.parametrize(
    "words,work,want",
    [
        ("no edit", lambda p, x, r: lambda: p(x, None, 1), (3, 3, 0)),
        ("a direction", lambda p, x, r: lambda: p(x, "Male=with", 1), (3, 3, 0)),
        ("noise", lambda p, x, r: lambda: p(x, glasses(seed=1), 1), (3, 6, 0)),
        ("a style at hand", lambda p, x, r: (lambda e: lambda: p(x, e, 1))(a_style(p, r)), (3, 6, 0)),
        ("a reference, which is read too", lambda p, x, r: lambda: p(x, glasses(reference=r), 1), (6, 9, 3)),
        ("one reference for all", lambda p, x, r: lambda: p(x, glasses(reference=r[:1]), 1), (4, 7, 1)),
        ("two styles", lambda p, x, r: lambda: p(x, [glasses(seed=1), blond()], 1), (3, 12, 0)),
        ("direction between", lambda p, x, r: lambda: p(x, [glasses(seed=1), "Male=with", blond()], 1), (3, 12, 0)),
        ("two pictures each", lambda p, x, r: lambda: p(x, glasses(seed=1), 1, num_images_per_prompt=2), (3, 9, 0)),
        (
            "two pictures each, by reference",
            lambda p, x, r: lambda: p(x, glasses(reference=r), 1, num_images_per_prompt=2),
            (6, 12, 3),
        ),
        (
            "apart from each other",
            lambda p, x, r: lambda: p(x, [glasses(seed=1, mask=upper), blond(mask=1 - upper)], 1),
            (3, 15, 0),
        ),
        (
            "between styles",
            lambda p, x, r: lambda: p.interpolate(x, glasses(seed=1), glasses(seed=2), 4, 1),
            (3, 15, 0),
        ),
        ("between others", lambda p, x, r: lambda: p.interpolate(x, "Male=with", glasses(seed=2), 4, 1), (3, 6, 0)),
        ("inversion", lambda p, x, r: lambda: p.invert(x, num_inference_steps=1), (3, 3, 0)),
        ("inversion under a code", lambda p, x, r: (lambda z: lambda: p.invert(x, z, 1))(p.encode(x)), (0, 0, 0)),
        (
            "modulation",
            lambda p, x, r: (lambda e: lambda: p.modulate(x, e.tag, e.value, e.style))(a_style(p, r)),
            (3, 3, 0),
        ),
        ("edit of an image", lambda p, x, r: lambda: p.edit(p.encoded(x), glasses(seed=1)), (3, 6, 0)),
        ("edit of codes", lambda p, x, r: (lambda o: lambda: p.edit(o, glasses(seed=1)))(p.encoded(x)), (0, 3, 0)),
    ],
    ids=lambda o: o if isinstance(o, str) else None,
)
def test_the_source_is_encoded_once(styled, x, refs, words, work, want):
    "One pass of encoder and head for each source; the head once for each F′, and once for each F that a style has moved."
    assert passes(styled, work(styled, x, refs)) == want


def test_a_reference_is_not_read_where_nobody_asks(styled, x, refs):
    bare = LatRefPipeline(styled.autoencoder, modulation=styled.modulation, extractor=styled.extractor)
    bare.set_progress_bar_config(disable=True)
    assert passes(bare, lambda: bare(x, glasses(reference=refs), 1)) == (3, 6, 3)


def test_encoded_images_are_edited_as_images_are(styled, x, refs):
    known = styled.encoded(x)
    assert torch.equal(known.z, styled.encode(x)) and torch.equal(known.feats, styled.features(x))
    for edits in (glasses(reference=refs), [glasses(seed=1), "Male=with", blond()], "Male=with", ()):
        assert near(styled.edit(known, edits), styled.edit(known.z, edits, x=x))


def test_masks_for_each_of_several_images_and_pictures(styled, x):
    masks = np.stack([np.eye(SIZE), upper.numpy(), np.ones((SIZE, SIZE))])
    many = styled(x, glasses(seed=1, mask=masks), 2, num_images_per_prompt=2, output_type="pt").images
    for i in range(3):
        one = styled(x[i : i + 1], glasses(seed=2, mask=masks[i]), 2, output_type="pt").images
        assert torch.allclose(many[2 * i + 1], one[0], atol=1e-4)


# ---- one table, and names that have moved


def test_guidances_say_what_they_need():
    assert list(GUIDANCES) == ["reference", "seed", "style", "global_direction", "image_specific", *INVERTED]
    known = {name for g in GUIDANCES.values() for name in g.needs}
    assert known <= {*PARTS, "unet", "prompt_encoder"} and len({g.words for g in GUIDANCES.values()}) == len(GUIDANCES)
    assert {n for n, g in GUIDANCES.items() if g.settings} == {"global_direction", "image_specific"}


def test_everybody_reads_the_table(styled, pipe):
    from latref_nb import explore, metrics

    assert explore.guidances(styled) == [g.words for g in guidances_of(styled) if g.name != "style"]
    assert explore.guidances(pipe) == ["global direction", "image-specific direction"]
    assert metrics.NETS["latent"] == GUIDANCES["seed"].needs
    for name in GUIDANCES:
        if name in INVERTED:
            refused(lambda: styled.need(name), "prompted model")
        else:
            styled.need(name)
    no_linear = LatRefPipeline(pipe.autoencoder, mlp=pipe.mlp)
    refused(lambda: no_linear.need("global_direction", "this edit"), "this edit needs linear")


@pytest.mark.parametrize("given", ["strength", "generator", "held", "metrik"])
def test_what_is_given_with_each_edit_is_no_setting(pipe, given):
    for method in ("global_direction", "image_specific"):
        refused(lambda: LatRefPipeline(pipe.autoencoder, pipe.linear, pipe.mlp, options={method: {given: 1}}), given)


PUBLIC = """SOURCES EDIT_METHODS MOST_GAIN MOST_SEED WORDS EDIT_OPTIONS PARTS INDEX SETTINGS HUB NEEDS MOST_REGIONS
OUTPUT_TYPES REPORT PRODUCTS STRENGTHS Edit LatRefOutput check_how LatRefPipeline read_index shipped_pipelines class_mask
load_mask edit_regions Blend source_path join_images EditReport own_products edit_files encode_dataset fit_pipeline
load_part CheckpointError""".split()


@pytest.mark.parametrize("name", PUBLIC)
def test_names_stay_where_they_were(name):
    assert getattr(pipeline, name) is not None


def test_a_name_that_is_nowhere():
    with pytest.raises(AttributeError, match="latref_nb.pipeline.*edit_flies"):
        pipeline.edit_flies


def test_methods_are_there_when_the_pipeline_is_imported_alone():
    code = (
        "from latref_nb.pipeline import LatRefPipeline as P; import sys; assert 'latref_nb.batch' not in sys.modules; "
    )
    code += (
        "print(all(hasattr(P, n) for n in 'calibrate interpolate from_pretrained save_pretrained keep_mask'.split()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout == "True\n", ran.stderr


class Faces(torch.utils.data.Dataset):
    "Some random pictures with random labels."

    def __init__(self, n):
        self.x = torch.rand(n, 3, SIZE, SIZE, generator=make_generator(0)) * 2 - 1
        self.labels = torch.stack([torch.arange(n) % len(t) for t in CELEBA_TAGS], 1)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"image": self.x[i], "labels": self.labels[i], "index": i}


def test_codes_of_a_dataset(pipe):
    ds = Faces(10)
    z, labels = encode_dataset(pipe.autoencoder, ds, batch_size=4)
    assert torch.allclose(z, pipe.encode(ds.x), atol=1e-5) and torch.equal(labels, ds.labels)
    assert len(encode_dataset(pipe.autoencoder, ds, 7, batch_size=4)[0]) == 7


def test_calibration_reads_a_network_by_name(x):
    "A judge that knows the tags in other columns finds the same strengths; one that lacks a tag is refused."
    p, how = (
        tiny_pipeline(),
        dict(
            num_inference_steps=1,
            strengths=(1.0, 2.0),
            n=3,
            pairs=[("Male", "with")],
            methods=("global_direction",),
            precision="no",
        ),
    )

    class Reader:
        def __init__(self, tags):
            self.tags = tags

        def predict(self, images):
            return torch.stack(
                [
                    (images.mean((1, 2, 3)) * (CELEBA_TAGS.index(t.name) + 2)).abs().mul(50).long() % len(t)
                    for t in self.tags
                ],
                1,
            )

    faces = torch.rand(8, 3, SIZE, SIZE, generator=make_generator(4)) * 2 - 1

    def go(judge):
        return p.calibrate(faces, judge, **how)["global_direction"].rows

    turned = Reader(TagSet(list(CELEBA_TAGS)[::-1]))
    assert go(Reader(CELEBA_TAGS)) == go(turned) == go(turned.predict)
    refused(lambda: go(Reader(TagSet(list(CELEBA_TAGS)[:5]))), "the judge knows", "Male")


def test_parts_are_compared_by_names_and_values(pipe):
    bare = TagSet([Tag(t.name, t.values) for t in CELEBA_TAGS])  # the columns of CelebA do not matter to a network
    made = LatRefPipeline(pipe.autoencoder, pipe.linear, ValueClassifier(Z, bare, kind="mlp"))
    assert made.check_tags(bare) is made
    refused(
        lambda: LatRefPipeline(
            pipe.autoencoder, pipe.linear, ValueClassifier(Z, TagSet(list(CELEBA_TAGS)[::-1]), kind="mlp")
        ),
        "know different tags",
    )


def test_calibration_looks_at_decoded_pictures(x):
    p = tiny_pipeline()
    faces = Faces(12)
    seen = []

    def judge(images):
        seen.append(len(images))
        return torch.stack(
            [(images.mean((1, 2, 3)) > -9).long() * (torch.arange(len(images)) % len(t)) for t in CELEBA_TAGS], 1
        )

    found = p.calibrate(
        faces.x,
        judge,
        num_inference_steps=1,
        batch_size=5,
        strengths=(1.0, 2.0),
        n=3,
        pairs=[("Male", "with")],
        methods=("global_direction",),
    )
    row = found["global_direction"].rows[0]
    assert set(row) >= {"tag", "value", "strength", "target", "others"} and len(found["global_direction"].rows) == 2
    assert p.linear.strength("global_direction", "Male", "with") in (1.0, 2.0) and max(seen) <= 5
