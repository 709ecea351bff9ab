"People drawn by codes, with parts of random weights: folder, commands, claims, and the recipe killed and resumed."

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from latref_nb import training
from latref_nb.adapter import TokenMapper, make_adapter
from latref_nb.adapter_claims import (
    ASIDE,
    MAIN,
    MOVED,
    PersonTrial,
    evaluate_adapter,
    eval_adapter,
    explained,
    held_out_people,
    pictures_needed,
    with_value,
)
from latref_nb.adapter_stages import ABLATIONS
from latref_nb.adapter_training import NOTE, PersonModel, PersonPainter, load_people, people_on, read_net, save_people
from latref_nb.autoencoder import DiffusionAutoencoder
from latref_nb.checkpoints import CheckpointError
from latref_nb.core import make_generator
from latref_nb.draw import RECORD, latref_draw
from latref_nb.faces import SynthFaces, render_faces
from latref_nb.judges import load_judges
from latref_nb.recipes import ADAPTER, KINDS, PROMPTED, RECIPES, scaled, varied
from latref_nb.runner import run_recipe
from latref_nb.segmenter import load_segmenter
from latref_nb.tags import CELEBA_TAGS
from test_prompted import made

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    "Folders of a base and of an encoder."
    base, codes = (tmp_path_factory.mktemp(name) / name for name in ("base", "codes"))
    made().save_pretrained(base)
    small = dict(image_size=64, patch_size=4, model_channels=16, channel_mult=(1, 1), num_res_blocks=1, z_dim=12)
    enc = dict(enc_channel_mult=(1, 1, 1), enc_patch_size=4, attention_resolutions=(), enc_channels=16)
    torch.manual_seed(0)
    DiffusionAutoencoder(**small, **enc).save_pretrained(codes / "autoencoder")
    return base, codes


@pytest.fixture(scope="module")
def model(places):
    found = people_on(*places)
    torch.manual_seed(1)
    for name in ("adapter", "canonical"):
        found.nets[name] = make_adapter(found.base.unet, code_dim=12).requires_grad_(False)
    for name in ("mapper", "untimed"):
        found.nets[name] = TokenMapper(16, 1, 12, width=8, timed=name == "mapper").requires_grad_(False)
    return found


@pytest.fixture(scope="module")
def folder(model, places, tmp_path_factory):
    return save_people(model, tmp_path_factory.mktemp("people"), *places)


# ---- the folder


def test_saved_and_loaded(model, folder):
    back = load_people(folder)
    assert set(back.nets) == set(model.nets) and back.keys == model.keys
    for name, net in model.nets.items():
        assert type(back.nets[name]) is type(net)
        assert all(torch.allclose(v, back.nets[name].state_dict()[k], atol=1e-3) for k, v in net.state_dict().items())
        assert next(net.parameters()).dtype == torch.float32, "saving in half leaves the network as it was"


def test_another_base_is_refused(folder, tmp_path):
    other = made()
    other.unet.conv_in.weight.data += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="trained with other weights of .*other"):
        load_people(folder, tmp_path / "other")
    with pytest.raises(CheckpointError, match=f"no {NOTE}"):
        load_people(tmp_path / "other")
    with pytest.raises(CheckpointError):
        read_net(tmp_path)


# ---- drawing one person


@pytest.fixture
def call(monkeypatch, capsys, folder, places):
    def call(*words):
        words = [*map(str, words), "--adapter", str(folder), "--model", str(places[0]), "--steps", "2"]
        monkeypatch.setattr(sys, "argv", ["latref_draw", *words])
        try:
            code = latref_draw()
        except SystemExit as e:
            code = e.code
        said = capsys.readouterr()
        return code or 0, said.out, said.err

    return call


@pytest.fixture(scope="module")
def person(tmp_path_factory):
    path = tmp_path_factory.mktemp("me") / "me.png"
    x = render_faces(SynthFaces(1, 64, seed=3003).factors(0))[0]
    Image.fromarray(((x + 1) * 127.5).byte().movedim(0, -1).numpy()).save(path)
    return path


def test_the_command_draws_a_person(call, person, tmp_path):
    read = lambda f: np.asarray(Image.open(f), int)
    drawn = {}
    for scale in (0, 1):
        out = tmp_path / str(scale)
        code, said, err = call("--person", person, "--tags", "Smiling=with", "--n", 2, "--scale", scale, "--out", out)
        assert code == 0 and "2 faces" in said, err
        drawn[scale] = read(out / "drawn_0001.png")
        run = json.loads((out / RECORD).read_text())["runs"][0]
        assert run["person"] == str(person) and run["scale"] == scale and run["tags"] == "Smiling=with"
    code, said, err = call("--tags", "Smiling=with", "--n", 2, "--out", tmp_path / "base")
    assert "person" not in json.loads((tmp_path / "base" / RECORD).read_text())["runs"][0]
    base = read(tmp_path / "base" / "drawn_0001.png")
    assert np.abs(drawn[0] - base).max() <= 1, "at scale 0 nobody is heard"
    assert np.abs(drawn[1] - base).max() > 1


