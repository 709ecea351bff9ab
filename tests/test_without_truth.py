"The table without truth: it agrees with the table of truth where both exist, and takes networks from files."

import importlib.util, json, sys
import pytest
import torch
from torch import nn
from latref_nb import commands, shell, without_truth
from latref_nb.core import make_generator
from latref_nb.datasets import open_faces, write_celebamask_hq
from latref_nb.faces import SynthFaces
from latref_nb.judges import Judge, load_judges, load_lpips
from latref_nb.metrics import diversity, evaluate, frechet_distance, gather_sources, make_trial
from latref_nb.perceptual import load_perceptual
from latref_nb.pipeline import LatRefPipeline
from latref_nb.tags import TagSet
from latref_nb.without_truth import PHOTO_COLUMNS, evaluate_photos, load_identity, load_inception, load_onlookers
from latref_nb.without_truth import load_critic, load_ruler
from latref_nb.without_truth import photo_diversity, photo_sources, photo_trial

torch.set_num_threads(1)
SEED, N, STEPS = 1000, 48, 4
PAIRS = [("Eyeglasses", "with"), ("Smiling", "without")]
ROWS = ("global_direction", "latent", "reference")


@pytest.fixture(scope="module")
def pipe():
    p = LatRefPipeline.from_pretrained("synthfaces64")
    p.set_progress_bar_config(disable=True)
    return p


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Rendered faces, treated as photographs: larger than the model's, as JPEG, without their factors."
    out = tmp_path_factory.mktemp("photos") / "faces"
    return write_celebamask_hq(SynthFaces(N, 128, SEED), out, masks=False, progress=False)


@pytest.fixture(scope="module")
def faces(folder, pipe):
    return open_faces(folder, pipe.size, pipe.tags)


@pytest.fixture(scope="module")
def onlookers():
    return load_onlookers()


@pytest.fixture(scope="module")
def found(pipe, faces, onlookers):
    how = dict(pairs=PAIRS, judges=onlookers, brief=True, progress=False, precision="no")
    return evaluate_photos(pipe, faces, N, ("source", *ROWS), STEPS, 16, **how)


@pytest.fixture(scope="module")
def sources(pipe, faces, onlookers):
    return photo_sources(pipe, faces, 12, onlookers, 2, 5)


def test_it_agrees_with_the_table_of_truth(pipe, found):
    how = dict(pairs=PAIRS, judges=load_judges(), brief=True, progress=False, precision="no")
    true = {r["method"]: r for r in evaluate(pipe, N, SEED, ROWS, STEPS, 16, **how).summary()}
    blind = {r["method"]: r for r in found.summary()}
    edited = sum(r["tag"] == "Smiling" for r in found.rows) and N  # about half of N lack each of the two values
    for method in ROWS:
        for column in ("target", "others", "identity"):
            p = min(max(true[method][column], 1 / N), 1 - 1 / N)
            error = (p * (1 - p) / edited) ** 0.5
            assert abs(true[method][column] - blind[method][column]) <= 3 * error + 1e-6, (method, column)


def test_faces_that_are_not_edited_say_so(found):
    source = found.summary()[0]
    assert source["target"] == 0 and source["others"] == source["identity"] == 1
    assert source["similarity"] == pytest.approx(1, abs=1e-5)
    head = found.autoencoder
    assert head["judge_agrees"] > 0.97 and head["round_trip_psnr"] > 24 and head["unknown"] < 0.2
    edited = [r for r in found.rows if r["method"] in ROWS]
    assert all(r["frechet"] < s["frechet"] for r in edited for s in found.rows[:2] if s["tag"] == r["tag"])
    assert "similarity" in found.table() and found.bars() == [] and set(PHOTO_COLUMNS) < set(found.rows[0])


def test_it_is_saved_as_plain_data(found, tmp_path):
    back = json.loads(found.save(tmp_path / "table.json").read_text())
    assert back["settings"]["n"] == N and back["rows"][0]["fid"] is None and back["autoencoder"].keys() >= {"unknown"}


def test_references_have_the_value_and_are_another_face(sources):
    trial = photo_trial(sources, "HairColor", "black")
    black = sources.labels[:, sources.faces.tags.index("HairColor")] == 0
    assert black[trial.references].all() and not black[trial.rows].any()
    assert trial.references.shape == (int((~black).sum()), without_truth.DRAWS)
    again = photo_trial(sources, "HairColor", "black")
    assert torch.equal(trial.references, again.references)


def test_labels_nobody_knows_are_read_by_the_judge(pipe, faces, onlookers):
    class Unknown:
        tags, size, layout, labels = faces.tags, faces.size, "some", torch.full_like(faces.labels, -1)

        def __len__(self):
            return len(faces)

        def batch(self, i):
            return faces.batch(i) | {"labels": self.labels[list(i)]}

    src = photo_sources(pipe, Unknown(), 8, onlookers, 1, 8)
    assert torch.equal(src.labels, src.before.cpu()) and src.agrees != src.agrees
    assert photo_trial(src, "Eyeglasses", "with") is not None


