"Classifiers, directions and calibration on codes whose truth is planted."

import math

import pytest
import torch
import torch.nn.functional as F

from latref_nb.tags import Tag, TagSet, tag_list, tag_set
from latref_nb.core import make_generator
from latref_nb.directions import (
    AIMS,
    METHODS,
    METRICS,
    Calibration,
    ValueClassifier,
    balanced_accuracy,
    calibrate,
    contrast,
    edit_code,
    edit_scores,
    fit_classifiers,
    fit_eigenfaces,
    global_direction,
    global_edit,
    head_losses,
    image_specific,
    metric_matrix,
    other_contrasts,
    probe_accuracy,
    value_gradient,
    value_weights,
)

TAGS = TagSet(
    [Tag("Line", ("without", "with")), Tag("Colour", ("black", "blond", "brown")), Tag("Ring", ("without", "with"))]
)
D = 12


def planted(n, seed=0):
    "Codes (n, D): Line on a slanted axis, Colour at three corners, Ring on a radius; the rest is noise of unequal size."
    g = make_generator(seed)
    labels = torch.stack([torch.randint(len(t), (n,), generator=g) for t in TAGS], 1)
    z = torch.randn(n, D, generator=g) * torch.linspace(0.2, 1.0, D)
    z[:, 0] += 2.0 * labels[:, 0]
    z[:, 1] += 1.0 * labels[:, 0]
    z[:, 2:4] += 3 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])[labels[:, 1]]
    angle, radius = 6.2832 * torch.rand(n, generator=g), torch.where(labels[:, 2] == 1, 2.5, 0.8)
    z[:, 4:6] = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1) + 0.15 * torch.randn(n, 2, generator=g)
    return 3 * z - 5, labels


@pytest.fixture(scope="module")
def data():
    return planted(2000, 0), planted(500, 1)


@pytest.fixture(scope="module")
def linear(data):
    return fit_classifiers(*data[0], TAGS, "linear", steps=300, generator=make_generator(0))


@pytest.fixture(scope="module")
def mlp(data):
    return fit_classifiers(*data[0], TAGS, "mlp", hidden=32, steps=400, generator=make_generator(0))


def test_linear_reads_what_is_linear_and_only_that(linear, data):
    z, labels = data[1]
    accuracy = probe_accuracy(linear.predict(z), labels, TAGS)
    assert accuracy["Line"] > 0.97 and accuracy["Colour"] > 0.97
    assert accuracy["Ring"] < 0.7