@pytest.mark.parametrize(
    "words, said",
    [
        (("--person", "nobody.png"), "nobody.png"),
        (("--person", "ME", "--mask-guidance", 2), "one weight for all"),
        (("--person", "ME", "--scale", -1), "scale"),
    ],
)
def test_what_cannot_be_drawn_of_a_person(call, person, tmp_path, words, said):
    words = [person if w == "ME" else w for w in words]
    code, out, err = call(*words, "--n", 1, "--out", tmp_path / "out")
    assert code and said in err and "Traceback" not in err


def test_a_painter_draws_each_as_alone(model, person):
    painter = PersonPainter(model, person)
    prompt = painter.prompt_of("Male=with")
    both = painter(prompt[[0, 0]], make_generator([3, 4]), 2).images
    alone = painter(prompt, make_generator([4]), 2).images
    assert np.abs(np.asarray(both[1], int) - np.asarray(alone[0], int)).max() <= 1


# ---- the claims


def test_people():
    p = held_out_people(5, seed=3002)
    assert len(p) == 5 and len(p.aside) == ASIDE
    for other in (p.references, p.free, p.gallery):
        assert torch.equal(other.identity, p.truth.identity)
    assert torch.equal(p.prompt.labels, p.truth.labels) and not p.prompt.told.any()
    assert torch.equal(p.gallery.labels, p.truth.labels.roll(-2, 0)) and torch.equal(p.free.labels, p.references.labels)
    assert torch.equal(p.references.nuisance, torch.full_like(p.references.nuisance, 0.5))
    few = held_out_people(3, seed=3002)
    assert torch.equal(few.truth.identity, p.truth.identity[:3])
    with pytest.raises(ValueError, match="trained on"):
        held_out_people(4, seed=0)


def test_a_tag_alone_is_changed():
    f = held_out_people(4, seed=3002).truth
    for tag, value in MOVED.items():
        got, j = with_value(f, tag, 1), CELEBA_TAGS.index(tag)
        assert CELEBA_TAGS[tag].index(value) == 1 and (got.labels[:, j] == 1).all()
        rest = torch.arange(6) != j
        assert torch.equal(got.labels[:, rest], f.labels[:, rest]) and got.identity is f.identity


def test_explained():
    a, b = torch.randn(2, 400, 4, generator=make_generator(0))
    assert abs(float(explained(a, 2 - 3 * a)) - 1) < 1e-5 and float(explained(a, b)) < 0.02
    half = a + a.std() * b
    assert abs(float(explained(half, a)) - 0.5) < 0.1
    assert float(explained(torch.zeros_like(a), a)) == 0


@pytest.fixture(scope="module")
def trial(model):
    bar = type("Bar", (), {"n": 0, "update": lambda self, k: setattr(self, "n", self.n + k)})()
    people = held_out_people(6, seed=3002)
    return PersonTrial(model, people, load_judges(), load_segmenter(), steps=2, batch_size=4, bar=bar)


def test_true_pictures_are_found_and_nothing_is_apart(trial):
    truth = trial.look(render_faces(trial.people.truth))
    assert truth.found.float().mean() > 0.8 and (truth.labels == trial.people.prompt.labels).float().mean() > 0.9
    assert trial.apart(truth, truth).abs().max() < 1e-6
    walls = replace(truth, x=torch.where(truth.face, truth.x, -truth.x))
    faces = replace(truth, x=torch.where(truth.face, -truth.x, truth.x))
    assert trial.apart(faces, truth).abs().max() < 1e-6 and trial.apart(walls, truth).min() > 1e-3


def test_people_are_drawn_the_same_in_any_company(trial):
    codes = trial.codes(trial.people.references)
    net = trial.model.nets["adapter"]
    assert torch.allclose(trial.draw(net, codes)[:3], trial.draw(net, codes[:3]), atol=1e-4)


