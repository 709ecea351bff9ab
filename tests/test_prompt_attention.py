"Recording attention of diffusers' pipelines: by layer and by word, branches apart, nothing changed, nothing left behind."

import math

import numpy as np
import pytest
import torch
from latref_nb.attention import (
    attention_layers,
    attention_plan,
    attention_table,
    load_attention,
    overlay,
    part_table,
    record_attention,
    recordable_layers,
    save_attention,
    token_names,
)
from latref_nb.bases import Base
from latref_nb.faces import SynthFaces
from latref_nb.maps import AttentionMap, either, words_of
from latref_nb.prompted import PromptedPipeline, beside, prompted_scheduler, prompted_unet
from latref_nb.prompts import FacePrompt, PromptEncoder
from latref_nb.values import ddim_up

from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel  # isort: skip  (after latref_nb)
from diffusers.models.attention_processor import AttnProcessor  # isort: skip

LAYER = "unet.down.0.0.cross"


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def ours():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet, encoder = prompted_unet((16, 24, 32), dim=16), PromptEncoder(dim=16)
    pipe = PromptedPipeline(unet, encoder, prompted_scheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def faces():
    return SynthFaces(8, 64, seed=3)


@pytest.fixture(scope="module")
def prompt(faces):
    return FacePrompt.of_faces(faces, [0, 1])


SD = dict(
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    layers_per_block=2,
)


def tokenizer():
    "Letters, and a few pieces of words."
    from transformers import CLIPTokenizer

    letters, merges = "abcdefghijklmnopqrstuvwxyz", [("g", "l"), ("gl", "a"), ("s", "e"), ("se", "s</w>"), ("o", "n</w>")]
    pieces = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in merges)]
    vocab = {t: i for i, t in enumerate(["<|startoftext|>", "<|endoftext|>", *pieces])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=16)


@pytest.fixture(scope="module")
def words():
    "Stable Diffusion 1.5's layout, every width small and every weight random."
    pytest.importorskip("transformers")
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    tok = tokenizer()
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = CLIPTextModel(CLIPTextConfig(vocab_size=len(tok), max_position_embeddings=16, **small))
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 8, 16, 16),
            norm_num_groups=4,
            cross_attention_dim=16,
            attention_head_dim=2,
            **SD,
        )
        vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **pair())
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tok,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pair():
    return dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)


def draw(pipe, prompt, n=2, seed=0, **how):
    if isinstance(prompt, FacePrompt) or hasattr(pipe, "prompt_of"):
        return pipe(prompt, num_inference_steps=n, generator=gen(seed), output_type="pt", **how).images
    return pipe(prompt, num_inference_steps=n, generator=gen(seed), output_type="latent", **how).images


def untouched(pipe):
    "Nothing of a recording is left in the pipeline."
    own = [n for n in ("predict", "invert", "prompt_of", "encode_prompt") if n in vars(pipe)]
    hooks = [m for m in pipe.unet.modules() if m._forward_pre_hooks]
    return not own and not hooks and "set_timesteps" not in vars(pipe.scheduler)


# ---- names


def test_layers_have_the_same_names_in_both_chapters(ours):
    from latref_nb import bases

    assert bases.attention_layers is attention_layers
    found = recordable_layers(ours)
    assert {LAYER, f"null.{LAYER}", f"mask.{LAYER}", f"invert.{LAYER}", f"invert.null.{LAYER}"} <= set(found)
    assert all(n.startswith("unet.") for n in recordable_layers(ours, None)) and found[LAYER].kind == "cross"


def test_other_pipelines_and_patterns_are_refused(ours):
    with pytest.raises(ValueError, match="No layer fits 'modulation.*'.*unet.down.0.0.self"):
        recordable_layers(ours, "modulation.*")
    with pytest.raises(ValueError, match="a DiffusionPipeline with NoneType.*LatRefPipeline"):
        recordable_layers(DiffusionPipeline())


def test_words_of_pieces():
    tokens = ["<s>", "gla-", "s-", "ses", "on", "gla-", "s-", "ses", "<e>", "<e>"]
    assert words_of(tokens) == {"<s>": [0], "glasses": [1, 2, 3, 5, 6, 7], "on": [4], "<e>": [8, 9]}
    assert words_of(["a", "gla-"]) == {"a": [0], "gla": [1]}, "a text that was cut off"
    assert either(["a", "b"], ["a", "c"]) == ["a", "b | c"] and either(["a"], None) is None


