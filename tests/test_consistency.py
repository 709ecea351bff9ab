"Consistency training: the cache notices what changed, a step is what the paper says, runs go on to the same bits, ablations are kept."

import hashlib
import json
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import latref_nb.consistency as C
from latref_nb.autoencoder import DiffusionAutoencoder
from latref_nb.tags import CELEBA_TAGS, Tag, TagSet, tag_list
from latref_nb.core import from_uint8, make_generator
from latref_nb.consistency import (
    ABLATIONS,
    CacheWarning,
    ForwardSettings,
    Frozen,
    Settling,
    StageRecorder,
    StyleCache,
    StyleSettings,
    StyleTask,
    Weights,
    ablated_task,
    build_cache,
    fit_settling,
    transport_map,
    direction_styles,
    energy_distance,
    forward_pass,
    gather_stages,
    load_stages,
    match,
    other_values,
    save_stages,
    snapshot_steps,
    stage,
    style_distance,
    style_networks,
    style_readers,
    train_ablations,
    train_styles,
)
from latref_nb.datasets import TensorFaces
from latref_nb.directions import ValueClassifier, fit_classifiers
from latref_nb.masks import MaskWeights, train_mask
from latref_nb.metrics import train_network
from latref_nb.perceptual import PerceptualNet
from latref_nb.training import StepGenerator

torch.set_num_threads(1)
N = 14
SHAPE = dict(style_dim=6, n_tokens=2, token_dim=8)
NETS = dict(
    shape=SHAPE,
    modulation=dict(width=16, blocks=1, vector_dim=8, heads=2),
    extractor=dict(side=2, width=16, heads=2, layers=1, bottleneck=5),
    mapper=dict(prior_widths=(8,), width=16, heads=2, layers=1),
)
QUICK = ForwardSettings(steps=2, precision="no", options=dict(max_steps=3))
FIT = dict(batch_size=6, trackers=(), progress=False, device="cpu", log_every=1, warmup=0, save_every=2, lr=3e-3)


