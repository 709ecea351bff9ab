"The figures behind the table: formulas against oracles, the networks that ship, and evaluate on a toy whose answers are known."

import io
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import latref_nb.judges as judges_module
import latref_nb.metrics as metrics
from latref_nb.core import make_generator, resolve_precision
from latref_nb.files import shipped_path
from latref_nb.tags import CELEBA_TAGS, Tag, TagSet
from latref_nb.files import shipped_path
from latref_nb.tags import CELEBA_TAGS, Tag, TagSet
from latref_nb.core import make_generator, resolve_precision
from latref_nb.cache import TensorFaces
from latref_nb.directions import edit_code, fit_classifiers, fit_eigenfaces, probe_accuracy
from latref_nb.faces import SynthFaces, render_faces
from latref_nb.metrics import METHODS
from latref_nb.judges import (
    person_rows,
    HELD_OUT_SEED,
    NETWORKS,
    RECIPES,
    SEEDS,
    Judge,
    Judges,
    check_seed,
    factor_errors,
    gallery_factors,
    load_judges,
    load_lpips,
    load_network,
    network_task,
    pair_loss,
    rank_one,
    style_loss,
    train_network,
    visible_styles,
)
from latref_nb.metrics import (
    COLUMNS,
    REFERENCES,
    Evaluation,
    evaluate,
    frechet_distance,
    gather_sources,
    make_wish,
    mean_rows,
    psnr,
    rows_at_hand,
    spread,
    ssim,
    style_error,
    text_table,
)
from latref_nb.perceptual import fit_size, roughen
from style_case import style_pipeline


@pytest.fixture(scope="module")
def faces():
    ds = SynthFaces(96, seed=104)
    return ds, ds.batch(range(96))


@pytest.fixture(scope="module")
def judges():
    return load_judges()


def test_names_of_the_judges_are_found_here_too():
    for name in ("Judge", "IdentityNet", "FactorNet", "Judges", "RECIPES", "NETWORKS", "train_network", "load_lpips"):
        assert getattr(metrics, name) is getattr(judges_module, name)
    with pytest.raises(AttributeError, match="has no attribute 'Juge'"):
        metrics.Juge


def test_psnr_and_ssim_are_the_formulas(faces):
    x = faces[1]["image"][:5]
    y = (x + 0.1 * torch.randn(x.shape, generator=make_generator(0))).clamp(-1, 1)
    assert torch.allclose(psnr(x, y), 10 * torch.log10(4 / (x - y).square().mean((1, 2, 3))), atol=1e-3)
    assert torch.equal(psnr(x, x), torch.full((5,), 100.0))
    assert torch.allclose(ssim(x, y), torch.stack([slow_ssim(a, b) for a, b in zip(x, y)]), atol=2e-3)
    assert psnr(x[:1], y[:1]).shape == ssim(x[:1], y[:1]).shape == (1,)


def slow_ssim(x, y):
    "Wang et al. 2004 by hand: an 11 × 11 Gaussian window of width 1.5, each channel apart."
    g = torch.exp(-((torch.arange(11.0) - 5) ** 2) / 4.5)
    w = (g[:, None] * g / g.sum() ** 2)[None, None]

    def blur(a):
        return F.conv2d(F.pad(a[:, None], (5,) * 4, mode="reflect"), w)[:, 0]

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    s = (2 * mx * my + 0.02**2) * (2 * cov + 0.06**2) / ((mx**2 + my**2 + 0.02**2) * (vx + vy + 0.06**2))
    return s.mean()


def test_frechet_equals_torchmetrics(faces):
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Small(nn.Module):
        num_features = 12

        def forward(self, x):
            return F.adaptive_avg_pool2d(x.float() / 255, 2).flatten(1)

    x = faces[1]["image"]
    fid = FrechetInceptionDistance(feature=Small(), input_img_size=(3, 64, 64), normalize=False)
    a, b = [((o + 1) * 127.5).round().byte() for o in (x[:48], x[48:] * 0.8)]
    fid.update(a, real=True)
    fid.update(b, real=False)
    assert frechet_distance(Small()(a), Small()(b)) == pytest.approx(float(fid.compute()), rel=1e-2, abs=1e-4)