def test_a_key_by_name():
    w = torch.rand(1, 2, 3, 16, 4, generator=gen()).softmax(-1)
    m = AttentionMap("m", "cross", w, [3, 1], [0, 1, 2], ["a", "gla-", "sses", "a"])
    assert torch.equal(m.key("glasses"), m.key(1) + m.key(2)) and m.numbers("a") == [0, 3] and m.numbers("gla-") == [1]
    assert torch.allclose(m.spread("a").sum(), torch.ones(()))
    with pytest.raises(ValueError, match="token 'glases' is not known. Did you mean 'glasses'"):
        m.key("glases")
    with pytest.raises(ValueError, match="have no names. Give a number from 0 to 3"):
        AttentionMap("m", "cross", w, [3, 1], [0, 1, 2]).key("a")


# ---- our own pipeline


def test_keys_are_tags_and_classes(ours, prompt):
    with record_attention(ours, "unet.*") as maps:
        draw(ours, prompt, guidance_scale=1.0)
    m = maps[LAYER]
    assert m.tokens == prompt.names and m.weights.shape == (2, 2, 4, 256, 25) and maps["unet.mid.0.self"].tokens is None
    assert torch.equal(m.key("HairColor"), m.key(prompt.names.index("HairColor"))) and m.key("mask hair").shape == (16, 16)
    assert torch.allclose(m.weights.sum(-1), torch.ones(()), atol=1e-5) and m.steps == [999, 499]
    assert set(maps) == set(attention_layers(ours.unet)), "with guidance 1 there is one branch"


def test_weights_are_those_of_the_explicit_processor(ours, prompt):
    "Held against what diffusers' own explicit processor computes, for tokens and for places."
    kept, block = {}, ours.unet.get_submodule(attention_layers(ours.unet)[LAYER].path)

    class Keeping(AttnProcessor):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **how):
            score, self.kept = attn.get_attention_scores, []
            attn.get_attention_scores = lambda *a: self.kept.append(score(*a)) or self.kept[-1]
            try:
                return super().__call__(attn, hidden_states, encoder_hidden_states, **how)
            finally:
                del attn.get_attention_scores
                kept[attn] = self.kept[0]

    former = block.processor
    block.set_processor(Keeping())
    try:
        with record_attention(ours, LAYER) as maps:
            draw(ours, prompt, guidance_scale=1.0)
    finally:
        block.set_processor(former)
    assert torch.equal(kept[block].unflatten(0, (2, 4)), maps[LAYER].weights[:, -1])


def test_branches_are_apart(ours, prompt):
    with record_attention(ours, f"*{LAYER}") as maps:
        draw(ours, prompt, guidance_scale=2.0, mask_guidance_scale=3.0)
    assert set(maps) == {LAYER, f"null.{LAYER}", f"mask.{LAYER}"} and {len(m.steps) for m in maps.values()} == {2}
    x = ours.prepare_latents(2, gen())
    parts = {"": prompt, "null.": prompt.without(tags=True, mask=True), "mask.": prompt.without(tags=True)}
    for branch, said in parts.items():
        with record_attention(ours, f"*{LAYER}") as alone:
            ours.prompt_of(prompt)
            ours.predict(x, 999, said)
        assert torch.equal(alone[branch + LAYER].weights[:, 0], maps[branch + LAYER].weights[:, 0]), branch
    two = torch.stack([maps[b + LAYER].weights for b in parts])
    assert min((two[0] - two[1]).abs().max(), (two[0] - two[2]).abs().max()) > 1e-4


@pytest.mark.parametrize("tags, mask, scale", [(True, False, 2.0), (False, True, 2.0), (True, True, 2.0), (True, True, 1.0)])
def test_what_is_said_least_is_still_the_conditional_branch(ours, prompt, tags, mask, scale):
    "Without tags, the mask alone is all that is said; with nothing said, so is nothing."
    said = prompt.without(tags=tags, mask=mask)
    with record_attention(ours, f"*{LAYER}") as maps:
        draw(ours, said, guidance_scale=scale, mask_guidance_scale=scale + 1)
    assert maps[LAYER].weights.shape[1] == 2 and f"mask.{LAYER}" not in maps