def test_mlp_reads_the_ring(mlp, data):
    z, labels = data[1]
    assert min(probe_accuracy(mlp.predict(z), labels, TAGS).values()) > 0.95


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_fit_is_deterministic_and_leaves_the_global_generator_alone(data, kind):
    z, labels = data[0]
    before = torch.random.get_rng_state()
    a, b = (fit_classifiers(z, labels, TAGS, kind, steps=30, generator=make_generator(5)) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
    c = fit_classifiers(z, labels, TAGS, kind, steps=30, generator=make_generator(6))
    assert any(not torch.equal(x, y) for x, y in zip(a.heads.state_dict().values(), c.heads.state_dict().values()))


def test_early_stopping_does_not_overfit_random_labels():
    g = make_generator(0)
    z, labels = torch.randn(200, 40, generator=g), torch.randint(2, (200, 3), generator=g)
    model = fit_classifiers(z, labels, TAGS_TWO, "mlp", steps=300, lr=0.01, generator=make_generator(1))
    losses = head_losses(model(torch.randn(500, 40, generator=g)), torch.randint(2, (500, 3), generator=g))
    assert losses.max() < 1.2


TAGS_TWO = TagSet([Tag(n, ("without", "with")) for n in "abc"])


def test_unknown_labels_do_not_count(data):
    z, labels = data[0]
    hidden = labels.clone()
    hidden[::2, 0] = -1
    model = fit_classifiers(z, hidden, TAGS, steps=200, generator=make_generator(0))
    assert probe_accuracy(model.predict(data[1][0]), data[1][1], TAGS)["Line"] > 0.97
    logits = {t.name: torch.randn(6, len(t)) for t in TAGS}
    y = torch.tensor([[0, -1, 1]] * 3 + [[-1, -1, 0]] * 3)
    losses = head_losses(logits, y)
    assert torch.isfinite(losses).all() and losses[1] == 0
    assert torch.allclose(losses[0], F.cross_entropy(logits["Line"][:3], y[:3, 0]))


def test_rare_values_weigh_as_much_as_frequent_ones():
    labels = torch.tensor([[0, 0, 0]] * 9 + [[1, 1, 1]] + [[1, 2, 0]])
    for w, column in zip(value_weights(labels, TAGS), labels.T):
        shares = torch.stack([w[k] * (column == k).sum() for k in column.unique()])
        assert torch.allclose(shares, shares[:1].expand_as(shares))


def test_balanced_accuracy_is_the_mean_recall():
    labels = torch.tensor([0, 0, 0, 1, -1])
    assert balanced_accuracy(torch.tensor([0, 0, 1, 1, 0]), labels) == pytest.approx((2 / 3 + 1) / 2)
    assert math.isnan(balanced_accuracy(torch.tensor([0]), torch.tensor([-1])))


def test_save_and_load_keep_tags_order_strengths_and_bits(mlp, tmp_path, data):
    mlp.set_strengths("image_specific", Calibration({("Ring", "with"): 1.5}))
    mlp.save_pretrained(tmp_path)
    back = ValueClassifier.from_pretrained(tmp_path)
    assert back.tags == TAGS and back.tags.names == TAGS.names
    assert (
        back.strength("image_specific", "Ring", "with") == 1.5
        and back.strength("image_specific", "Line", "with") == 1.0
    )
    assert all(torch.equal(a, b) for a, b in zip(mlp.state_dict().values(), back.state_dict().values()))
    assert torch.equal(back.predict(data[1][0]), mlp.predict(data[1][0]))


def test_tags_as_a_list_keep_everything():
    celeba = TagSet(
        [
            Tag("HairColor", ("black", "blond", "brown"), ("Black_Hair", "Blond_Hair", "Brown_Hair")),
            Tag("A", ("x", "y")),
        ]
    )
    assert tag_set(tag_list(celeba)) == celeba and tag_list(tag_list(celeba)) == tag_list(celeba)


def test_normalise_and_back(linear, data):
    z = data[1][0]
    assert torch.allclose(linear.denormalise(linear.normalise(z)), z, atol=1e-4)
    u = linear.normalise(data[0][0])
    assert torch.allclose(u.mean(0), torch.zeros(D), atol=1e-4) and torch.allclose(u.std(0), torch.ones(D), atol=1e-3)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("pair", TAGS.pairs)
def test_conditional_direction_raises_its_value_and_no_other_log_odds(linear, metric, pair):
    a = global_direction(linear, *pair, metric=metric)
    assert float(a.norm()) == pytest.approx(1, abs=1e-5)
    assert contrast(linear, *pair) @ a > 0
    assert (other_contrasts(linear, pair[0]) @ a).abs().max() < 2e-3 * other_contrasts(linear, pair[0]).norm(
        dim=1
    ).max()


def test_unconditional_identity_direction_is_the_weight(linear):
    assert torch.allclose(
        global_direction(linear, "Line", "with", metric="identity", conditional=False),
        F.normalize(contrast(linear, "Line", "with"), dim=0),
    )


def test_subspace_metric_is_a_projection_of_the_asked_share(linear):
    P = metric_matrix(linear, "subspace", 0.8)
    assert torch.allclose(P @ P, P, atol=1e-4)
    assert 0.8 <= float((P @ linear.u_cov).trace() / linear.u_cov.trace()) < 0.8 + 1.5 / D * 2


def test_shift_is_one_step_for_all_and_strength_one_is_the_gap(linear, data):
    z, labels = data[0]
    z = z[labels[:, 0] == 0]
    moved = linear.normalise(global_edit(z, linear, "Line", "with")) - linear.normalise(z)
    assert torch.allclose(moved, moved[:1].expand_as(moved), atol=1e-4)
    w, u, y = contrast(linear, "Line", "with"), linear.normalise(data[0][0]), labels[:, 0]
    gap = (u[y == 1].mean(0) - u[y == 0].mean(0)) @ w
    assert float(moved[0] @ w) == pytest.approx(float(gap), rel=1e-3)


def test_mean_aim_puts_every_face_at_the_mean_and_pushes_none_back(linear, data):
    z, labels = data[0]
    w = contrast(linear, "Line", "with")
    after = linear.normalise(global_edit(z[labels[:, 0] == 0], linear, "Line", "with", aim="mean")) @ w
    assert float(after.std()) < 1e-2 * float(w.norm())
    has = z[labels[:, 0] == 1]
    assert (
        (linear.normalise(global_edit(has, linear, "Line", "with", aim="mean")) - linear.normalise(has)) @ w
    ).min() > -1e-3


@pytest.mark.parametrize("method", METHODS)
def test_edits_flip_their_tag_and_keep_the_others(linear, mlp, data, method):
    z, labels = data[1]
    for tag, value in TAGS.pairs:
        if method == "global_direction" and tag == "Ring":
            continue  # not linear: shown above
        z0 = z[labels[:, TAGS.index(tag)] != TAGS[tag].index(value)]
        z1 = edit_code(
            z0,
            tag,
            value,
            method,
            linear=linear,
            mlp=mlp,
            options=dict(aim="mean", source="read") if method == "global_direction" else None,
        )
        target, others = edit_scores(mlp.predict(z0), mlp.predict(z1), TAGS, tag, value)
        assert target.float().mean() > 0.9, (tag, value)
        assert others.mean() > 0.9, (tag, value)


def test_global_direction_cannot_follow_the_ring(linear, mlp, data):
    z, labels = data[1]
    z0 = z[labels[:, 2] == 1]  # shrink a radius: no one direction does
    z1 = global_edit(z0, linear, "Ring", "without", 2.0)
    assert edit_scores(mlp.predict(z0), mlp.predict(z1), TAGS, "Ring", "without")[0].float().mean() < 0.6


@pytest.mark.parametrize("tag,value,keep", [("Line", "with", 0.0), ("Colour", "brown", 1.0), ("Ring", "without", 2.0)])
def test_gradient_equals_a_difference_quotient(mlp, data, tag, value, keep):
    double = ValueClassifier.from_config(mlp.config).double()
    double.load_state_dict(mlp.state_dict())
    u = double.normalise(data[1][0][:4].double())
    held = double.predict(data[1][0][:4].double())
    g, p = value_gradient(double, u, tag, value, held, keep)

    def goal(u):
        lp = double.log_probs(u)
        i = TAGS.index(tag)
        return lp[tag][:, TAGS[tag].index(value)] + keep * sum(
            lp[t.name].gather(1, held[:, k : k + 1])[:, 0] for k, t in enumerate(TAGS) if k != i
        )

    for j in range(D):
        e = torch.zeros(D).double()
        e[j] = 1e-6
        assert torch.allclose(g[:, j], (goal(u + e) - goal(u - e)) / 2e-6, atol=1e-5)
    assert torch.allclose(p, double.log_probs(u)[tag][:, TAGS[tag].index(value)].exp())


def test_walk_is_the_same_alone_and_in_a_batch_and_stops_by_itself(mlp, data):
    z = data[1][0][:6]
    walk = image_specific(z, mlp, "Ring", "with")
    alone = image_specific(z[3:4], mlp, "Ring", "with")
    assert torch.allclose(walk.z_edit[3], alone.z_edit[0], atol=1e-3)
    assert walk.codes.shape[:2] == walk.probabilities.shape and len(walk.codes) == walk.steps.max() + 1
    assert (walk.probabilities[-1] >= 0.98).all() or walk.steps.max() == 60
    done = walk.probabilities[0] >= 0.98
    assert torch.allclose(walk.z_edit[done], z[done], atol=1e-5) and (walk.steps[done] == 0).all()


def test_noise_follows_the_generators_one_per_image(mlp, data):
    z = data[1][0][:3]
    args = dict(tag="Line", value="with", noise=0.3, max_steps=5)
    a = image_specific(z, mlp, generator=[make_generator(s) for s in (1, 2, 3)], **args).z_edit
    b = image_specific(z[1:2], mlp, generator=[make_generator(2)], **args).z_edit
    assert torch.allclose(a[1:2], b, atol=1e-3)


def test_keep_holds_what_the_plain_gradient_drags_along():
    g = make_generator(0)
    labels = torch.randint(2, (2000, 3), generator=g)
    z = torch.randn(2000, 3, generator=g) * 0.3
    z[:, 0] += 2 * labels[:, 0]
    z[:, 1] += 2 * labels[:, 1] + 1.5 * labels[:, 0]
    z[:, 2] += 2 * labels[:, 2]
    model = fit_classifiers(z, labels, TAGS_TWO, "mlp", hidden=32, steps=300, generator=make_generator(0))
    z0 = z[(labels[:, 0] == 0)][:200]
    kept = {
        k: edit_scores(
            model.predict(z0),
            model.predict(image_specific(z0, model, "a", "with", keep=k).z_edit),
            TAGS_TWO,
            "a",
            "with",
        )
        for k in (0.0, 2.0)
    }
    assert (
        kept[2.0][0].float().mean() > 0.95 and kept[2.0][1].mean() >= kept[0.0][1].mean() and kept[2.0][1].mean() > 0.97
    )


def test_calibrate_takes_the_best_sum_and_of_equals_the_nearest_to_one():
    tags = TagSet([Tag("a", ("without", "with")), Tag("b", ("without", "with"))])
    z, before = torch.zeros(10, 1), torch.zeros(10, 2).long()
    calls = []

    def decode(z_edit, i):
        calls.append(len(i))
        return z_edit

    def judge(x):
        return torch.stack([(x[:, 0] >= 1).long(), (x[:, 0] >= 2).long()], 1)

    found = calibrate(
        lambda z, t, v, s: z + s,
        decode,
        judge,
        z,
        before,
        tags,
        strengths=(0.5, 1.0, 1.5, 2.0),
        n=4,
        pairs=[("a", "with")],
    )
    assert found.strengths == {("a", "with"): 1.0} and calls == [4] * 4 and len(found.rows) == 4
    assert found.rows[-1]["target"] == 1 and found.rows[-1]["others"] == 0
    assert found.as_config() == {"a=with": 1.0}


def test_eigenfaces_are_the_svd():
    x = torch.rand(30, 3, 8, 8, generator=make_generator(0)) * 2 - 1
    model = fit_eigenfaces(x, 10)
    _, s, vt = torch.linalg.svd((x.flatten(1) - x.flatten(1).mean(0)), full_matrices=False)
    assert torch.allclose((model.basis.T @ vt[:10].T).abs(), torch.eye(10), atol=1e-2)
    z = model.encode(x)
    assert torch.allclose(model.render(model.invert(x, z), z), x, atol=1e-5)


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda m, l, z: fit_classifiers(z, torch.zeros(len(z), 2).long(), TAGS), "Needed: (n, d) and (n, 3)"),
        (lambda m, l, z: fit_classifiers(z, torch.zeros(len(z), 3).long(), TAGS), "no face has the value"),
        (lambda m, l, z: fit_classifiers(z * float("nan"), torch.zeros(len(z), 3).long(), TAGS), "NaN"),
        (lambda m, l, z: ValueClassifier(4, TAGS, "tree"), "Allowed: linear, mlp"),
        (lambda m, l, z: global_direction(m, "Line", "with"), "needs a linear classifier"),
        (lambda m, l, z: global_direction(l, "Lyne", "with"), "Did you mean 'Line'"),
        (lambda m, l, z: global_direction(l, "Line", "wit"), "Did you mean 'with'"),
        (lambda m, l, z: global_direction(l, "Line", "with", metric="cosine"), "Allowed: identity, data, subspace"),
        (lambda m, l, z: global_edit(z, l, "Line", "with", aim="x"), f"Allowed: {', '.join(AIMS)}"),
        (lambda m, l, z: image_specific(z, m, "Line", "maybe"), "maybe"),
        (
            lambda m, l, z: edit_code(z, "Line", "with", "warp", linear=l, mlp=m),
            "Allowed: global_direction, image_specific",
        ),
        (lambda m, l, z: fit_eigenfaces(torch.zeros(3, 3, 4, 4), 3), "Allowed: 1 to 2"),
    ],
)
def test_mistakes_are_told_in_one_line(linear, mlp, data, call, words):
    with pytest.raises(ValueError) as e:
        call(mlp, linear, data[1][0])
    assert words in str(e.value) and "\n" not in str(e.value)