def test_frechet_of_known_crowds():
    g = make_generator(0)
    a, b = torch.randn(40_000, 2, generator=g), 3 * torch.randn(40_000, 2, generator=g) + torch.tensor([1.0, 0.0])
    assert frechet_distance(a, b) == pytest.approx(1 + 2 * 4, rel=0.05)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert math.isnan(frechet_distance(a[:1], b))


def test_pair_loss_by_hand():
    e = F.normalize(torch.randn(6, 4, generator=make_generator(0)), dim=1)
    slow = 0
    for i in range(6):
        sims = torch.stack([e[i] @ e[j] / 0.1 for j in range(6) if j != i]).logsumexp(0)
        slow += sims - e[i] @ e[(i + 3) % 6] / 0.1
    assert torch.allclose(pair_loss(e), slow / 6, atol=1e-4)


def test_gallery_keeps_the_person_and_changes_the_rest(faces):
    f = faces[0].factors(range(10))
    g = gallery_factors(f)
    assert (
        torch.equal(f.identity, g.identity)
        and torch.equal(g.labels[:9], f.labels[1:])
        and torch.equal(g.nuisance[9], f.nuisance[0])
    )


def test_rank_one_counts_only_the_right_person():
    gallery = torch.eye(4)
    assert rank_one(torch.eye(4)[[0, 1, 1]], gallery, torch.tensor([0, 1, 2])).tolist() == [True, True, False]


@pytest.mark.parametrize("kind", NETWORKS)
def test_shipped_networks_are_small_and_described(kind):
    net = load_network(kind)
    folder = shipped_path(NETWORKS[kind][0])
    assert sum(p.numel() for p in net.parameters()) <= 600_000
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 3_000_000
    card = (folder / "README.md").read_text()
    assert f"train_network('{kind}'" in card and f"seed {SEEDS[kind]}" in card
    assert not any(p.requires_grad for p in net.parameters()) and not net.training


def test_judge_reads_unseen_faces_clean_and_rough(judges):
    b = SynthFaces(300, seed=77).batch(range(300))
    clean = probe_accuracy(judges.judge.predict(b["image"]), b["labels"], CELEBA_TAGS)
    rough = probe_accuracy(
        judges.judge.predict(roughen(b["image"], make_generator(0), mirror=False).clamp(-1, 1)),
        b["labels"],
        CELEBA_TAGS,
    )
    assert min(clean.values()) >= 0.99, clean
    assert min(rough.values()) >= 0.97, rough


def test_judge_agrees_with_the_true_edits(judges, faces):
    for tag, value in CELEBA_TAGS.pairs:
        y = faces[0].counterfactual(list(range(40)), tag, value)
        read = judges.judge.predict(y)
        assert (read[:, CELEBA_TAGS.index(tag)] == CELEBA_TAGS[tag].index(value)).float().mean() >= 0.97, (tag, value)


def test_identity_finds_people(judges):
    ds = SynthFaces(256, seed=78)
    f = ds.factors(range(256))
    e, g = judges.identity(render_faces(f)), judges.identity(render_faces(gallery_factors(f)))
    assert torch.allclose(e.norm(dim=1), torch.ones(256), atol=1e-5)
    assert rank_one(e, g, torch.arange(256)).float().mean() >= 0.985


def test_networks_are_four_different_ones(judges):
    first = [next(n.parameters()) for n in (judges.judge, judges.identity, judges.perceptual, judges.factors)]
    assert not any(torch.allclose(a, b) for i, a in enumerate(first) for b in first[:i])
    assert len(set(SEEDS.values())) == len(SEEDS) and HELD_OUT_SEED not in SEEDS.values()


UNMASKED = tuple(
    m for m in METHODS if m not in ("global_direction_kept", "reference_whole")
)  # the rows of a pipeline without a picture mask