def test_an_existing_face_on_the_way_up(ours, prompt, faces):
    x = faces.batch([0, 1])["image"]
    with record_attention(ours, f"*{LAYER}") as maps:
        up = ours.invert(x, prompt, num_inference_steps=4)
        ours(prompt, num_inference_steps=4, guidance_scale=1.0, latents=up)
    assert list(maps) == [f"invert.{LAYER}", LAYER]
    assert maps[f"invert.{LAYER}"].steps == maps[LAYER].steps[::-1] == [249, 499, 749, 999]
    with record_attention(ours, f"*{LAYER}") as maps:
        again = ours.invert(x, prompt, num_inference_steps=1, guidance_scale=2.0)
    assert set(maps) == {f"invert.{LAYER}", f"invert.null.{LAYER}"} and again.shape == up.shape


def test_a_loop_of_ones_own(ours, prompt):
    "The U-Net called without the pipeline: one walk up, one down; the last answer at a level counts."
    tokens, x = ours.prompt_encoder(prompt), beside(ours.prepare_latents(2, gen()), None)
    with record_attention(ours, f"*{LAYER}") as maps, torch.no_grad():
        ours.scheduler.set_timesteps(3)
        for t in reversed(ours.scheduler.timesteps):
            ours.unet(x, t, encoder_hidden_states=tokens)
        ours.scheduler.set_timesteps(3)
        for t in ours.scheduler.timesteps:
            ours.unet(x * 0, t, tokens)
            ours.unet(x, t, tokens)
    assert [m.weights.shape[1] for m in maps.values()] == [3, 3]
    assert torch.equal(maps[LAYER].weights, maps[f"invert.{LAYER}"].weights.flip(1))
    assert maps[LAYER].tokens == prompt.names


def test_batch_is_as_each_alone(ours, prompt):
    x = ours.prepare_latents(2, gen())
    with record_attention(ours, LAYER) as both:
        ours(prompt, num_inference_steps=2, guidance_scale=1.0, latents=x)
    with record_attention(ours, LAYER) as one:
        ours(prompt[1], num_inference_steps=2, guidance_scale=1.0, latents=x[1:])
    assert torch.allclose(both[LAYER].weights[1:], one[LAYER].weights, atol=1e-5)


# ---- words


def test_names_of_words(words):
    names = token_names(words.tokenizer, "glasses on")
    assert names[:6] == ["<|startoftext|>", "gla-", "s-", "ses", "on", "<|endoftext|>"] and len(names) == 16
    with record_attention(words) as maps:
        draw(words, "glasses on", guidance_scale=1.0)
    m = maps["unet.mid.0.cross"]
    assert m.tokens == names and m.numbers("glasses") == [1, 2, 3] and len(m.numbers("<|endoftext|>")) == 11
    assert torch.allclose(m.key("glasses"), m.key(1) + m.key(2) + m.key(3))


def test_the_two_halves_of_a_guided_batch(words):
    with record_attention(words, f"*{LAYER}") as maps:
        draw(words, ["glasses on", "a cap"], guidance_scale=3.0, negative_prompt=["on a mat"] * 2)
    said, avoided = maps[LAYER], maps[f"null.{LAYER}"]
    assert len(said.weights) == len(avoided.weights) == 2 and "mat" in words_of(avoided.tokens)
    assert said.tokens[1] == "gla- | a" and said.tokens[0] == "<|startoftext|>"
    noise = torch.randn(2, 4, 8, 8, generator=gen(5))
    with record_attention(words, LAYER) as alone:
        draw(words, ["glasses on", "a cap"], n=1, guidance_scale=1.0, latents=noise)
    with record_attention(words, LAYER) as guided:
        draw(words, ["glasses on", "a cap"], n=1, guidance_scale=3.0, latents=noise)
    assert torch.allclose(alone[LAYER].weights, guided[LAYER].weights, atol=1e-5)


def test_tokens_that_came_without_words_have_numbers(words):
    said, nothing = words.encode_prompt("on", "cpu", 1, True)
    with record_attention(words, f"*{LAYER}") as maps:
        draw(words, None, prompt_embeds=said, negative_prompt_embeds=nothing)
    assert set(maps) == {LAYER, f"null.{LAYER}"} and maps[LAYER].tokens is None