# ---- tags by name, numbers that are none


@pytest.mark.parametrize(
    "how",
    [
        dict(noise=float("nan")),
        dict(noise=-1),
        dict(steps=0),
        dict(batch_size=0),
        dict(lr=float("inf")),
        dict(lr=0.0),
        dict(weight_decay=-1),
        dict(val_share=1),
        dict(check_every=0),
        dict(hidden=1.5),
    ],
    ids=str,
)
def test_what_no_classifier_is_fitted_with(data, how):
    z, labels = torch.randn(40, 4, generator=make_generator(0)), torch.arange(40)[:, None] % 2
    with pytest.raises(ValueError, match=f"^{list(how)[0]}=.* came; allowed: ") as e:
        fit_classifiers(z, labels, TagSet([Tag("a", ("x", "y"))]), **how)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "how",
    [
        dict(confidence=float("nan")),
        dict(step=0),
        dict(max_steps=-1),
        dict(keep=float("inf")),
        dict(noise=-1),
        dict(draws=0),
        dict(share=0),
        dict(share=float("nan"), metric="subspace"),
    ],
    ids=str,
)
def test_what_no_walk_is_led_by(mlp, how):
    tag = mlp.tags.tags[0]
    with pytest.raises(ValueError, match=f"^{list(how)[0]}=.* came; allowed: "):
        image_specific(torch.zeros(2, mlp.config.z_dim), mlp, tag.name, tag.values[1], **how)