class EigenPipe:
    "Eigenfaces with the pipeline's verbs."

    tags, size = CELEBA_TAGS, 64

    def __init__(self, model, linear, mlp):
        self.model, self.linear, self.mlp, self.calls = model, linear, mlp, []

    def encode(self, x):
        self.calls.append(("encode", len(x)))
        return self.model.encode(x)

    def invert(self, x, z, steps):
        self.calls.append(("invert", len(x)))
        return self.model.invert(x, z)

    def render(self, x_T, z, steps):
        self.calls.append(("render", len(z)))
        return self.model.render(x_T, z)

    def edit(self, z, e, x=None):
        return edit_code(z, e.tag, e.value, e.method, linear=self.linear, mlp=self.mlp, gain=e.gain)

    def read(self, z):
        return self.mlp.probabilities(z)

    def random_xT(self, n, seeds):
        return None


@pytest.fixture(scope="module")
def toy():
    b = SynthFaces(360, seed=0).batch(range(360))
    model = fit_eigenfaces(b["image"], 40)
    z = model.encode(b["image"])
    return EigenPipe(
        model,
        *(
            fit_classifiers(z, b["labels"], CELEBA_TAGS, kind, steps=150, noise=0.2, generator=make_generator(0))
            for kind in ("linear", "mlp")
        ),
    )


@pytest.fixture(scope="module")
def measured(toy, judges):
    return evaluate(toy, n=24, batch_size=16, judges=judges, progress=False)


def test_evaluation_has_the_agreed_form(measured):
    out = json.loads(json.dumps(measured.json(), allow_nan=False))
    assert list(out) == ["autoencoder", "rows", "settings"] and out["settings"]["precision"] in ("no", "bf16")
    assert list(out["autoencoder"]) == ["probe_mean", "probe_min", "round_trip_psnr", "round_trip_ssim", "z_only_psnr"]
    keys = {
        "method",
        "tag",
        "value",
        "target",
        "others",
        "identity",
        "psnr",
        "ssim",
        "lpips",
        "style_error",
        "diversity",
        "frechet",
    }
    assert all(set(r) == keys | {"perceptual"} for r in out["rows"])
    assert [(r["method"], r["tag"], r["value"]) for r in out["rows"]] == [
        (m, *p) for m in UNMASKED[:4] for p in CELEBA_TAGS.pairs
    ]
    shown = {k for k, names in visible_styles(n=2).items() if names}
    assert all(
        (r["style_error"] is not None) == (f"{r['tag']}={r['value']}" in shown) and r["diversity"] is None
        for r in out["rows"]
    )


def test_source_row_is_what_doing_nothing_scores(measured):
    source = [r for r in measured.rows if r["method"] == "source"]
    assert all(r["target"] <= 0.05 and r["others"] == 1 for r in source)
    ds = SynthFaces(24 + REFERENCES, seed=HELD_OUT_SEED)
    i = (ds.labels[:24, 0] == 0).nonzero().flatten().tolist()
    truth = ds.counterfactual(i, "Smiling", "with", make_wish(ds, 24, "Smiling", "with").references[:, 0])
    row = next(r for r in source if (r["tag"], r["value"]) == ("Smiling", "with"))
    assert row["psnr"] == pytest.approx(float(psnr(ds.batch(i)["image"], truth).mean()), rel=1e-4)


def test_toy_round_trip_is_perfect_and_edits_do_something(measured):
    assert measured.autoencoder["round_trip_psnr"] > 60 and measured.autoencoder["probe_mean"] > 0.8
    rows = {r["method"]: r for r in measured.summary()}
    assert rows["global_direction"]["target"] > 0.4 > rows["round_trip"]["target"]
    assert rows["image_specific"]["perceptual"] < rows["source"]["perceptual"]


def test_each_source_is_inverted_once(toy, judges):
    toy.calls.clear()
    evaluate(toy, n=20, batch_size=8, judges=judges, progress=False, pairs=[("Smiling", "with"), ("Male", "with")])
    assert (
        sum(n for verb, n in toy.calls if verb == "invert")
        == sum(n for verb, n in toy.calls if verb == "encode") - 2
        == 20
    )  # two to check the sources
    assert max(n for _, n in toy.calls) <= 8


