"Consistency training: a step is what the chapter says, runs go on to the same bits."

import json
import shutil
from dataclasses import replace

import pytest
import torch
from consistency_case import (
    FIT,
    N,
    NETS,
    QUICK,
    SHAPE,
    Faces,
    batch_of,
    cache,
    classifiers,
    flipped,
    frozen,
    numbers,
    same,
    task_of,
)  # noqa: F401, F811
from safetensors.torch import load_file
from test_removal import changed_model

import latref_nb.consistency as C
from latref_nb.ablations import direction_styles
from latref_nb.consistency import (
    StyleSettings,
    Weights,
    energy_distance,
    match,
    style_batch,
    style_distance,
    style_networks,
    style_readers,
    train_styles,
)
from latref_nb.core import from_uint8, make_generator
from latref_nb.tags import CELEBA_TAGS
from latref_nb.masks import MaskWeights, train_mask
from latref_nb.perceptual import RuledCritic
from latref_nb.removal import ForwardSettings, Frozen, StyleCache, build_cache
from latref_nb.resuming import StepGenerator

torch.set_num_threads(1)


# ---- numbers that are none


@pytest.mark.parametrize(
    "make, how",
    [(Weights, {k: v}) for k in vars(Weights()) for v in (float("nan"), -1.0)]
    + [(MaskWeights, {k: float("nan")}) for k in vars(MaskWeights())]
    + [(MaskWeights, dict(gain_to=0.1))]
    + [(StyleSettings, {k: v}) for k, v in dict(noise=-1, extractor_first=0.5, reversed=2, decoded=0, t_from=1).items()]
    + [(ForwardSettings, {k: v}) for k, v in dict(steps=0, settle=float("nan"), seed=-1, precision="fp8").items()],
    ids=str,
)
def test_settings_of_the_style_trainings_are_held_against_their_ranges(make, how):
    with pytest.raises(ValueError, match=f"^{list(how)[0]}=.* came; allowed: ") as e:
        make(**how)
    assert "\n" not in str(e.value)


def test_other_words_are_named():
    with pytest.raises(ValueError, match="Did you mean 'fixed_point'"):
        ForwardSettings(inversion="fixedpoint")


# ---- one step


def test_energy_distance_is_the_formula():
    a, b = torch.randn(7, 3, generator=make_generator(0)), 2 + torch.randn(5, 3, generator=make_generator(1))
    mean = lambda pairs: torch.stack([(x - y).norm() for x, y in pairs]).mean()
    slow = 2 * mean([(x, y) for x in a for y in b]) - sum(
        mean([(x, y) for i, x in enumerate(o) for j, y in enumerate(o) if i != j]) for o in (a, b)
    )
    assert torch.allclose(energy_distance(a, b), slow, atol=1e-5)
    near = energy_distance(
        torch.randn(400, 3, generator=make_generator(2)), torch.randn(400, 3, generator=make_generator(3))
    )
    assert abs(near) < 0.05 < slow and energy_distance(a[:1], b) == 0


def test_match_does_not_mix_values():
    read = torch.cat([torch.zeros(20, 2), torch.ones(20, 2)]) + 0.1 * torch.randn(40, 2, generator=make_generator(0))
    values = torch.arange(40) // 20
    right, crossed = match(read.clone(), read, values), match(read.flip(0), read, values)
    assert right < 0.1 < 1 < crossed


@pytest.mark.parametrize("step", range(6))
def test_a_batch_pairs_faces_as_it_says(cache, step):
    b = {**batch_of(cache, 14), "flipped": torch.ones(14, 6, dtype=torch.bool)}
    g, settings = StepGenerator(0, step, 14), StyleSettings(reversed=0.5)
    s, back = style_batch(b, settings, StepGenerator(0, step, 14)), g.rand() < 0.5
    c = s.tag
    assert c == step and back.any() and not back.all()
    for i in range(14):
        real, gone = (b["images"][i], b["labels"][i, c]), (b["removed"][i, c], b["targets"][i, c])
        (source, had), (goal, value) = (real, gone) if back[i] else (gone, real)
        assert torch.equal(s.source.x[i], from_uint8(source)) and torch.equal(s.goal.x[i], from_uint8(goal))
        assert s.value[i] == value == s.goal.labels[i, c] and s.source.labels[i, c] == had != value
        others = [k for k in range(6) if k != c]
        assert torch.equal(s.goal.labels[i, others], b["labels"][i, others])
        j = next(j for j in range(14) if torch.equal(s.partner.x[i], from_uint8(b["images"][j])))
        assert b["labels"][j, c] != value and torch.equal(s.partner.feats[i], b["feats"][j])
    assert torch.equal(s.reference, s.goal.x)
    assert torch.equal(s.source.feats[~back], b["removed_feats"][~back, c])