class Faces(TensorFaces):
    "Noise with labels, of which every combination that is needed occurs."

    def __init__(self, n=N, seed=0):
        g = torch.Generator().manual_seed(seed)
        labels = torch.stack([torch.arange(n) * (c + 3) // (c + 2) % len(t) for c, t in enumerate(CELEBA_TAGS)], 1)
        super().__init__(torch.randint(0, 256, (n, 3, 16, 16), generator=g, dtype=torch.uint8), labels, CELEBA_TAGS)


@pytest.fixture(scope="module")
def frozen():
    torch.manual_seed(0)
    model = DiffusionAutoencoder(
        image_size=16,
        patch_size=2,
        model_channels=32,
        channel_mult=(1, 2),
        enc_channel_mult=(1, 2, 2, 2),
        num_res_blocks=1,
        attention_resolutions=(),
        num_heads=1,
        z_dim=16,
        prediction_type="v_prediction",
    )
    for p in model.unet.parameters():
        if p.ndim > 1 and not p.any():
            torch.nn.init.normal_(p, std=0.05)  # a fresh U-Net says nothing; this one says something
    faces = Faces(60)
    with torch.no_grad():
        z = model.encode(faces.batch(range(60))["image"])
    heads = [
        fit_classifiers(z, faces.labels, CELEBA_TAGS, kind, hidden=8, steps=30, generator=make_generator(0))
        for kind in ("linear", "mlp")
    ]
    return Frozen(model, *heads, PerceptualNet(tag_list(CELEBA_TAGS), size=16, widths=(8, 8, 8, 8)))


@pytest.fixture(scope="module")
def cache(frozen, tmp_path_factory):
    return build_cache(frozen, Faces(), tmp_path_factory.mktemp("cache"), settings=QUICK, chunk=5, progress=False)


def batch_of(cache, n=6):
    return cache.batch(range(n))


def numbers(n=6):
    return StepGenerator(0, 0, n)


def task_of(frozen, name="whole", **how):
    return ablated_task(frozen, name, **{**NETS, **how})


def whole(cache):
    return {k: cache.column(k) for k in cache.parts[0]}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def classifiers(frozen):
    return frozen.linear, frozen.mlp


# ---- forward step


def test_other_values_differ_and_are_even():
    labels = torch.tensor([[0, 1, 0, 2, 1, 0]]).repeat(3000, 1)
    other = other_values(labels, CELEBA_TAGS, make_generator(0))
    assert (
        (other != labels).all()
        and (other >= 0).all()
        and all(other[:, c].max() < len(t) for c, t in enumerate(CELEBA_TAGS))
    )
    assert 0.45 < (other[:, 3] == 0).float().mean() < 0.55


def test_what_the_cache_holds_is_what_was_computed(frozen, cache):
    b = batch_of(cache)
    assert (
        b["removed"].dtype == torch.uint8
        and b["removed"].shape == (6, 6, 3, 16, 16)
        and b["targets"].shape == b["flipped"].shape == (6, 6)
    )
    x, y = (o.float() / 127.5 - 1 for o in (b["images"], b["removed"].flatten(0, 1)))
    with torch.no_grad():
        assert torch.allclose(frozen.autoencoder.encode(x), b["z"], atol=1e-4) and torch.allclose(
            frozen.autoencoder.encode_features(x), b["feats"], atol=1e-4
        )
        assert torch.allclose(frozen.autoencoder.encode_features(y), b["removed_feats"].flatten(0, 1), atol=1e-4)
        read = frozen.critic.predict(y).unflatten(0, (6, 6))
    assert torch.equal(b["flipped"], torch.stack([read[:, c, c] == b["targets"][:, c] for c in range(6)], 1))
    assert torch.equal(b["images"], Faces().images[:6])


def test_unknown_labels_are_never_flipped(frozen):
    faces = Faces().batch(range(4))
    faces["labels"][:, 2] = -1
    out = forward_pass(frozen, faces["image"], faces["labels"], QUICK, make_generator(0))
    assert not out["flipped"][:, 2].any()
    terms = task_of(frozen).loss(out, numbers(4))
    assert all(v.isfinite() for v in terms.values())


# ---- settling


def clouds(n=4000, d=6):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=g) @ torch.randn(d, d, generator=g), torch.randn(
        n, d, generator=g
    ) * torch.tensor([1.0, 2, 0.01, 1, 0.5, 3]) + 1


def test_settled_codes_lie_as_the_real_ones_do():
    a, b = clouds()
    m_a, T, m_b = transport_map(a, b, 0)
    moved = m_b + (a - m_a) @ T
    torch.testing.assert_close(moved.mean(0), b.mean(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cov(moved.T), torch.cov(b.T), atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(T, T.T, atol=1e-4, rtol=1e-3)  # the gradient of a convex function: the least movement


def test_shrunk_to_the_mean_only_the_mean_moves():
    a, b = clouds()
    m_a, T, m_b = transport_map(a, b, 1)
    torch.testing.assert_close(T, torch.eye(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(m_b - m_a, b.mean(0) - a.mean(0))


def test_settling_changes_a_cache_and_rare_values_stay(frozen, tmp_path):
    z = torch.randn(40, frozen.autoencoder.config.z_dim, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(2, (40, len(frozen.tags)), generator=torch.Generator().manual_seed(1))
    assert not fit_settling(frozen, z[:6], labels[:6]).maps  # fewer codes than directions
    u = torch.randn(3, 8)
    assert Settling({})(u, 0, 0, 1) is u
    on, off = (
        build_cache(frozen, Faces(), tmp_path / str(s), settings=replace(QUICK, settle=s), progress=False)
        for s in (0.2, None)
    )
    assert (
        on.key != off.key
        and (tmp_path / "0.2/settling.safetensors").exists()
        and not (tmp_path / "None/settling.safetensors").exists()
    )


# ---- cache


def test_a_killed_build_goes_on_to_the_same_cache(frozen, cache, tmp_path, monkeypatch):
    plain, calls = C._make_part, []

    def dies(*a):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(*a)

    monkeypatch.setattr(C, "_make_part", dies)
    with pytest.raises(KeyboardInterrupt):
        build_cache(frozen, Faces(), tmp_path, settings=QUICK, chunk=5, progress=False)
    assert len(list(tmp_path.glob("part-*"))) == 1
    again = build_cache(frozen, Faces(), tmp_path, settings=QUICK, chunk=5, progress=False)
    assert len(calls) == 4 and same(whole(again), whole(cache)) and again.key == cache.key
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_cache(frozen, Faces(), tmp_path, settings=QUICK, chunk=5, progress=False)
    assert len(calls) == 4, "nothing is computed twice"


def test_more_faces_keep_the_whole_parts(frozen, tmp_path, monkeypatch):
    how = dict(settings=QUICK, chunk=5, progress=False)
    build_cache(frozen, Faces(), tmp_path, 10, **how)
    plain, made = C._make_part, []
    monkeypatch.setattr(C, "_make_part", lambda f, d, rows, *how: (made.append(rows.start), plain(f, d, rows, *how))[1])
    assert len(build_cache(frozen, Faces(), tmp_path, 14, **how)) == 14 and made == [10]


def changed_model(frozen, monkeypatch):
    model = DiffusionAutoencoder.from_config(frozen.autoencoder.config)
    model.load_state_dict(frozen.autoencoder.state_dict())
    with torch.no_grad():
        model.encoder.conv_in.weight.view(-1)[0] += 0.3
    return replace(frozen, autoencoder=model), Faces(), QUICK


def changed_faces(frozen, monkeypatch):
    return frozen, Faces(seed=1), QUICK


def changed_labels(frozen, monkeypatch):
    faces = Faces()
    faces.labels = faces.labels.clone()
    faces.labels[:, 0] = 1 - faces.labels[:, 0]
    return frozen, faces, QUICK


def changed_settings(frozen, monkeypatch):
    return frozen, Faces(), replace(QUICK, steps=3)


@pytest.mark.parametrize("change", [changed_model, changed_faces, changed_labels, changed_settings])
def test_stale_cache_is_noticed(frozen, tmp_path, monkeypatch, change):
    how = dict(n=4, chunk=4, progress=False)
    before = whole(build_cache(frozen, Faces(), tmp_path, settings=QUICK, **how))
    other, faces, settings = change(frozen, monkeypatch)
    with pytest.warns(CacheWarning, match="another model, other faces or other settings; it is made anew"):
        after = build_cache(other, faces, tmp_path, settings=settings, **how)
    assert not same(whole(after), before)


@pytest.mark.parametrize(
    "damage",
    [lambda p: p.write_bytes(p.read_bytes()[:-100]), lambda p: p.write_bytes(b"nothing"), lambda p: p.write_bytes(b"")],
    ids=["cut", "foreign", "empty"],
)
def test_damaged_part_is_made_anew(frozen, tmp_path, damage):
    how = dict(n=4, chunk=2, settings=QUICK, progress=False)
    before = {k: v.clone() for k, v in whole(build_cache(frozen, Faces(), tmp_path, **how)).items()}
    damage(tmp_path / "part-000002.safetensors")
    with pytest.warns(CacheWarning, match="part-000002.safetensors is damaged"):
        after = build_cache(frozen, Faces(), tmp_path, **how)
    assert same(whole(after), before)


def test_part_of_another_length_is_made_anew(frozen, tmp_path):
    how = dict(settings=QUICK, progress=False)
    build_cache(frozen, Faces(), tmp_path, 4, chunk=4, **how)
    with pytest.warns(CacheWarning):
        assert len(build_cache(frozen, Faces(), tmp_path, 6, chunk=6, **how)) == 6


@pytest.mark.parametrize("n", [0 - 1, N + 1])
def test_wrong_number_of_faces(frozen, tmp_path, n):
    with pytest.raises(ValueError, match=f"Ask for 1 to {N}"):
        build_cache(frozen, Faces(), tmp_path, n, settings=QUICK)


def test_training_refuses_removals_that_did_not_remove(frozen, cache, tmp_path):
    poor = StyleCache([{**p, "flipped": torch.zeros_like(p["flipped"])} for p in cache.parts], cache.tags)
    assert set(poor.flip_rate().values()) == {0.0} and "Smiling 0.000" in repr(poor)
    with pytest.raises(ValueError, match="Smiling 0.00.*needed 0.90.*min_flip=0.00") as e:
        train_styles(frozen.autoencoder, classifiers(frozen), poor, tmp_path, 1, critic=frozen.critic, **NETS, **FIT)
    assert "\n" not in str(e.value)
    train_styles(
        frozen.autoencoder,
        classifiers(frozen),
        poor,
        tmp_path,
        1,
        critic=frozen.critic,
        min_flip=0,
        stages=0,
        **NETS,
        **FIT,
    )


@pytest.mark.parametrize("word", ["bf16", "no"])
def test_older_caches_are_taken_whatever_their_precision(frozen, tmp_path, word):
    "Their keys held the word `mixed_precision`."
    how, faces = dict(settings=QUICK, chunk=5, progress=False), Faces()
    made = whole(build_cache(frozen, faces, tmp_path, **how))
    made = {k: v.clone() for k, v in made.items()}
    said = json.dumps({**QUICK.noted(), "mixed_precision": word}, sort_keys=True)
    key = C.part_key(hashlib.sha256((C.weights_key(*frozen.parts) + said).encode()).hexdigest(), faces, range(N))
    old = {tmp_path / "settling.safetensors": key} | {
        tmp_path / f"part-{i:06d}.safetensors": C.part_key(key, faces, range(i, min(i + 5, N))) for i in range(0, N, 5)
    }
    for path, k in old.items():
        save_file({n: t.clone() for n, t in load_file(path).items()}, path, {"key": k})
    with warnings.catch_warnings():
        warnings.simplefilter("error", CacheWarning)
        for precision in ("no", "auto"):
            taken = build_cache(frozen, faces, tmp_path, **{**how, "settings": replace(QUICK, precision=precision)})
            assert taken.key == key and same(whole(taken), made)


def test_labels_of_a_dataset_are_found_by_name(frozen, cache, tmp_path):
    "The same faces with their columns turned give the same removals."

    class Turned(Faces):
        def __init__(self):
            super().__init__()
            self.tags, self.labels = TagSet(list(CELEBA_TAGS)[::-1]), self.labels.flip(1)

    turned = build_cache(frozen, Turned(), tmp_path, settings=QUICK, chunk=5, progress=False)
    assert turned.tags == CELEBA_TAGS and same(whole(turned), whole(cache))


LONG_HAIR = TagSet([Tag("LongHair", ("short", "long"))])


def critic_of(tags, **how):
    torch.manual_seed(1)
    return PerceptualNet(tag_list(tags), size=16, widths=(8, 8, 8, 8), **how)


def turned_critic(critic, order):
    "The same network with the columns of its tags in another order."
    out, sizes = (
        critic_of(TagSet([critic.tags.tags[k] for k in order]), n_factors=critic.config.n_factors),
        [len(t) for t in critic.tags] + [critic.config.n_factors],
    )
    state, rows = critic.state_dict(), torch.arange(sum(sizes)).split(sizes)
    rows = torch.cat([rows[k] for k in order] + [rows[-1]])
    out.load_state_dict({k: v[rows] if k.startswith("head.1.") else v for k, v in state.items()})
    return out


def test_a_critic_with_turned_tags_gives_the_same_losses(frozen, cache):
    turned = replace(frozen, critic=turned_critic(frozen.critic, [4, 0, 5, 3, 1, 2]))
    b = Faces().batch(range(5))
    one, two = (forward_pass(f, b["image"], b["labels"], QUICK, make_generator(0)) for f in (frozen, turned))
    assert one["flipped"].any() and not one["flipped"].all() and same(one, two)
    x = from_uint8(batch_of(cache)["images"])
    assert torch.equal(turned.read(x), frozen.read(x)) and not torch.equal(
        turned.critic.predict(x), frozen.critic.predict(x)
    ), "by place it would be another reading"
    lines = [style_readers(f, cache, least=-1.0, most=0.0) for f in (frozen, turned)]
    assert torch.equal(*lines)
    losses = [task_of(f, mapper=NETS["mapper"]).loss(batch_of(cache), numbers()) for f in (frozen, turned)]
    assert losses[0].keys() == losses[1].keys() and all(torch.allclose(losses[0][k], losses[1][k]) for k in losses[0])


def other_values_of_hair():
    return TagSet([Tag(t.name, t.values[::-1]) if t.name == "HairColor" else t for t in CELEBA_TAGS])


@pytest.mark.parametrize(
    "tags",
    [LONG_HAIR, TagSet(list(CELEBA_TAGS)[:5]), other_values_of_hair()],
    ids=["another", "one is missing", "other values"],
)
def test_a_critic_of_other_tags_is_refused(frozen, cache, tmp_path, tags):
    stranger, f = critic_of(tags), frozen
    calls = [
        lambda: replace(f, critic=stranger),
        lambda: train_styles(
            f.autoencoder, classifiers(f), cache, tmp_path / "a", 1, critic=stranger, min_flip=0, **FIT
        ),
        lambda: train_mask(f.autoencoder, classifiers(f), cache, tmp_path / "b", 1, critic=stranger, **FIT),
        lambda: train_ablations(
            f.autoencoder, classifiers(f), cache, tmp_path / "c", 1, lambda nets: {}, critic=stranger, min_flip=0
        ),
    ]
    for call in calls:
        with pytest.raises(
            ValueError, match="the critic knows .* and not .*latref_train perceptual --data FOLDER --tags FILE"
        ) as e:
            call()
        assert "\n" not in str(e.value) and not list(tmp_path.iterdir())


def test_a_critic_that_knows_more_is_taken(frozen):
    more = critic_of(TagSet([*LONG_HAIR, *CELEBA_TAGS]))
    x = Faces().batch(range(3))["image"]
    assert torch.equal(replace(frozen, critic=more).read(x), more.predict(x)[:, 1:])


def test_long_hair_is_not_read_off_a_smile(frozen, tmp_path):
    "docs/own_images.md in small: the critic that ships knows Smiling where LongHair would stand; one trained on the tag reads it."
    g = torch.Generator().manual_seed(0)
    long = torch.arange(N) % 2
    images = (torch.rand(N, 3, 16, 16, generator=g) * 40 + 160 * long[:, None, None, None]).to(
        torch.uint8
    )  # long hair is light here
    photos = TensorFaces(
        images, torch.where(torch.arange(N) % 7 == 0, -1, long)[:, None], LONG_HAIR
    )  # some cells of the list are empty
    with torch.no_grad():
        z = frozen.autoencoder.encode(photos.batch(range(N))["image"])
    heads = [
        fit_classifiers(z, photos.labels, LONG_HAIR, kind, hidden=8, steps=20, generator=make_generator(0))
        for kind in ("linear", "mlp")
    ]
    with pytest.raises(ValueError, match="the critic knows TagSet.Smiling.* and not TagSet.LongHair: short, long"):
        Frozen(frozen.autoencoder, *heads)
    critic = train_network(
        "perceptual",
        tmp_path / "critic",
        steps=30,
        batch_size=8,
        lr=1e-2,
        data=photos,
        progress=False,
        trackers=(),
        device="cpu",
    )
    mine = Frozen(frozen.autoencoder, *heads, critic)
    assert (mine.read(photos.batch(range(N))["image"])[:, 0] == long).float().mean() > 0.9
    cache = build_cache(mine, photos, tmp_path / "cache", settings=QUICK, progress=False)
    read = critic.predict(from_uint8(cache.column("removed")[:, 0]))[:, 0]
    assert torch.equal(
        cache.column("flipped")[:, 0], (read == cache.column("targets")[:, 0]) & (cache.column("labels")[:, 0] >= 0)
    )
    made = train_styles(
        frozen.autoencoder, heads, cache, tmp_path / "run", 1, critic=critic, min_flip=0, stages=0, **NETS, **FIT
    )
    assert made.extractor.tags.alike(LONG_HAIR)


def test_networks_and_caches_of_other_tags_are_refused(frozen, cache, tmp_path):
    few = TagSet(list(CELEBA_TAGS)[::-1])
    nets = style_networks(frozen.autoencoder, few, **NETS)
    with pytest.raises(ValueError, match="the modulation is of .*Give both of the same tags"):
        StyleTask(frozen, nets)
    other = StyleCache(cache.parts, few)
    for train in (train_styles, train_mask):
        with pytest.raises(ValueError, match="the cache is of .*Give both of the same tags"):
            train(frozen.autoencoder, classifiers(frozen), other, tmp_path, 1, critic=frozen.critic, **FIT)
    with pytest.raises(ValueError, match="the linear classifier is of"):
        replace(frozen, linear=ValueClassifier(16, few))
    bare = TagSet(
        [Tag(t.name, t.values) for t in CELEBA_TAGS]
    )  # attributes say where labels were read, not what they are
    assert replace(frozen, linear=ValueClassifier(16, bare)).tags == CELEBA_TAGS


# ---- numbers that are none


@pytest.mark.parametrize(
    "make, how",
    [(Weights, {k: v}) for k in vars(Weights()) for v in (float("nan"), -1.0)]
    + [(MaskWeights, {k: float("nan")}) for k in vars(MaskWeights())]
    + [(MaskWeights, dict(gain_to=0.1))]
    + [
        (StyleSettings, {k: v})
        for k, v in dict(
            noise=-1,
            warmup=0.5,
            swap=2,
            pasted=float("nan"),
            worn=-1,
            traces=float("inf"),
            translated=2,
            translated_from=-1,
            decoded=0,
            t_from=1,
        ).items()
    ]
    + [
        (ForwardSettings, {k: v})
        for k, v in dict(steps=0, iterations=1.5, settle=float("nan"), settled_by=0, seed=-1, precision="fp8").items()
    ],
    ids=str,
)
def test_settings_of_the_style_trainings_are_held_against_their_ranges(make, how):
    with pytest.raises(ValueError, match=f"^{list(how)[0]}=.* came; allowed: ") as e:
        make(**how)
    assert "\n" not in str(e.value)


def test_other_words_are_named():
    with pytest.raises(ValueError, match="Did you mean 'removed'"):
        StyleSettings(source="remove")
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


def test_scene_pairs_faces_as_it_says(cache, frozen):
    b = batch_of(cache)
    s = stage(b, frozen, StyleSettings(swap=1.0, traces=0.0, pasted=0.0), numbers())
    g = numbers()
    which = [g.rand(), g.randint(6)][1]
    assert all(torch.equal(s.reference[i], from_uint8(b["removed"][i, c])) for i, c in enumerate(which))
    for i in range(6):
        a = (i - 1) % 6
        for c in range(6):
            back = bool(which[i] == c)  # the reference has lost this tag: the pair is read backwards
            value = b["targets"][i, c] if back else b["labels"][i, c]
            source, goal = (b["feats"][i], b["removed_feats"][i, c])[:: -1 if not back else 1]
            assert torch.equal(s.source[i, c], source) and torch.equal(s.feats[i, c], goal) and s.values[i, c] == value
            assert torch.allclose(s.u0[i, c], frozen.mlp.normalise(frozen.autoencoder.head(goal[None]))[0], atol=1e-4)
            assert torch.equal(s.other[i, c], b["removed_feats"][a, c] if b["labels"][a, c] == value else b["feats"][a])
            for labels, row in ((s.own, i), (s.wanted, a)):
                assert labels[i, c, c] == value and all(
                    labels[i, c, k] == b["labels"][row, k] for k in range(6) if k != c
                )
    lost = torch.nn.functional.one_hot(which, 6).bool()
    assert torch.equal(s.valid.bool(), b["flipped"]) and torch.equal(s.seen.bool(), b["flipped"] & ~lost)
    false = stage(b, frozen, StyleSettings(swap=1.0, traces=0.5), numbers()).source - s.source
    gone = b["feats"].roll(1, 0)[:, None] - b["removed_feats"].roll(1, 0)  # what the other face has lost
    along = torch.nn.functional.cosine_similarity(false.flatten(2), gone.flatten(2), dim=2).abs()
    assert not false[lost].any() and torch.allclose(along[~lost], torch.ones(30), atol=1e-4)
    alone = stage(b, frozen, StyleSettings(swap=1.0, source="original", pasted=0.0), numbers())
    assert torch.equal(alone.values, b["labels"]) and torch.equal(alone.valid.bool(), ~lost)
    own = stage(b, frozen, StyleSettings(swap=0.0, source="original", pasted=0.0), numbers())
    assert torch.equal(own.reference, s.x) and torch.equal(own.source[:, 3], b["feats"]) and own.valid.all()


def test_start_is_the_removed_face_and_every_network_learns(frozen, cache):
    task, b = task_of(frozen, mapper=NETS["mapper"]), batch_of(cache)
    terms = task.loss(b, numbers())
    s = stage(b, frozen, task.settings, numbers())
    with torch.no_grad():
        z = frozen.autoencoder.head(s.source.flatten(0, 1)).unflatten(0, (6, 6))
    assert torch.allclose(terms["code"], C.code_loss(frozen.mlp.normalise(z), s.u0, s.valid), atol=1e-4)
    assert torch.allclose(
        terms["loss"], sum(getattr(task.weights, k) * v for k, v in terms.items() if k != "loss"), rtol=1e-5
    )
    torch.nn.init.normal_(task.networks.modulation.post[-1].weight, std=0.1)
    task.loss(b, numbers())["loss"].backward()
    for name, module in task.modules.items():
        assert sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None) > 0, name
    assert not any(p.requires_grad for m in frozen.parts for p in m.parameters()) and all(
        p.grad is None for p in frozen.autoencoder.parameters()
    )


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


# ---- training


def test_goes_on_to_the_same_bits(frozen, cache, tmp_path):
    how = dict(critic=frozen.critic, min_flip=0, stages=3, **NETS, **FIT)
    go = lambda out, **more: train_styles(
        frozen.autoencoder, classifiers(frozen), cache, tmp_path / out, 5, **how, **more
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
        assert same(a, b) and same(dict(getattr(through, name).state_dict()), dict(getattr(nets, name).state_dict())), (
            name
        )
        assert same(dict(type(getattr(nets, name)).from_pretrained(tmp_path / "b" / name).state_dict()), b)
    stages = [load_stages(tmp_path / o / "stages.safetensors") for o in "ab"]
    assert (
        stages[0].steps == stages[1].steps == [0, 1, 5]
        and torch.equal(stages[0].restored, stages[1].restored)
        and torch.equal(stages[0].losses, stages[1].losses)
    )
    facts = json.loads((tmp_path / "b/training.json").read_text())
    assert facts["task"]["weights"]["code"] == 6.0 and facts["task"]["settings"]["source"] == "removed"


def test_other_weights_or_autoencoder_are_refused(frozen, cache, tmp_path):
    how = dict(critic=frozen.critic, min_flip=0, stages=0, **NETS, **FIT)
    train_styles(frozen.autoencoder, classifiers(frozen), cache, tmp_path, 1, **how)
    with pytest.raises(ValueError, match="weights.match: .* then, 9.0 now"):
        train_styles(frozen.autoencoder, classifiers(frozen), cache, tmp_path, 2, weights=Weights(match=9.0), **how)
    with pytest.raises(ValueError, match="moved=0.6 came.*less than 0.5"):
        train_styles(
            frozen.autoencoder,
            classifiers(frozen),
            cache,
            tmp_path / "moved",
            1,
            settings=StyleSettings(moved=0.6),
            **how,
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
            data,
            tmp_path / "run",
            steps,
            critic=frozen.critic,
            min_flip=0,
            stages=0,
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


def test_a_second_training_goes_on_from_the_averaged_weights(frozen, cache, tmp_path):
    flipped = StyleCache([{**p, "flipped": torch.ones_like(p["flipped"])} for p in cache.parts], cache.tags)
    how = dict(critic=frozen.critic, stages=2, **NETS, **FIT)
    go = lambda out, data, **more: train_styles(
        frozen.autoencoder, classifiers(frozen), data, tmp_path / out, 2, **how, **more
    )
    seen = []
    first, old = go("a", flipped), load_stages(tmp_path / "a/stages.safetensors")
    second = go(
        "b", flipped, init=tmp_path / "a", settings=StyleSettings(noise=0.5), callback=lambda run: seen.append(run.done)
    )
    new, averaged = load_stages(tmp_path / "b/stages.safetensors"), C.ema_weights(tmp_path / "a", "modulation")
    assert (
        old.steps == [0, 2]
        and new.steps == [0, 2, 4]
        and torch.equal(new.restored[:2], old.restored)
        and not torch.equal(new.restored[2], old.restored[1])
    )
    task = task_of(frozen)
    C.go_on_from(tmp_path / "a", task)
    assert same(dict(task.networks.modulation.state_dict()), averaged) and same(
        dict(task.modules["tell"].state_dict()), C.ema_weights(tmp_path / "a", "tell")
    )
    far = max(float((v - averaged[k]).abs().max()) for k, v in second.modulation.state_dict().items())
    assert 0 < far < 2.5 * FIT["lr"] and seen == [1, 2], "two steps away from where the first training ended"
    other = StyleCache([{**p, "images": 255 - p["images"]} for p in flipped.parts], cache.tags)
    go("c", other, init=tmp_path / "a")
    assert load_stages(tmp_path / "c/stages.safetensors").steps == [0, 2], (
        "stages of other faces are no part of this figure"
    )


def test_an_earlier_training_may_get_a_fresh_encoder_and_another_way_to_read(frozen, cache, tmp_path):
    train_styles(
        frozen.autoencoder,
        classifiers(frozen),
        cache,
        tmp_path,
        2,
        critic=frozen.critic,
        min_flip=0,
        stages=0,
        **NETS,
        **FIT,
    )
    encoder, old = frozen.autoencoder.encoder.state_dict(), C.ema_weights(tmp_path, "extractor")
    whole = {**NETS, "extractor": {**NETS["extractor"], "whole": True}}
    part = lambda task, name: {
        k.removeprefix(name): v for k, v in task.networks.extractor.state_dict().items() if k.startswith(name)
    }

    def begun(nets, **how):
        task = StyleTask(frozen, C.style_networks(frozen.autoencoder, cache.tags, seed=5, **nets))
        C.go_on_from(tmp_path, task, **how)
        return task

    kept, fresh = begun(whole), begun(whole, fresh_encoder=True)
    assert not same(part(kept, "encoder."), encoder) and same(part(fresh, "encoder."), encoder)
    assert same(part(fresh, "transformer."), part(kept, "transformer.")) and same(
        part(kept, "transformer."),
        {k.removeprefix("transformer."): v for k, v in old.items() if k.startswith("transformer.")},
    )
    assert not kept.networks.extractor.from_whole.weight.any(), "what the earlier training lacks begins at nothing"


def test_nothing_to_go_on_from(frozen, cache, tmp_path):
    go = lambda nets, **more: train_styles(
        frozen.autoencoder,
        classifiers(frozen),
        cache,
        tmp_path / "b",
        1,
        critic=frozen.critic,
        min_flip=0,
        stages=0,
        **nets,
        **FIT,
        **more,
    )
    with pytest.raises(ValueError, match="holds no checkpoint to go on from"):
        go(NETS, init=tmp_path / "nowhere")
    train_styles(
        frozen.autoencoder,
        classifiers(frozen),
        cache,
        tmp_path / "a",
        1,
        critic=frozen.critic,
        min_flip=0,
        stages=0,
        **NETS,
        **FIT,
    )
    with pytest.raises(ValueError, match="another shape.*Ask for the same"):
        go({**NETS, "modulation": {**NETS["modulation"], "width": 32}}, init=tmp_path / "a")


def test_makes_the_cache_of_a_dataset(frozen, tmp_path):
    train_styles(
        frozen.autoencoder,
        classifiers(frozen),
        Faces(),
        tmp_path,
        1,
        critic=frozen.critic,
        n=4,
        forward=QUICK,
        min_flip=0,
        stages=0,
        **NETS,
        **FIT,
    )
    assert list((tmp_path / "cache").glob("part-*.safetensors"))


def test_training_lowers_the_loss(frozen, cache, tmp_path):
    task = task_of(frozen)
    before = task.loss(batch_of(cache), numbers())
    C.fit(task, cache, tmp_path, 25, **FIT)
    after = task.loss(batch_of(cache), numbers())
    assert after["loss"] < before["loss"] and after["code"] < before["code"]


# ---- stages


def test_stages_come_back_with_their_ablations(frozen, cache, tmp_path):
    flipped = StyleCache([{**p, "flipped": torch.ones_like(p["flipped"])} for p in cache.parts], cache.tags)
    made = [StageRecorder(task_of(frozen), flipped, tmp_path / f"{k}.safetensors", [0]).take(0) for k in "ab"]
    assert (
        torch.equal(made[0].restored, made[1].restored)
        and made[0].original.dtype == torch.uint8
        and made[0].losses.shape == (1, len(made[0].terms))
    )
    assert all(i != j for i, j in zip(made[0].faces, made[0].references)) and all(
        CELEBA_TAGS[t].index(v) is not None for t, v in zip(made[0].tags, made[0].values)
    )
    save_stages(tmp_path / "both.safetensors", replace(made[0], ablations={"no_mask": made[1]}))
    back = load_stages(tmp_path / "both.safetensors")
    assert (
        back.steps == [0]
        and back.faces == made[0].faces
        and torch.equal(back.ablations["no_mask"].swapped, made[1].swapped)
        and back.ablations["no_mask"].terms == made[1].terms
    )


def test_bad_stages_are_one_line(tmp_path):
    (tmp_path / "s.safetensors").write_bytes(b"0" * 30)
    for name in ("s.safetensors", "missing.safetensors"):
        with pytest.raises(ValueError, match="holds no stages") as e:
            load_stages(tmp_path / name)
        assert "\n" not in str(e.value)


def test_snapshot_steps():
    assert snapshot_steps(600, 7)[0] == 0 and snapshot_steps(600, 7)[-1] == 600 and len(snapshot_steps(600, 7)) == 7
    assert snapshot_steps(2, 7) == [0, 1, 2] and snapshot_steps(10, 1) == [10]


# ---- ablations


def test_each_ablation_leaves_out_what_it_says(frozen, cache):
    tasks = {name: task_of(frozen, name) for name in ABLATIONS}
    config = lambda name: tasks[name].networks.modulation.config
    assert (
        not config("no_vectors").use_vectors
        and not config("no_cross").use_cross
        and not config("no_mask").use_mask
        and config("flat").flat
        and len(tasks["flat"].networks.modulation.translators) == 1
    )
    assert (
        config("whole").use_vectors
        and config("whole").use_cross
        and config("whole").use_mask
        and not config("whole").flat
    )
    terms = {name: set(t.loss(batch_of(cache), numbers())) for name, t in tasks.items()}
    assert terms["whole"] - terms["no_perceptual"] == {"perceptual", "pixels"} and terms["whole"] - terms[
        "no_classification"
    ] == {"classification", "cross"}
    assert tasks["no_forward"].settings.source == "original" and isinstance(
        tasks["direction"].networks.extractor, C.DirectionStyles
    )
    with pytest.raises(ValueError, match="ablation 'no_masks' is not known. Did you mean 'no_mask'"):
        task_of(frozen, "no_masks")


def test_finished_runs_are_kept(frozen, cache, tmp_path):
    seen = []

    def evaluate(nets):
        seen.append(nets)
        return {"psnr": 20.0 + len(seen), "what": "words"}

    go = lambda names, steps=2: train_ablations(
        frozen.autoencoder,
        classifiers(frozen),
        cache,
        tmp_path,
        steps,
        evaluate,
        names=names,
        seeds=(0, 1),
        critic=frozen.critic,
        min_flip=0,
        stages=0,
        shape=SHAPE,
        modulation=NETS["modulation"],
        extractor=NETS["extractor"],
        progress=False,
        **{k: v for k, v in FIT.items() if k not in ("progress", "trackers")},
    )
    first = go(("whole", "no_mask"))
    assert len(seen) == 4 and [r["ablation"] for r in first["rows"]] == ["whole", "no_mask"]
    assert (
        first["rows"][0]["psnr"] == 22.0
        and first["rows"][0]["psnr_sd"] == pytest.approx(2**0.5)
        and first["rows"][0]["n"] == 2
        and "what" not in first["rows"][0]
    )
    assert json.loads((tmp_path / "ablations.json").read_text())["rows"] == first["rows"]
    assert go(("whole", "no_mask", "flat"))["rows"][:2] == first["rows"] and len(seen) == 6, (
        "finished runs are not trained again"
    )
    with pytest.warns(CacheWarning, match="another training"):
        go(("flat",), 3)
    assert len(seen) == 8
    for text in ("{", "[]", '{"key": 3}'):
        (tmp_path / "flat-0" / "result.json").write_text(text)
        with pytest.raises(ValueError, match="result.json.* Move it away to do this run again"):
            go(("flat",), 3)


def test_seeds_differ_and_repeat(frozen, cache, tmp_path):
    def weights(seed, out):
        rows = train_ablations(
            frozen.autoencoder,
            classifiers(frozen),
            cache,
            tmp_path / out,
            1,
            lambda nets: {"sum": float(sum(p.detach().double().sum() for p in nets.modulation.parameters()))},
            names=("whole",),
            seeds=(seed,),
            critic=frozen.critic,
            min_flip=0,
            stages=0,
            shape=SHAPE,
            modulation=NETS["modulation"],
            extractor=NETS["extractor"],
            progress=False,
            batch_size=4,
            device="cpu",
        )
        return rows["rows"][0]["sum"]

    assert weights(0, "a") == weights(0, "b") != weights(1, "c")


def test_stages_of_ablations_are_gathered(frozen, cache, tmp_path):
    flipped = StyleCache([{**p, "flipped": torch.ones_like(p["flipped"])} for p in cache.parts], cache.tags, "flipped")
    train_ablations(
        frozen.autoencoder,
        classifiers(frozen),
        flipped,
        tmp_path,
        2,
        lambda nets: {"a": 1},
        names=("whole", "no_mask"),
        seeds=(0,),
        critic=frozen.critic,
        stages=2,
        shape=SHAPE,
        modulation=NETS["modulation"],
        extractor=NETS["extractor"],
        progress=False,
        batch_size=4,
        device="cpu",
    )
    found = gather_stages(tmp_path / "whole-0/stages.safetensors", tmp_path, ("whole", "no_mask", "flat"))
    assert list(found.ablations) == ["whole", "no_mask"] and found.ablations["no_mask"].steps == [0, 2]


def test_only_the_extractor_learns_in_the_warm_up_and_the_change_is_told(frozen, cache):
    task, b = task_of(frozen, settings=StyleSettings(warmup=1), mapper=NETS["mapper"]), batch_of(cache)
    terms = task.loss(b, numbers())
    assert set(terms) == {"loss", "difference", "bottleneck"}
    terms["loss"].backward()
    moved = {
        name
        for name, m in task.modules.items()
        if any(p.grad is not None and p.grad.abs().sum() > 0 for p in m.parameters())
    }
    assert moved == {"extractor", "tell"}
    s = stage(b, frozen, StyleSettings(swap=1.0, pasted=0.0), numbers())
    with torch.no_grad():
        source = frozen.mlp.normalise(
            frozen.autoencoder.head(
                stage(b, frozen, StyleSettings(swap=1.0, traces=0.0, pasted=0.0), numbers()).source.flatten(0, 1)
            )
        ).unflatten(0, (6, 6))
    assert torch.allclose(s.u0 - source, s.change, atol=1e-3) and C.told(s.change, s.change, s.valid) == 0
    whole = task.loss(b, C.StepGenerator(0, 1, 6))
    assert {"difference", "code", "match"} <= set(whole)
    assert "tell" not in task_of(frozen, weights=Weights(difference=0.0)).modules


def test_readers_follow_what_a_removal_moves(frozen, cache):
    "A reading that no removal moves has no line, one that is moved has; the loss is nought for the same code, and silent where nothing is valid."
    moved = {**cache.parts[0]}
    still = {**moved, "removed": moved["images"][:, None].expand_as(moved["removed"])}
    part = lambda p: StyleCache([p], cache.tags)
    assert not style_readers(frozen, part(still)).any()
    lines = style_readers(frozen, cache, least=-1.0, most=0.0)  # every reading counts in full
    n, d = len(cache.tags), cache.parts[0]["z"].shape[1]
    assert lines.shape == (n, 3, d, frozen.critic.config.n_factors) and lines[3].any() and not lines[0, 2].any()
    u = torch.randn(4, n, d, generator=make_generator(0))
    values, yes = torch.zeros(4, n, dtype=torch.long), torch.ones(4, n)
    assert (
        style_distance(u, u, lines, values, yes) == 0 < style_distance(u, -u, lines, values, yes)
        and style_distance(u, -u, lines, values, 0 * yes) == 0
    )
    want = torch.stack(
        [((u[b, c] * 2) @ lines[c, values[b, c]]).square().mean() for b in range(4) for c in range(n)]
    ).mean()
    assert torch.allclose(style_distance(u, -u, lines, values, yes), want, rtol=1e-4)


def test_the_style_is_asked_of_faces_that_lack_the_value(frozen, cache):
    "The term is there only with readers, and counts only where the wearer, as it is, lacks the value."
    b, s = batch_of(cache), stage(batch_of(cache), frozen, StyleSettings(swap=0.0, pasted=0.0), numbers())
    assert torch.equal(s.lacks, b["labels"].roll(1, 0) != b["labels"]) and s.lacks.any() and not s.lacks.all()
    without, lines = task_of(frozen, mapper=NETS["mapper"]), style_readers(frozen, cache, least=-1.0, most=0.0)
    assert "style" not in without.loss(b, numbers())
    task = task_of(frozen, mapper=NETS["mapper"])
    task.readers = lines
    assert task.loss(b, numbers())["style"] > 0
    alike = {**b, "labels": b["labels"][:1].expand_as(b["labels"])}
    assert task.loss(alike, numbers())["style"] == 0


def test_references_in_pieces(frozen, cache):
    "What is not laid over is another face's, is read as that, and restores nobody; at least one tag is always worn."
    b = batch_of(cache)
    s = stage(b, frozen, StyleSettings(swap=0.0, pasted=1.0, worn=0.0), numbers())
    plain = stage(b, frozen, StyleSettings(swap=0.0, pasted=0.0), numbers())
    assert (s.worn.sum(1) == 1).all() and plain.worn.all() and torch.equal(plain.reference, plain.x)
    assert (
        torch.equal(s.values, torch.where(s.worn, b["labels"], b["labels"].roll(2, 0)))
        and not s.valid[~s.worn].any()
        and torch.equal(s.valid[s.worn], plain.valid[s.worn])
    )
    where = torch.stack(
        [
            C.changed_region(s.x[i : i + 1], from_uint8(b["removed"][i, s.worn[i]]), full=0.12)[0]
            for i in range(len(s.x))
        ]
    )
    assert torch.allclose(s.reference, torch.lerp(s.x.roll(2, 0), s.x, where), atol=1e-5)
    all_ = stage(b, frozen, StyleSettings(swap=0.0, pasted=1.0, worn=1.0), numbers())
    assert all_.worn.all() and torch.equal(all_.values, plain.values)


def test_a_term_that_came_later_is_nan_before(frozen, cache, tmp_path):
    "Stages that go on with one more term keep what was recorded without it."
    flipped = StyleCache([{**p, "flipped": p["labels"] >= 0} for p in cache.parts], cache.tags)
    task = task_of(frozen)
    go = lambda step: StageRecorder(task, flipped, tmp_path / "s.safetensors", [step]).take(step)
    first = go(0)
    task.readers = style_readers(frozen, cache, least=-1.0, most=0.0)
    both = go(3)
    i = both.terms.index("style")
    assert (
        both.steps == [0, 3]
        and "style" not in first.terms
        and both.losses[0, i].isnan()
        and both.losses[1, i] > 0
        and torch.equal(both.restored[:1], first.restored)
    )
    assert torch.equal(both.losses[0, both.terms.index("code")], first.losses[0, first.terms.index("code")])