TWO = TagSet([Tag("a", ("without", "with")), Tag("b", ("x", "y", "z"))])


@pytest.mark.parametrize(
    "how, words",
    [
        (dict(strengths=(1.0, float("nan"))), "strength=nan"),
        (dict(strengths=(0.0,)), "strength=0.0"),
        (dict(strengths=(-1.0,)), "strength=-1.0"),
        (dict(n=0), "n=0"),
    ],
    ids=str,
)
def test_strengths_are_numbers(how, words):
    with pytest.raises(ValueError, match=words):
        calibrate(
            lambda z, t, v, s: z + s,
            lambda z, i: z,
            lambda x: torch.zeros(len(x), 2).long(),
            torch.zeros(3, 4),
            torch.zeros(3, 2).long(),
            TWO,
            **how,
        )
    with pytest.raises(ValueError, match="strength of a=with=nan"):
        Calibration({("a", "with"): float("nan")}).as_config()


def test_a_calibrating_network_is_read_by_name():
    "A judge with turned columns finds the same strengths; one of other tags is refused; labels of another width are refused."

    class Reader:
        def __init__(self, tags):
            self.tags = tags

        def predict(self, x):
            return torch.stack([{"a": (x[:, 0] >= 1).long(), "b": (x[:, 0] >= 2).long()}[t.name] for t in self.tags], 1)

    z, how = torch.zeros(4, 3), dict(strengths=(0.5, 1.0, 2.0), pairs=[("a", "with")])

    def go(judge, before=torch.zeros(4, 2).long(), tags=TWO):
        return calibrate(lambda z, t, v, s: z + s, lambda z, i: z, judge, z, before, tags, **how)

    for tags in (TWO, TagSet(list(TWO)[::-1])):
        assert go(Reader(tags)).strengths == go(Reader(tags).predict).strengths == {("a", "with"): 1.0}
    with pytest.raises(ValueError, match="the judge knows .* and not TagSet.b"):
        go(Reader(TagSet([TWO["a"]])))
    with pytest.raises(ValueError, match=r"labels \(4, 1\) came; \(4, 2\) are needed"):
        go(Reader(TWO), torch.zeros(4, 1).long())


def test_a_column_of_labels_for_every_head(mlp):
    with pytest.raises(ValueError, match="1 columns of labels came for the tags"):
        head_losses(mlp(torch.zeros(2, mlp.config.z_dim)), torch.zeros(2, 1).long())