def test_only_faces_that_lost_the_value_take_part(cache):
    b = {**batch_of(cache, 8), "flipped": torch.zeros(8, 6, dtype=torch.bool)}
    b["flipped"][[2, 5], 3] = True
    for step in range(6):  # whatever tag is next: only one can be learned from
        s = style_batch(b, StyleSettings(reversed=0.0), StepGenerator(0, step, 8))
        assert s.tag == 3 and torch.equal(s.goal.x, from_uint8(b["images"][[2, 5]]))
    b["flipped"][:] = False  # as with min_flip=0: then every known face counts
    assert len(style_batch(b, StyleSettings(), numbers(8)).value) == 8
    b["labels"] = torch.full_like(b["labels"], -1)
    with pytest.raises(ValueError, match="none of these faces has a label. Take a larger batch"):
        style_batch(b, StyleSettings(), numbers(8))


def test_without_a_face_that_lacks_the_value_the_source_is_the_partner(cache):
    b = {**batch_of(cache), "flipped": torch.ones(6, 6, dtype=torch.bool)}
    b["labels"] = b["labels"][:1].expand_as(b["labels"]).clone()
    s = style_batch(b, StyleSettings(reversed=0.0), numbers())
    assert torch.equal(s.partner.x, s.source.x) and torch.equal(s.partner.labels, s.source.labels)
    no_forward = style_batch(b, StyleSettings(reversed=0.0, from_removed=False), numbers())
    assert torch.equal(no_forward.source.x, no_forward.goal.x)


def test_start_is_the_removed_face_and_every_network_learns(frozen, cache):
    task, b = task_of(frozen, readers=style_readers(frozen, cache), mapper=NETS["mapper"]), all_flipped(cache)
    terms = task.loss(b, numbers())
    s = style_batch(b, task.settings, numbers())
    with torch.no_grad():
        start = C.code_loss(frozen.code(s.source.feats), frozen.code(s.goal.feats))
    assert torch.allclose(terms["code"], start, atol=1e-4)
    total = sum(getattr(task.weights, k) * v for k, v in terms.items() if k != "loss")
    assert set(terms) == {"loss", *vars(Weights())} and torch.allclose(terms["loss"], total, rtol=1e-5)
    torch.nn.init.normal_(task.networks.modulation.post[-1].weight, std=0.1)
    task.loss(b, numbers())["loss"].backward()
    for name, module in task.modules.items():
        assert sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None) > 0, name
    assert not any(p.requires_grad for m in frozen.parts for p in m.parameters())
    assert all(p.grad is None for p in frozen.autoencoder.parameters())


def all_flipped(cache, n=6):
    return {**batch_of(cache, n), "flipped": torch.ones(n, 6, dtype=torch.bool)}


def test_step_depends_on_its_generator_alone(frozen, cache):
    task, b = task_of(frozen, mapper=NETS["mapper"]), batch_of(cache)
    torch.manual_seed(1)
    first = task.loss(b, numbers())
    torch.manual_seed(2)
    assert same(task.loss(b, numbers()), first)
    assert not torch.equal(task.loss(b, StepGenerator(0, 1, 6))["loss"], first["loss"])