def test_the_claims(trial, tmp_path):
    found = {}
    for brief in (True, False):
        trial.bar.n = 0
        found[brief] = evaluate_adapter(trial, brief).claims()
        assert trial.bar.n == pictures_needed(6, trial.model.nets, brief)
    assert [c.claim for c in found[True].claims] == [c.claim for c in found[False].claims]
    assert len(found[True].rows) == 5 and len(found[False].rows) == 6 + 5
    first = found[True].claims[0]
    assert first.bar == 0.9 and first.ceiling > 0.8 and 0 <= first.low <= first.value <= first.high <= 1
    share = found[True].claims[-1]
    assert not share.up and share.value == sum(p.numel() for p in trial.model.nets["mapper"].parameters()) / sum(
        p.numel() for p in trial.model.nets["adapter"].parameters()
    )
    data = json.loads(found[False].save(tmp_path / "claims.json").read_text())
    assert {"claim", "value", "bar", "up", "holds", "floor", "ceiling", "low", "high"} == set(data["claims"][0])
    lone = PersonModel(trial.model.base, trial.model.autoencoder, {"adapter": trial.model.nets["adapter"]})
    with pytest.raises(CheckpointError, match="canonical and mapper"):
        evaluate_adapter(replace(trial, model=lone))


def test_the_command_measures(folder, tmp_path, capsys):
    eval_adapter(str(folder), n=4, seed=3002, steps=2, brief=True, device="cpu", json=str(tmp_path / "a.json"))
    data = json.loads((tmp_path / "a.json").read_text())
    assert "rank-1 among 4" in capsys.readouterr().out and len(data["claims"]) == 8


# ---- the recipe


def tiny(places, **claims):
    "The recipe on small networks, in a few steps."
    few = dict(n=16, steps=3, batch_size=4, save_every=1, warmup=0)
    stages = varied(
        RECIPES["adapter64"].stages,
        canonical=few | dict(base=str(places[0]), codes=str(places[1])),
        **{s: few for s in ("adapter", "mapper", "untimed")},
        ablations=few | dict(steps=1, first_steps=1),
        claims=dict(n=4, calls=2, seed=3002) | claims,
    )
    return replace(RECIPES["adapter64"], stages=stages)


def test_kinds_of_recipes():
    others = {k: r.kind for k, r in RECIPES.items() if r.kind != "editor"}
    assert others == dict(prompted64="prompted", adapter64="adapter")
    assert KINDS == {"prompted": PROMPTED, "adapter": ADAPTER}
    r = RECIPES["adapter64"]
    assert r.uses("adapter") == ("canonical",) and sum(r.minutes.values()) <= 180, "90 minutes of two cores"
    assert scaled(r, 0.001).stages["claims"]["brief"] and scaled(r, 0.001).stages["ablations"]["first_steps"] == 2
    with pytest.raises(ValueError, match="in this order"):
        replace(r, stages={k: v for k, v in r.stages.items() if k != "mapper"})


def test_the_recipe_killed_and_resumed(places, tmp_path, monkeypatch):
    recipe, plain = tiny(places), training.Run.step
    how = dict(processes=1, progress=False, device="cpu")
    run_recipe(recipe, tmp_path / "a", until="adapter", **how)

    def stopping(self, batch):
        if self.out.name == "adapter" and self.done == 2:
            raise KeyboardInterrupt
        return plain(self, batch)

    monkeypatch.setattr(training.Run, "step", stopping)
    with pytest.raises(KeyboardInterrupt, match="stopped in adapter"):
        run_recipe(recipe, tmp_path / "b", until="adapter", **how)
    monkeypatch.setattr(training.Run, "step", plain)
    to = run_recipe(recipe, tmp_path / "b", **how)
    once, twice = (read_net(tmp_path / o / "adapter" / "model").state_dict() for o in "ab")
    assert all(torch.equal(v, twice[k]) for k, v in once.items())
    first = read_net(tmp_path / "b" / "canonical" / "model").state_dict()
    assert {k.split(".")[0] for k in first if not torch.equal(first[k], twice[k])} == {"cross"}

    model = load_people(to)
    assert list(model.nets) == list(MAIN)
    card = (to / "README.md").read_text()
    assert "ablation: no disentangle" in card and "latref_eval adapter --n 4" in card and str(tmp_path) not in card
    assert {"README.md", "training.json", NOTE, *MAIN} == {p.name for p in to.iterdir()}
    made = [read_net(tmp_path / "b" / "ablations" / name / "model") for name in ABLATIONS]
    assert [m.config.query for m in made] == ["text"] * 4 + ["input", "text"]
    frozen = [torch.equal(m.tokens.norm.weight, made[0].tokens.norm.weight) for m in made]
    assert frozen[:3] == [True] * 3 and not frozen[3], "only one of them trains the projection in its second stage"