def test_batches_do_not_change_the_figures(toy, judges):
    args = dict(n=12, judges=judges, progress=False, pairs=[("Bangs", "with")], methods=("source", "image_specific"))
    a, b = evaluate(toy, batch_size=12, **args), evaluate(toy, batch_size=5, **args)
    for r, s in zip(a.rows, b.rows):
        assert all(r[c] == pytest.approx(s[c], rel=1e-3, abs=1e-4) for c in COLUMNS if r[c] is not None)


def test_mean_over_tags_weighs_tags_alike():
    rows = [dict(tag="a", target=1.0), dict(tag="a", target=0.0), dict(tag="b", target=1.0), dict(tag="c", target=None)]
    assert mean_rows(
        rows,
        [
            "target",
        ],
    ) == {"target": 0.75}
    assert mean_rows([dict(tag="a", target=None)], ["target"]) == {"target": None}


def test_what_is_not_a_number_becomes_null(tmp_path):
    e = Evaluation(
        {"probe_mean": float("nan")},
        [{"method": "source", "tag": "a", "value": "b", **dict.fromkeys(COLUMNS), "psnr": float("inf")}],
    )
    path = e.save(tmp_path / "deep" / "out.json")
    back = json.loads(path.read_text())
    assert back["autoencoder"]["probe_mean"] is None and back["rows"][0]["psnr"] is None


def test_table_is_aligned_and_leaves_out_empty_columns(measured):
    text = measured.table()
    assert (
        "diversity" not in text
        and "style_error" in text
        and "bar" not in text
        and "frechet" in text
        and "mean over tags" in text
    )
    lines = text_table([dict(name="a", x=1.23456, n=3), dict(name="longer", x=None, n=10)]).splitlines()
    assert lines == ["name        x   n", "a       1.235   3", "longer      –  10"]


@pytest.mark.parametrize("seed", SEEDS.values())
def test_faces_that_were_trained_on_are_refused(seed, toy):
    with pytest.raises(ValueError, match="trained on"):
        check_seed(seed)
    with pytest.raises(ValueError, match="trained on"):
        evaluate(toy, n=4, seed=seed)


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda t, j: evaluate(t, n=4, methods=("image_specfic",), judges=j), "Did you mean 'image_specific'?"),
        (lambda t, j: load_network("jugde"), "Did you mean 'judge'?"),
        (lambda t, j: network_task("style", 4), "Allowed: judge, identity, perceptual, factors"),
        (
            lambda t, j: evaluate(
                t, n=4, judges=Judges(Judge(TagSet([Tag("A", ("x", "y"))])), j.identity, j.perceptual)
            ),
            "Train a judge on these tags",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(toy, judges, call, words):
    with pytest.raises(ValueError) as e:
        call(toy, judges)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_lpips_is_published_or_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert load_lpips() is None
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_lpips(tmp_path / "none.pth")
    (tmp_path / "bad.pth").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_lpips(tmp_path / "bad.pth")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="AlexNet"):
        load_lpips(tmp_path / "other.pth")


def test_lpips_takes_the_file_it_is_given(tmp_path):
    from torchvision.models import alexnet

    torch.manual_seed(0)
    torch.save(alexnet(weights=None).state_dict(), tmp_path / "alex.pth")
    model = load_lpips(tmp_path / "alex.pth")
    weights = torch.load(tmp_path / "alex.pth", weights_only=True)
    assert torch.equal(next(model.net.slice1.parameters()), weights["features.0.weight"])
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    assert model(x, x).abs().max() < 1e-6 < model(x, -x).min()


@pytest.mark.parametrize("kind", RECIPES)
def test_each_network_trains_by_its_recipe(kind, tmp_path):
    net = train_network(kind, tmp_path, steps=2, n=24, batch_size=4, progress=False, trackers=())
    again = type(net).from_pretrained(str(tmp_path / "model"), low_cpu_mem_usage=False).eval()
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    a, b = (n.trunk(x)[-1] for n in (net, again))
    assert torch.equal(a, b)
    assert json.loads((tmp_path / "training.json").read_text())["steps"] == 2