def test_an_existing_picture_of_a_pipeline_with_words(words):
    "Its inversion is a loop around the U-Net: recorded on the way up, one map for each level; the words are the base's."
    base = Base(words)
    x, tokens = torch.randn(1, 4, 8, 8, generator=gen(3)), base.tokens("glasses on")
    with record_attention(words, f"*{LAYER}") as maps:
        path, _ = ddim_up(base, x, tokens, 3, [])
    m = maps[f"invert.{LAYER}"]
    assert list(maps) == [f"invert.{LAYER}"] and m.steps == sorted(m.steps) and m.weights.shape[1] == 3
    assert torch.equal(path, ddim_up(base, x, tokens, 3, [])[0])
    assert len(base.names("glasses on")) == m.weights.shape[-1] and "gla" in base.names("glasses on")


# ---- nothing changed, nothing left behind


@pytest.mark.parametrize("explicit", [False, True])
def test_recording_changes_no_bit(ours, words, prompt, explicit):
    for pipe, said in ((ours, prompt), (words, "glasses on")):
        former = pipe.unet.attn_processors
        if explicit:
            pipe.unet.set_attn_processor(AttnProcessor())
        now = dict(pipe.unet.attn_processors)
        before = draw(pipe, said)
        with record_attention(pipe, "*"):
            during = draw(pipe, said)
        assert torch.equal(before, during) and torch.equal(draw(pipe, said), before)
        assert all(pipe.unet.attn_processors[k] is p for k, p in now.items()) and untouched(pipe)
        pipe.unet.set_attn_processor(former)


def test_all_is_as_before_after_an_error(ours, words, prompt):
    def stop(pipe, i, t, state):
        raise RuntimeError("stopped on the way")

    for pipe, said in ((ours, prompt), (words, "on")):
        with pytest.raises(RuntimeError, match="stopped on the way"):
            with record_attention(pipe, "*"):
                draw(pipe, said, callback_on_step_end=stop)
        assert untouched(pipe)


def test_recordings_inside_each_other(ours, prompt):
    with record_attention(ours, "unet.mid*") as outer:
        with record_attention(ours, "*unet.mid*", heads=1) as inner:
            draw(ours, prompt)
        draw(ours, prompt)
    name = "unet.mid.0.cross"
    assert torch.equal(outer[name].weights[:, :2, 1:2], inner[name].weights) and outer[name].weights.shape[1] == 4
    assert "null.unet.mid.0.cross" in inner and untouched(ours)


def test_an_outer_recording_may_close_first(ours, prompt):
    a, b = record_attention(ours, LAYER), record_attention(ours, f"*{LAYER}")
    first, second = a.__enter__(), b.__enter__()
    draw(ours, prompt)
    a.__exit__(None, None, None)
    draw(ours, prompt)
    b.__exit__(None, None, None)
    assert first[LAYER].weights.shape[1] == 2 and second[f"null.{LAYER}"].weights.shape[1] == 4 and untouched(ours)


# ---- memory


@pytest.mark.parametrize("how", [{}, {"heads": [1]}, {"steps": 1}])
def test_the_plan_is_what_is_held(ours, words, prompt, how):
    for pipe, said, n in ((ours, prompt, 2), (words, "on", 1)):
        layers = ["unet.*", "null.unet.mid*"]
        with record_attention(pipe, layers, **how) as maps:
            draw(pipe, said)
        plan = attention_plan(pipe, layers, batch_size=n, num_inference_steps=2, **how)
        assert {r["layer"]: r["shape"] for r in plan[:-1]} == {k: tuple(m.weights.shape) for k, m in maps.items()}
        assert plan[-1]["bytes"] == maps.bytes


def test_too_much_is_refused_before_and_on_the_way(ours, prompt):
    with pytest.raises(ValueError, match="the largest is unet.down.0.0.self"):
        with record_attention(ours, "unet*", limit=10_000, batch_size=2, num_inference_steps=3):
            raise AssertionError("the work has begun")
    with pytest.raises(ValueError, match="Choose fewer layers, heads or steps"):
        with record_attention(ours, "unet*", limit=10_000):
            draw(ours, prompt)
    with pytest.raises(ValueError, match="steps 7 came"):
        with record_attention(ours, "unet*cross", steps=[0, 7]):
            draw(ours, prompt)
    with pytest.raises(ValueError, match="heads 0 to 3"):
        with record_attention(ours, "unet*cross", heads=4):
            draw(ours, prompt)
    assert untouched(ours)


