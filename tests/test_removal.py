"The forward step and its cache: what is removed, what is kept, what is noticed."

import json
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from consistency_case import (
    FIT,
    N,
    NETS,
    QUICK,
    Faces,
    batch_of,
    cache,
    classifiers,
    frozen,
    numbers,
    same,
    task_of,
    whole,
)  # noqa: F401, F811
from latref_nb.ablations import train_ablations
from latref_nb.autoencoder import DiffusionAutoencoder
from latref_nb.consistency import StyleTask, style_networks, style_readers, train_styles
from latref_nb.core import from_uint8, make_generator
from latref_nb.tags import CELEBA_TAGS, Tag, TagSet
from latref_nb.cache import TensorFaces
from latref_nb.directions import ValueClassifier, fit_classifiers
from latref_nb.tags import tag_list
from latref_nb.masks import MaskWeights, train_mask
from latref_nb.judges import train_network
from latref_nb.perceptual import PerceptualNet
from latref_nb.removal import (
    CacheWarning,
    ForwardSettings,
    Frozen,
    Settling,
    StyleCache,
    _Job,
    build_cache,
    fit_settling,
    forward_pass,
    other_values,
    transport_map,
)

torch.set_num_threads(1)


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


def counting(monkeypatch, die_at=None):
    "The starts of the parts that are made from now on; at the `die_at`th the power goes."
    plain, made = _Job.make, []

    def make(job, start):
        made.append(start)
        if len(made) == die_at:
            raise KeyboardInterrupt
        return plain(job, start)

    monkeypatch.setattr(_Job, "make", make)
    return made


def test_a_killed_build_goes_on_to_the_same_cache(frozen, cache, tmp_path, monkeypatch):
    made = counting(monkeypatch, die_at=2)
    with pytest.raises(KeyboardInterrupt):
        build_cache(frozen, Faces(), tmp_path, settings=QUICK, chunk=5, progress=False)
    assert len(list(tmp_path.glob("part-*"))) == 1
    again = build_cache(frozen, Faces(), tmp_path, settings=QUICK, chunk=5, progress=False)
    assert made == [0, 5, 5, 10] and same(whole(again), whole(cache)) and again.key == cache.key
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_cache(frozen, Faces(), tmp_path, settings=QUICK, chunk=5, progress=False)
    assert len(made) == 4, "nothing is computed twice"


def test_more_faces_keep_the_whole_parts(frozen, tmp_path, monkeypatch):
    how = dict(settings=QUICK, chunk=5, progress=False)
    build_cache(frozen, Faces(), tmp_path, 10, **how)
    made = counting(monkeypatch)
    assert len(build_cache(frozen, Faces(), tmp_path, 14, **how)) == 14 and made == [10]


def test_two_processes_make_the_same_cache(frozen, cache, tmp_path):
    two = build_cache(frozen, Faces(), tmp_path, settings=QUICK, chunk=5, processes=2, progress=False)
    assert same(whole(two), whole(cache)) and two.key == cache.key and two.provenance == cache.provenance


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
    how = dict(critic=frozen.critic, min_flip=0, **NETS, **FIT)
    train_styles(frozen.autoencoder, classifiers(frozen), poor, tmp_path, 1, **how)


def test_labels_of_a_dataset_are_found_by_name(frozen, cache, tmp_path):
    "The same faces with their columns turned give the same removals."

    class Turned(Faces):
        def __init__(self):
            super().__init__()
            self.tags, self.labels = TagSet(list(CELEBA_TAGS)[::-1]), self.labels.flip(1)

    turned = build_cache(frozen, Turned(), tmp_path, settings=QUICK, chunk=5, progress=False)
    assert turned.tags == CELEBA_TAGS and same(whole(turned), whole(cache))


# ---- tags and critics


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
    made = train_styles(frozen.autoencoder, heads, cache, tmp_path / "run", 1, critic=critic, min_flip=0, **NETS, **FIT)
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