def test_other_sizes_are_brought_to_the_networks_own(judges):
    x = SynthFaces(4, size=128, seed=77).batch(range(4))
    assert torch.equal(judges.judge.predict(x["image"]), judges.judge.predict(fit_size(x["image"], 64)))
    assert (judges.judge.predict(x["image"]) == x["labels"]).float().mean() > 0.9
    assert judges.identity(x["image"]).shape == (4, 64) and judges.perceptual.distance(
        x["image"], x["image"]
    ).shape == (4,)


# ---- styles: references, factors, and the rows that need style networks


def test_styles_show_where_the_renderer_draws_them():
    shown = visible_styles(n=2)
    assert set(shown) == {f"{t.name}={v}" for t in CELEBA_TAGS for v in t.values}
    assert all(not shown[f"{t}=without"] and len(shown[f"{t}=with"]) >= 3 for t in ("Smiling", "Eyeglasses", "Bangs"))
    assert not set(shown["Male=with"]) & set(shown["Male=without"]) and set(shown["Young=with"]).isdisjoint(
        shown["Young=without"]
    )


def test_factor_net_reads_unseen_faces_far_better_than_a_guess(judges):
    ds = SynthFaces(256, seed=79)
    b, f = ds.batch(range(256)), ds.factors(range(256))
    clean, guess = (
        factor_errors(judges.factors, b["image"], f, b["labels"]),
        factor_errors(judges.factors, None, f, b["labels"]),
    )
    assert all(g == pytest.approx(0.25, abs=0.03) for g in guess.values())
    assert all(clean[k] < guess[k] for k in guess) and sum(clean.values()) < 0.45 * sum(guess.values()), clean


def test_style_loss_ignores_what_does_not_show_and_has_a_gradient():
    truth, mask = {"a": torch.rand(6, 3)}, {"a": torch.tensor([[True, False, True]]).expand(6, 3)}
    read = {"a": truth["a"].clone()}
    read["a"][:, 1] += 5
    read["a"].requires_grad_()
    assert float(style_loss(read, truth, mask)[0].detach()) == 0
    off = {"a": (truth["a"] + 0.5).requires_grad_()}
    style_loss(off, truth, mask).sum().backward()
    assert (off["a"].grad[:, 1] == 0).all() and (off["a"].grad[:, 0] != 0).all()


def test_style_error_knows_the_right_style_from_anothers(judges):
    ds = SynthFaces(200, seed=79)
    for tag, value in (("Eyeglasses", "with"), ("HairColor", "blond")):
        wish = make_wish(ds, 40, tag, value)
        right, wrong = (
            style_error(judges.factors, x, wish.style, tag, value)["style_error"].mean()
            for x in (wish.truth, wish.truth.roll(1, 0))
        )
        assert right < 0.6 * wrong, (tag, right, wrong)
    assert (
        style_error(judges.factors, wish.truth, wish.style, "Eyeglasses", "without")
        == {}
        == style_error(None, wish.truth, wish.style, tag, value)
    )


def test_spread_is_the_deviation_within_a_face():
    styles = (
        torch.randn(400, 5, 3, generator=make_generator(0)) * 2
        + torch.randn(400, 1, 3, generator=make_generator(1)) * 50
    )
    assert spread(styles) == pytest.approx(2, rel=0.05) and spread(styles[:, :1].expand(-1, 5, -1)) == pytest.approx(
        0, abs=1e-4
    )


def test_wishes_are_seeded_and_references_are_nobodys_source():
    a, b = (make_wish(SynthFaces(30 + REFERENCES, seed=5), 30, "HairColor", "brown") for _ in range(2))
    labels = SynthFaces(30 + REFERENCES, seed=5).labels[:, 3]
    assert torch.equal(a.references, b.references) and torch.equal(a.truth, b.truth)
    assert (labels[a.rows] != 2).all() and (labels[a.references] == 2).all() and a.references.min() >= 30
    other = make_wish(SynthFaces(30 + REFERENCES, seed=6), 30, "HairColor", "brown")
    assert not torch.equal(a.references[:5], other.references[:5])
    few = make_wish(SynthFaces(12 + REFERENCES, seed=5), 12, "HairColor", "brown", draws=1)
    assert few.references.shape == (len(few.rows), 1)