def test_nobody_to_edit_and_nobody_to_lend_is_an_empty_row(pipe, faces, onlookers):
    every = [i for i in range(N) if faces.labels[i, 1] == 0][:4]

    class Bare:
        tags, size, layout, labels = faces.tags, faces.size, "some", faces.labels[every]

        def __len__(self):
            return 4

        def batch(self, i):
            return faces.batch([every[k] for k in i])

    found = evaluate_photos(pipe, Bare(), 9, ("source",), 1, 4, pairs=[("Eyeglasses", "with")], judges=onlookers)
    assert found.rows[0]["target"] is None and found.settings["n"] == 4


def test_diversity_is_of_all_pairs(pipe, sources, onlookers, monkeypatch):
    trial = photo_trial(sources, "Eyeglasses", "with", 3)
    made = [torch.full_like(sources.x[:2], v) for v in (0.0, 0.5, 1.0)]
    monkeypatch.setattr(without_truth, "edited_pictures", lambda p, s, t, part, m, how, d: made[d][: len(part)])
    flat = type("Ruler", (), {"distance": staticmethod(lambda a, b: (a - b).abs().mean((1, 2, 3)))})()
    judges = without_truth.Onlookers(onlookers.judge, onlookers.identity, flat)
    got = photo_diversity(pipe, sources, trial, "latent", judges, 2, {}, n=4)
    assert got == {"diversity_perceptual": pytest.approx((0.5 + 0.5 + 1) / 3)}


def test_no_variation_is_no_division_by_zero(pipe, monkeypatch):
    "A factor network that reads the same off every face: the diversity of chapter 14a is not known, and no error."
    judges = load_judges()
    monkeypatch.setattr(judges.factors, "read", lambda x: {"Eyeglasses": torch.full((len(x), 4), 0.5)})
    monkeypatch.setattr(judges.factors, "mask", lambda tag, value: torch.ones(4, dtype=torch.bool))
    src = gather_sources(pipe, 6, SEED, 1, judges=judges, brief=True)
    assert diversity(pipe, src, make_trial(src.faces, 6, "Eyeglasses", "with", 2), judges, 4, {}, n=2) is None


def traced(path, side=112):
    net = nn.Sequential(nn.Conv2d(3, 8, 9, 16), nn.Flatten(), nn.Linear(8 * 7 * 7, 16))
    torch.jit.trace(net, torch.zeros(1, 3, side, side)).save(str(path))
    return path


def test_identity_from_a_file(tmp_path, faces):
    net = load_identity(traced(tmp_path / "net.pt"))
    x = faces.batch(range(3))["image"]
    assert net(x).shape == (3, 16) and torch.allclose(net(x).norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(net(x[1:2]), net(x)[1:2], atol=1e-6)
    with pytest.raises(ValueError, match="does not take pictures .*--identity-size"):
        load_identity(tmp_path / "net.pt", size=40)(x)
    (tmp_path / "bad.pt").write_bytes(b"no script")
    with pytest.raises(ValueError, match="cannot be read as TorchScript"):
        load_identity(tmp_path / "bad.pt")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_identity(tmp_path / "gone.pt")
    torch.jit.trace(nn.AvgPool2d(2), torch.zeros(1, 3, 112, 112)).save(str(tmp_path / "map.pt"))
    with pytest.raises(ValueError, match="Needed: one finite vector for each"):
        load_identity(tmp_path / "map.pt")(x)


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is not None, reason="onnxruntime is there")
def test_onnx_without_its_runtime_is_said(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match="need onnxruntime"):
        load_identity(tmp_path / "net.onnx")


def test_onnx_says_its_own_size(tmp_path, monkeypatch, faces):
    class Session:
        def __init__(self, path, providers):
            self.seen = []

        def get_inputs(self):
            return [type("Input", (), {"name": "input.1", "shape": ["batch", 3, 48, 48]})()]

        def run(self, wanted, given):
            assert given["input.1"].shape[1:] == (3, 48, 48)
            return [given["input.1"].mean((2, 3))]

    monkeypatch.setitem(sys.modules, "onnxruntime", type("Runtime", (), {"InferenceSession": Session}))
    monkeypatch.setattr(without_truth.importlib.util, "find_spec", lambda name: True)
    (tmp_path / "net.onnx").write_bytes(b"x")
    assert load_identity(tmp_path / "net.onnx")(faces.batch([0, 1])["image"]).shape == (2, 3)