def test_the_published_layout_is_planned_without_its_weights():
    "Numbers of Stable Diffusion 1.5's config.json: nothing is taken, for 512 × 512 pixels and 77 tokens."

    class Bare(DiffusionPipeline):
        def __init__(self, unet):
            super().__init__()
            self.register_modules(unet=unet)

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8, **SD)
    rows = {r["layer"]: r for r in attention_plan(Bare(unet), "unet.*", batch_size=1, num_inference_steps=1)}
    assert len(rows) == 33 and rows["unet.down.0.0.cross"]["shape"] == (1, 1, 8, 4096, 77)
    assert rows["unet.mid.0.self"]["shape"] == (1, 1, 8, 64, 64)
    assert rows["unet.up.3.2.self"]["bytes"] == 8 * 4096**2 * 4


# ---- tables, files, parts


def test_table_file_heat_map_and_parts(ours, prompt, faces, tmp_path):
    x = faces.batch([0, 1])["image"]
    with record_attention(ours, "invert.unet.up*cross") as maps:
        ours.invert(x, prompt, num_inference_steps=2)
    again = load_attention(save_attention(tmp_path / "maps.npz", maps))
    name = "invert.unet.up.2.0.cross"
    assert again[name].tokens == prompt.names and torch.equal(again[name].weights, maps[name].weights)
    assert [r["keys"] for r in attention_table(again)] == [25] * len(maps)
    assert overlay(x[0], again[name].key("Smiling", step=1)).shape == (64, 64, 3)
    mean, one = part_table(maps[name], faces.masks([0, 1])), part_table(maps[name], faces.masks([0, 1]), step=1)
    assert [r["token"] for r in one] == [*prompt.names, "area"] and one[-1] == mean[-1] and one[0] != mean[0]
    assert all(math.isclose(sum(v for k, v in r.items() if k != "token"), 1, abs_tol=1e-5) for r in one)
    with pytest.raises(ValueError, match="step 2 came"):
        part_table(maps[name], faces.masks([0, 1]), step=2)


def test_a_token_that_looks_at_one_part_is_found(faces):
    "Known truth: a word of two pieces that lies on the hair alone."
    masks = faces.masks([0, 1])
    hair = torch.nn.functional.adaptive_avg_pool2d(masks[:, [13]].float(), 16).flatten(1)  # (2,256), class `hair`
    w = torch.stack([hair / 2, hair / 2, 1 - hair], -1)[:, None, None]  # (2,1,1,256,3)
    rows = part_table(AttentionMap("m", "cross", w, [0], [0], ["ha-", "ir", "rest"]), masks)
    assert [r["token"] for r in rows] == ["hair", "rest", "area"]
    assert rows[0]["hair"] > 0.8 > 0.2 > rows[1]["hair"]


@pytest.mark.parametrize("tokens", [[1], "ab", ["a"], 3])
def test_names_in_a_file_must_fit(tmp_path, tokens):
    import json

    about = {"m": {"kind": "cross", "steps": [0], "heads": [0], "tokens": tokens}}
    np.savez(tmp_path / "m.npz", about=np.array(json.dumps(about)), m=np.ones((1, 1, 1, 4, 2), np.float32))
    with pytest.raises(ValueError, match="the tokens of m are no list of 2 names"):
        load_attention(tmp_path / "m.npz")


# ---- in the explorer


def test_the_explorer_takes_a_prompted_pipeline_beside_the_style_module(ours, faces):
    from latref_nb.inside import AttentionExplorer
    from style_case import style_pipeline

    a = AttentionExplorer(style_pipeline(), faces, range(4), steps=2, prompted=ours).wait()
    assert a.layer.startswith("modulation.") and [label for label, _ in a.tokens.options] == ["0", "1", "2", "3"]
    a.layer, name = "prompted.invert.unet.up.2.0.cross", "invert.unet.up.2.0.cross"
    a.wait()
    hair = [label for label, _ in a.tokens.options].index("HairColor")
    a.token, a.row, a.column = hair, 5, 9
    face = a.chooser.face
    with record_attention(ours, name) as maps:
        ours.invert(face.image[None], FacePrompt.of_faces(faces, [face.index]), num_inference_steps=2)
    picture, at, _ = a.views()[0]
    assert not a.bad and np.array_equal(picture, overlay(face.image, maps[name].spread("HairColor")))
    assert torch.equal(at, maps[name].place(5, 9)) and "where HairColor goes" in a.words and "mask hair" in a.bars[0].value
    a.compare = "another face"
    a.wait()
    assert len(a.views()) == 2 and not np.array_equal(a.views()[1][1], at) and a.still()
    assert "where mask hair goes" in a.to_html() and untouched(ours)