@pytest.fixture(scope="module")
def styled():
    return style_pipeline()


@pytest.fixture(scope="module")
def sources(styled, judges):
    return gather_sources(styled, 6, steps=2, judges=judges, brief=True)


def test_rows_are_those_that_the_pipeline_has_networks_for(styled, toy):
    assert (
        rows_at_hand(styled) == UNMASKED[:-1]
        and rows_at_hand(toy) == UNMASKED[:4]
        and rows_at_hand(toy, ["oracle"]) == ("oracle",)
    )
    for row, missing in (("latent", "modulation and mapper"), ("reference", "modulation and extractor")):
        with pytest.raises(ValueError, match=f"needs {missing}"):
            evaluate(toy, n=4, methods=(row,))


def test_style_rows_are_measured_and_repeat(styled, judges, sources):
    args = dict(
        methods=("global_direction", "latent", "reference", "oracle"),
        judges=judges,
        sources=sources,
        pairs=[("Eyeglasses", "with")],
        progress=False,
    )
    a, b = evaluate(styled, batch_size=6, **args), evaluate(styled, batch_size=2, **args)
    rows = {r["method"]: r for r in a.rows}
    assert (
        all(r["style_error"] is not None for r in a.rows)
        and rows["latent"]["diversity"] > 0
        and rows["reference"]["diversity"] is None
    )
    for r, s in zip(a.rows, b.rows):
        assert all(r[c] == pytest.approx(s[c], rel=2e-3, abs=2e-4, nan_ok=True) for c in COLUMNS if r[c] is not None)
    assert rows["latent"]["psnr"] != rows["reference"]["psnr"]
    assert a.autoencoder["round_trip_psnr"] is None and a.autoencoder["probe_mean"] > 0.9


def test_bars_are_printed_where_there_are_styles(styled, judges, sources):
    found = evaluate(
        styled,
        methods=("global_direction", "reference"),
        judges=judges,
        sources=sources,
        pairs=[("Eyeglasses", "with"), ("Smiling", "with")],
        brief=True,
        progress=False,
    )
    bars, means = {b["figure"]: b for b in found.bars()}, {r["method"]: r for r in found.summary()}
    assert bars["psnr, reference minus global_direction"]["value"] == pytest.approx(
        means["reference"]["psnr"] - means["global_direction"]["psnr"]
    )
    assert bars["style_error, reference as a share of global_direction"]["value"] == pytest.approx(
        means["reference"]["style_error"] / means["global_direction"]["style_error"]
    )
    assert bars["target, reference"]["reached"] == (
        "aim" if means["reference"]["target"] >= 0.98 else "bar" if means["reference"]["target"] >= 0.95 else "missed"
    )
    assert "diversity, latent" not in bars and "reached" in found.table(rows=False)


def test_reference_follows_the_reference_and_latent_the_seed(styled, judges, sources):
    from latref_nb.metrics import edited_codes

    wish = make_wish(sources.faces, 6, "Eyeglasses", "with")
    part = torch.arange(len(wish.rows))
    for m in ("reference", "latent"):
        a, b, again = (edited_codes(styled, sources, wish, part, m, d) for d in (0, 1, 0))
        assert torch.equal(a, again) and not torch.allclose(a, b)
    assert torch.allclose(edited_codes(styled, sources, wish, part, "oracle"), styled.encode(wish.truth))


def test_sources_of_another_autoencoder_are_refused(styled, toy, judges, sources):
    with pytest.raises(ValueError, match="another autoencoder"):
        evaluate(toy, judges=judges, sources=sources, methods=("source",), progress=False)
    with pytest.raises(ValueError, match="no round trip"):
        evaluate(styled, judges=judges, sources=sources, methods=("round_trip",), progress=False)