def test_inception_is_asked_for(tmp_path, monkeypatch):
    assert load_inception() is None
    monkeypatch.setattr(without_truth.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="latref_nb\\[measure\\]"):
        load_inception("download")
    monkeypatch.setattr(without_truth.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_inception(tmp_path / "gone.pth")
    if importlib.util.find_spec("torch_fidelity"):
        (tmp_path / "bad.pth").write_bytes(b"no weights")
        with pytest.raises(ValueError, match="could not be had"):
            load_inception(tmp_path / "bad.pth")


def test_the_distance_is_that_of_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Means(nn.Module):
        num_features = 4

        def forward(self, x):
            x = x.float() / 255
            return torch.stack([x[:, 0].mean((1, 2)), x[:, 1].std((1, 2)), x[:, 2].mean((1, 2)), x.std((1, 2, 3))], 1)

    g = make_generator(0)
    a, b = (torch.randint(low, 256, (60, 3, 8, 8), generator=g, dtype=torch.uint8) for low in (0, 60))
    fid = FrechetInceptionDistance(feature=Means())
    fid.update(a, real=True)
    fid.update(b, real=False)
    assert frechet_distance(Means()(b), Means()(a)) == pytest.approx(float(fid.compute()), rel=1e-3)


def test_fid_stands_in_the_table_where_its_network_does(pipe, faces, onlookers):
    class Small(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    judges = without_truth.Onlookers(
        onlookers.judge, onlookers.identity, onlookers.perceptual, inception=Small()
    )
    rows = ("source", "global_direction")
    found = evaluate_photos(pipe, faces, 10, rows, 1, 5, pairs=PAIRS[:1], judges=judges, progress=False)
    assert all(r["fid"] >= 0 for r in found.rows) and "fid" in found.table()


def run(line, capsys):
    code = shell.run_command(commands.latref_eval, "latref_eval", "", line.split())
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_measures_a_folder(folder, tmp_path, capsys):
    line = f"--data {folder} --n 6 --steps 1 --edit Smiling=with --method global_direction --device cpu"
    code, out, err = run(f"{line} --identity {traced(tmp_path / 'net.pt')} --json {tmp_path / 't.json'}", capsys)
    assert code == 0 and "judge_agrees" in out and "similarity" in out
    assert "rendered faces only (judge, critic)" in err and err.count("note:") == 1
    assert json.loads((tmp_path / "t.json").read_text())["settings"]["data"] == str(folder)


@pytest.mark.parametrize(
    "line, words",
    [
        ("--judge runs/judge", "Give --data DIR"),
        ("--data {folder} --card", "Leave out --card or --data"),
        ("--data {folder} --method oracle --n 2", "nobody knows of a folder"),
        ("--data {folder} --n 2 --identity nowhere.pt", "no such file or folder"),
        ("--data nowhere", "nowhere"),
    ],
)
def test_what_does_not_go_together_is_one_line(folder, line, words, capsys):
    code, _, err = run(line.format(folder=folder) + " --device cpu", capsys)
    said = [l for l in err.splitlines() if l.startswith("latref_eval: ") and "note:" not in l]
    assert code in (1, 2) and len(said) == 1 and words in said[0]


def test_a_judge_of_other_tags_is_refused(pipe, faces, onlookers):
    other = without_truth.Onlookers(Judge(TagSet([faces.tags[0]])), onlookers.identity, onlookers.perceptual)
    with pytest.raises(ValueError, match="latref_train judge --data DIR"):
        photo_sources(pipe, faces, 2, other, 1)


# ---- another ruler


def a_script(path, net):
    torch.jit.script(net).save(str(path))
    return path


class Maps(nn.Module):
    "Two maps of a picture, as a published network might give them."

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(3, 4, 3, 2), torch.nn.Conv2d(4, 6, 3, 2)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        a = self.a(x)
        return [a, self.b(a)]


def test_a_ruler_from_a_file_measures_in_the_critics_place(tmp_path):
    from torchvision.models import alexnet

    torch.manual_seed(0)
    torch.save(alexnet(weights=None).state_dict(), tmp_path / "alex.pth")
    x, y = (SynthFaces(8, 64, 3).batch(rows)["image"] for rows in ([0, 1], [2, 3]))
    shipped = load_perceptual()
    for file in (tmp_path / "alex.pth", a_script(tmp_path / "maps.pt", Maps())):
        critic = load_critic(None, file)
        assert torch.equal(critic.predict(x), shipped.predict(x)) and critic.tags.alike(shipped.tags)
        far, y_ = critic.distance(x, y), y.clone().requires_grad_()
        assert far.shape == (2,) and bool((far > 0).all()) and not torch.allclose(far, shipped.distance(x, y))
        assert critic.distance(x, x).abs().max() < 1e-6 and critic.features(x).ndim == 2
        (critic.distance(x, y_).sum() + critic.features(y_).sum()).backward()
        assert y_.grad.abs().sum() > 0, "losses learn from it"
    whole = load_lpips(tmp_path / "alex.pth")
    assert torch.allclose(load_ruler(tmp_path / "alex.pth").distance(x, y), whole(x, y).flatten())


def test_files_that_measure_nothing_are_told(tmp_path):
    (tmp_path / "words.pt").write_text("Dear reader,")
    with pytest.raises(ValueError, match="neither TorchScript nor AlexNet's weights") as e:
        load_ruler(tmp_path / "words.pt")
    assert "\n" not in str(e.value)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_ruler(tmp_path / "none.pt")
    wrong = load_ruler(a_script(tmp_path / "wide.pt", torch.nn.Conv2d(7, 2, 3)))
    with pytest.raises(ValueError, match="does not take pictures"):
        wrong.distance(*[SynthFaces(8, 64, 3).batch([0])["image"]] * 2)