def test_references_differ_and_directions_do_not(frozen, cache):
    x = Faces().batch(range(4))["image"]
    read, fixed = (
        style_networks(frozen.autoencoder, CELEBA_TAGS, **NETS).extractor,
        direction_styles(frozen.linear, **SHAPE),
    )
    assert not torch.allclose(*read(x, "Bangs", "with").vector[:2])
    code = fixed(x, "Bangs", "with")
    assert torch.equal(code.flat()[0], code.flat()[1]) and not torch.equal(
        fixed(x, "Bangs", "without").vector, code.vector
    )
    assert torch.equal(fixed.code(fixed.features(x), 2, torch.ones(4).long()).vector, code.vector)


def test_only_the_extractor_learns_in_the_warm_up_and_the_change_is_told(frozen, cache):
    task, b = task_of(frozen, settings=StyleSettings(extractor_first=1), mapper=NETS["mapper"]), all_flipped(cache)
    terms = task.loss(b, numbers())
    assert set(terms) == {"loss", "difference", "bottleneck"}
    terms["loss"].backward()
    learns = lambda m: any(p.grad is not None and p.grad.abs().sum() > 0 for p in m.parameters())
    assert {name for name, m in task.modules.items() if learns(m)} == {"extractor", "tell"}
    assert {"difference", "code", "match"} <= set(task.loss(b, StepGenerator(0, 1, 6)))
    assert "tell" not in task_of(frozen, weights=Weights(difference=0.0)).modules


def test_unknown_labels_count_as_no_error(frozen, cache):
    b = all_flipped(cache)
    b["labels"][:, 4] = -1
    b["flipped"][:, 4] = False
    assert all(v.isfinite() for v in task_of(frozen, mapper=NETS["mapper"]).loss(b, numbers()).values())


def test_readers_follow_what_a_removal_changes(frozen):
    "A line per thing that a removal changes: what no removal moves is not read."
    d, n = frozen.mlp.config.z_dim, 400
    g = make_generator(0)
    z = frozen.mlp.denormalise(torch.randn(n, d, generator=g))

    class Codes(StyleCache):
        "A cache of codes in which a removal sets the first number of the code to 0 and leaves the others."

        def __init__(self):
            super().__init__([{"images": torch.zeros(n, 1)}], CELEBA_TAGS)

        def batch(self, indices):
            u = frozen.mlp.normalise(z)
            gone = torch.cat([0 * u[:, :1], u[:, 1:]], 1)[:, None].expand(-1, 6, -1)
            labels = torch.zeros(n, 6, dtype=torch.long)
            return {"feats": u, "removed_feats": gone, "labels": labels, "flipped": labels == 0}

    class Plain:
        tags, device, mlp = frozen.tags, frozen.device, frozen.mlp

        @staticmethod
        def code(feats):
            return feats

    lines = style_readers(Plain, Codes(), k=4)  # (n_tags,n_values,d,4)
    assert lines.shape == (6, 3, d, 4) and not lines[:, 1:].any()
    strength = lines[0, 0].square().sum(1)
    assert strength[0] > 20 * strength[1:].max()
    u = torch.randn(300, d, generator=g)
    values = torch.zeros(300, dtype=torch.long)
    assert style_distance(u, u, lines[0], values) == 0
    assert 0.7 < style_distance(u, u.roll(1, 0), lines[0], values) < 1.3, "two faces taken at random are 1 apart"
    other = torch.cat([u[:, :1], u.roll(1, 0)[:, 1:]], 1)
    assert style_distance(u, other, lines[0], values) < 0.2, "another person in the same style is near"


# ---- training


def test_goes_on_to_the_same_bits(frozen, cache, tmp_path):
    how = dict(critic=frozen.critic, min_flip=0, **NETS, **FIT)
    go = lambda out, **more: train_styles(
        frozen.autoencoder, classifiers(frozen), flipped(cache), tmp_path / out, 5, **how, **more
    )
    through, broken = go("a"), []

    def stop(run):
        if run.done == 3 and not broken:
            broken.append(1)
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        go("b", callback=stop)
    nets = go("b")
    for name in ("modulation", "extractor", "mapper"):
        a, b = (load_file(tmp_path / o / name / "diffusion_pytorch_model.safetensors") for o in "ab")
        assert same(a, b) and same(dict(getattr(through, name).state_dict()), dict(getattr(nets, name).state_dict()))
        assert same(dict(type(getattr(nets, name)).from_pretrained(tmp_path / "b" / name).state_dict()), b)
    facts = json.loads((tmp_path / "b/training.json").read_text())
    assert facts["task"]["weights"]["code"] == Weights().code and facts["task"]["settings"]["from_removed"] is True