def test_brief_leaves_out_what_costs_most(toy, judges):
    toy.calls.clear()
    found = evaluate(
        toy, n=8, judges=judges, methods=("global_direction",), pairs=[("Smiling", "with")], brief=True, progress=False
    )
    wanting = int((SynthFaces(8, seed=HELD_OUT_SEED).labels[:, 0] == 0).sum())
    assert (
        sum(n for verb, n in toy.calls if verb == "render") == wanting and found.autoencoder["round_trip_psnr"] is None
    )


def test_without_a_factor_regressor_style_columns_are_empty(toy, judges):
    bare = Judges(judges.judge, judges.identity, judges.perceptual)
    found = evaluate(toy, n=8, judges=bare, methods=("source",), pairs=[("Eyeglasses", "with")], progress=False)
    assert found.rows[0]["style_error"] is None and found.rows[0]["psnr"] is not None


# ---- tags by name


def turned(net, order):
    "The same network with the columns of its tags in another order."
    tags, sizes = [net.tags.tags[k] for k in order], [len(t) for t in net.tags]
    out = type(net)(TagSet(tags)).eval()
    rows = torch.arange(sum(sizes)).split(sizes)
    rows = torch.cat([rows[k] for k in order])
    out.load_state_dict({k: v[rows] if k.startswith("head.1.") else v for k, v in net.state_dict().items()})
    return out.requires_grad_(False)


def test_a_judge_with_turned_tags_gives_the_same_figures(toy, judges):
    other = Judges(turned(judges.judge, [3, 5, 0, 1, 4, 2]), judges.identity, judges.perceptual, factors=judges.factors)
    args = dict(
        n=8, progress=False, methods=("source", "global_direction"), pairs=[("Smiling", "with"), ("HairColor", "blond")]
    )
    same = Judges(judges.judge, judges.identity, judges.perceptual, factors=judges.factors)
    for a, b in zip(evaluate(toy, judges=other, **args).rows, evaluate(toy, judges=same, **args).rows, strict=True):
        assert a == {k: v if v is None or isinstance(v, str) else pytest.approx(v, rel=1e-4, abs=1e-4) for k, v in b.items()}
    more = Judges(Judge(TagSet([*CELEBA_TAGS, Tag("A", ("x", "y"))])), judges.identity, judges.perceptual)
    assert evaluate(toy, judges=more, brief=True, **args).rows, "a judge may know more than is asked"


@pytest.mark.parametrize(
    "tags", [TagSet([Tag("HairColor", ("brown", "blond", "black"))]), TagSet([Tag("Smiling", ("no", "yes"))])]
)
def test_painted_values_are_those_of_the_painter(tags):
    with pytest.raises(ValueError, match="the painter knows .* and not"):
        SynthFaces(4, tags=tags)


# ---- what networks are trained with


@pytest.mark.parametrize(
    "how, words",
    [
        (dict(steps=0), "steps=0"),
        (dict(n=0), "n=0"),
        (dict(lr=0.0), "lr=0.0"),
        (dict(lr=math.nan), "lr=nan"),
        (dict(size=40), "multiple of 16"),
        (dict(size=0), "size=0"),
        (dict(n=4, steps=1, ema_decay=math.nan), "ema_decay=nan"),
        (dict(n=4, steps=1, seed=-1), "seed=-1"),
    ],
    ids=str,
)
def test_what_no_network_can_be_trained_with(tmp_path, how, words):
    with pytest.raises(ValueError, match=words) as e:
        train_network("judge", tmp_path / "j", progress=False, device="cpu", trackers=(), **how)
    assert "\n" not in str(e.value) and not (tmp_path / "j").exists()