def test_other_weights_or_autoencoder_are_refused(frozen, cache, tmp_path):
    how = dict(critic=frozen.critic, min_flip=0, **NETS, **FIT)
    train_styles(frozen.autoencoder, classifiers(frozen), flipped(cache), tmp_path, 1, **how)
    with pytest.raises(ValueError, match="weights.match: .* then, 9.0 now"):
        train_styles(
            frozen.autoencoder, classifiers(frozen), flipped(cache), tmp_path, 2, weights=Weights(match=9.0), **how
        )
    with pytest.raises(ValueError, match="task.frozen"):
        train_styles(changed_model(frozen, None)[0].autoencoder, classifiers(frozen), cache, tmp_path, 2, **how)


@pytest.mark.parametrize("what", ["styles", "mask"])
def test_other_faces_and_other_forward_steps_are_refused(frozen, tmp_path, what):
    "A resumed training finds the faces and the forward step it began with; precision and the place of the cache may differ."

    def go(steps, faces=Faces(), folder="one", forward=dict()):
        data = build_cache(
            frozen, faces, tmp_path / folder, settings=replace(QUICK, **forward), chunk=5, progress=False
        )
        if what == "mask":
            return train_mask(
                frozen.autoencoder,
                classifiers(frozen),
                data,
                tmp_path / "run",
                steps,
                critic=frozen.critic,
                grid=4,
                width=8,
                **FIT,
            )
        return train_styles(
            frozen.autoencoder,
            classifiers(frozen),
            flipped(data),
            tmp_path / "run",
            steps,
            critic=frozen.critic,
            **NETS,
            **FIT,
        )

    go(1)
    for words, how in (
        ("data.faces and removals: [0-9a-f]+ then, [0-9a-f]+ now", dict(faces=Faces(seed=1))),
        ("data.forward.steps: 2 then, 3 now", dict(forward=dict(steps=3))),
        ("data.forward.settle: 0.2 then, None now", dict(forward=dict(settle=None))),
    ):
        with pytest.raises(ValueError, match=words) as e:
            go(2, folder="other", **how)
        assert "\n" not in str(e.value) and "another training" in str(e.value)
        shutil.rmtree(tmp_path / "other")
    go(2, folder="elsewhere")
    go(3, forward=dict(precision="auto"))


def test_makes_the_cache_of_a_dataset(frozen, tmp_path):
    train_styles(
        frozen.autoencoder,
        classifiers(frozen),
        Faces(),
        tmp_path,
        1,
        critic=frozen.critic,
        n=N,
        forward=QUICK,
        min_flip=0,
        **NETS,
        **{**FIT, "batch_size": N},
    )
    assert list((tmp_path / "cache").glob("part-*.safetensors"))


def test_training_lowers_the_loss(frozen, cache, tmp_path):
    task = task_of(frozen)
    before = task.loss(all_flipped(cache), numbers())
    C.fit(task, flipped(cache), tmp_path, 25, **FIT)
    after = task.loss(all_flipped(cache), numbers())
    assert after["loss"] < before["loss"] and after["code"] < before["code"]


def test_another_ruler_measures_in_the_critics_place(frozen, cache):
    class Thrice(torch.nn.Module):
        distance = staticmethod(lambda x, y: 3 * frozen.critic.distance(x, y))
        features = staticmethod(frozen.critic.features)

    ruled = Frozen(frozen.autoencoder, frozen.linear, frozen.mlp, RuledCritic(frozen.critic, Thrice()))
    terms = [task_of(f).loss(batch_of(flipped(cache)), numbers()) for f in (frozen, ruled)]
    assert terms[1]["perceptual"] > terms[0]["perceptual"] > 0
    assert all(torch.equal(terms[0][k], terms[1][k]) for k in terms[0] if k not in ("perceptual", "loss"))