@pytest.mark.parametrize("kind", ["judge", "perceptual"])
def test_tags_of_ones_own_are_learned(tmp_path, kind):
    g = make_generator(0)
    light = torch.arange(24) % 2
    faces = TensorFaces(
        (torch.rand(24, 3, 32, 32, generator=g) * 60 + 150 * light[:, None, None, None]).to(torch.uint8),
        light[:, None],
        TagSet([Tag("Light", ("dark", "light"))]),
    )
    net = train_network(
        kind,
        tmp_path / kind,
        steps=25,
        batch_size=8,
        data=faces,
        progress=False,
        device="cpu",
        trackers=(),
        save_every=25,
    )
    assert net.config.size == 32 and (net.predict(faces.batch(range(24))["image"])[:, 0] == light).float().mean() > 0.9
    back = load_network(kind, tmp_path / kind / "model")
    assert back.tags.alike(faces.tags) and torch.equal(
        back.predict(faces.batch(range(4))["image"]), net.predict(faces.batch(range(4))["image"])
    )
    with pytest.raises(ValueError, match="factors that only rendered faces have"):
        train_network("factors", tmp_path / "f", steps=1, data=faces, progress=False)


# ---- precision


def test_the_table_says_which_precision_was_used(styled, toy, judges):
    args = dict(
        n=2, steps=1, judges=judges, methods=("source",), pairs=[("Smiling", "with")], brief=True, progress=False
    )
    found = evaluate(styled, precision="no", **args)
    assert found.json()["settings"]["precision"] == "no" and "precision no" in found.table().splitlines()[0]
    assert (
        evaluate(styled, **args).settings["precision"] == resolve_precision("auto")
        and evaluate(toy, **args).settings["precision"] == "no"
    ), "an editor without a network has none"
    with pytest.raises(ValueError, match="allowed: auto, no, bf16"):
        evaluate(styled, precision="half", **args)


# ---- the bar


def test_the_bar_of_an_evaluation_knows_its_end_at_the_beginning(monkeypatch):

    bars = []

    class Bar(metrics.tqdm):
        def __init__(self, *args, **how):
            super().__init__(*args, **how | {"file": io.StringIO(), "disable": False})
            self.first = self.total
            bars.append(self)

    monkeypatch.setattr(metrics, "tqdm", Bar)
    evaluate(
        style_pipeline(),
        4,
        5,
        ("source", "global_direction"),
        2,
        pairs=[("Smiling", "with"), ("HairColor", "blond")],
        brief=True,
    )
    (bar,) = bars
    assert bar.first == bar.total == bar.n > 4


# ---- persons


def test_rows_of_persons_leave_out_strangers_and_the_lonely():
    assert person_rows(torch.tensor([3, 1, 3, 2, 1, 1, -1, -1]), 2).tolist() == [[1, 4], [0, 2]]
    assert person_rows(torch.tensor([3, 1, 3, 2, 1, 1]), 4).tolist() == [[1, 4, 5, 1], [0, 2, 0, 2]]
    with pytest.raises(ValueError, match="1 persons have two faces"):
        person_rows(torch.tensor([0, 0, 1, -1, -1]), 2)


def test_known_persons_train_an_identity_network_and_help_a_critic(tmp_path):
    ds = SynthFaces(48, 32, seed=7, faces_per_person=4)
    how = dict(data=ds, who=ds.identity(range(48)), batch_size=8, progress=False, device="cpu", trackers=())
    net = train_network("identity", tmp_path / "i", steps=40, save_every=40, **how)
    e, itself = net(ds.batch(range(48))["image"]), torch.eye(48, dtype=torch.bool)
    same = how["who"][:, None] == how["who"]
    near = e @ e.T
    assert near[same & ~itself].mean() > near[~same].mean() + 0.1
    assert torch.equal(
        load_network("identity", tmp_path / "i" / "model")(ds.batch([0])["image"]), net(ds.batch([0])["image"])
    )
    critic = train_network("perceptual", tmp_path / "c", steps=3, save_every=3, **how)
    assert critic.config.n_factors == 0 and critic.tags.alike(ds.tags)
    log = (tmp_path / "c" / "training.json").read_text()
    assert '"identities"' in log
    with pytest.raises(ValueError, match="Give who is on each face"):
        train_network("identity", tmp_path / "n", steps=1, data=ds, progress=False)
