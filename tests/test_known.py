"Which pictures a model knows: at most one held-out face in a thousand is warned of, and whatever is no such face."

import json, warnings
import matplotlib.cbook
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from latref_nb import commands, shell
from latref_nb.batch import edit_files, encode_dataset
from latref_nb.checkpoints import load_part
from latref_nb.core import load_image, make_generator, save_image
from latref_nb.faces import SynthFaces
from latref_nb.known import LEAST, MARGIN, KnownFaces, UnknownFace, known_faces, strangeness
from latref_nb.pipeline import LatRefPipeline
from latref_nb.recipes import ClassifierSettings
from latref_nb.runner import fit_classifiers, save_trained
from test_pipeline import tiny_pipeline

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pipe():
    p = LatRefPipeline.from_pretrained("synthfaces64", modulation=None)
    p.set_progress_bar_config(disable=True)
    return p


@pytest.fixture(scope="module")
def faces():
    return SynthFaces(400, 64, seed=1000).batch(range(400))["image"]


def drawn(*steps):
    "A picture drawn on a grey page: (name of a method, coordinates, colour), …"
    page = Image.new("RGB", (256, 256), (200, 205, 210))
    pen = ImageDraw.Draw(page)
    for shape, where, colour in steps:
        getattr(pen, shape)(where, fill=colour)
    return page


def strangers(faces):
    "{name: picture} of what the shipped model was not made for."
    portrait = Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")
    eyes = [("ellipse", (x, 100, x + 22, 130), (20, 20, 40)) for x in (90, 145)]
    head = ("ellipse", (48, 40, 208, 226), (255, 217, 80))
    pages = {
        "portrait": portrait,
        "portrait, the face": portrait.crop((130, 20, 380, 270)),
        "portrait, near": portrait.crop((180, 50, 340, 210)),
        "cartoon": drawn(head, *eyes, ("ellipse", (95, 165, 160, 195), (150, 20, 20))),
        "landscape": drawn(
            ("rectangle", (0, 0, 256, 256), (110, 170, 240)), ("ellipse", (-80, 150, 330, 420), (40, 130, 50))
        ),
    }
    out = {n: load_image(p, 64) for n, p in pages.items()}
    out |= {f"upside down {i}": faces[i].flip(1) for i in range(40)}
    out |= {f"negative {i}": -faces[i] for i in range(40)}
    out["noise"] = torch.rand(3, 64, 64, generator=make_generator(0)) * 2 - 1
    colours = ((-1, -1, -1), (0, 0, 0), (1, 1, 1), (0.6, 0.3, 0.1), (-0.2, 0.3, 0.9))
    return out | {f"flat {c}": torch.tensor(c)[:, None, None].expand(3, 64, 64).float() for c in colours}


def test_faces_of_its_own_world_are_known(pipe, faces):
    far = pipe.distances(torch.cat([pipe.encode(x) for x in faces.split(100)]))
    assert (far <= pipe.known_faces.limit).all() and 0.95 < far.median() < 1.1
    # the bar of one in a thousand has room: the strangest of these lies well below the limit
    assert far.max() < 0.95 * pipe.known_faces.limit


def test_whatever_is_no_such_face_is_unknown(pipe, faces):
    odd = strangers(faces)
    far = pipe.distances(pipe.encode(torch.stack(list(odd.values()))))
    passed = [(n, float(d)) for n, d in zip(odd, far) if d <= pipe.known_faces.limit]
    assert not passed, passed


def test_the_call_warns_once_for_each_picture(pipe, faces, tmp_path):
    save_image(faces[1].flip(1), tmp_path / "turned.png")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        out = pipe([faces[0], tmp_path / "turned.png", -faces[2]], "Smiling=with", 1, output_type="latent")
        pipe.interpolate(faces[0], None, "Smiling=with", 2, 1, output_type="latent")
    said = [str(w.message) for w in found if w.category is UnknownFace]
    assert len(said) == 2 and str(tmp_path / "turned.png") in said[0] and said[1].startswith("image 3 does not")
    assert f"the limit is {float(pipe.known_faces.limit):.2f}" in said[0] and f"{float(out.distances[2]):.2f}" in said[1]
    assert torch.equal(out.distances, pipe.distances(out.z))


def test_a_model_without_the_figures_does_not_judge(faces):
    tiny = tiny_pipeline()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnknownFace)
        x = torch.ones(1, 3, tiny.size, tiny.size)
        assert tiny(x, (), 1, output_type="latent").distances is None
    assert strangeness(None, None, ["a"]) == [""]


@pytest.fixture
def files(faces, tmp_path):
    "A face, a face upside down, a picture that is cut short."
    save_image(faces[3], tmp_path / "a.png")
    save_image(faces[4].flip(1), tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    return [tmp_path / n for n in ("a.png", "b.png", "c.png")]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_records_of_files_tell_the_distance(pipe, files, tmp_path, batch_size):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnknownFace)  # the row tells it, not a warning about "image 2"
        report = edit_files(
            pipe, files, "Smiling=with", tmp_path / "out", batch_size=batch_size, num_inference_steps=1
        )
    a, b, c = json.loads(report.path.read_text())["files"]
    limit = json.loads(report.path.read_text())["distance_limit"]
    assert a["distance"] < limit < b["distance"] and "warning" not in a and "b.png does not look" in b["warning"]
    assert "error" in c and "distance" not in c and "edited" in b


def test_strict_refuses_and_goes_on(pipe, files, tmp_path, monkeypatch, capsys):
    report = edit_files(pipe, files, "Smiling=with", tmp_path / "out", strict=True, num_inference_steps=1)
    assert [("edited" in r) for r in report.rows] == [True, False, False]
    assert "b.png does not look" in report.rows[1]["error"] and "it was not edited" in report.rows[1]["error"]
    assert report.rows[1]["distance"] > float(pipe.known_faces.limit)
    with pytest.raises(ValueError, match="does not say which faces it knows"):
        edit_files(tiny_pipeline(), files, None, tmp_path / "tiny", strict=True)


def test_the_command_says_it(files, tmp_path, capsys):
    run = lambda line: shell.run_command(commands.latref_edit, "latref_edit", "", line.split())
    line = f"{files[0]} {files[1]} --edit Smiling=with --steps 1 --device cpu --out {tmp_path / 'out'}"
    assert run(line) == 0
    notes = [l for l in capsys.readouterr().err.splitlines() if "does not look" in l]
    assert len(notes) == 1 and notes[0].startswith("latref_edit: note: ") and "b.png" in notes[0]
    assert run(line + " --strict") == 1
    refused = [l for l in capsys.readouterr().err.splitlines() if "it was not edited" in l]
    assert len(refused) == 1 and "b.png" in refused[0]


def test_distances_are_those_of_the_covariance():
    g = make_generator(0)
    z = torch.randn(4000, 6, generator=g) @ torch.randn(6, 6, generator=g) + 3
    known = known_faces(z[:3000], z[3000:])
    inverse = torch.linalg.inv(torch.cov(z[:3000].T))
    d = z[3000:] - z[:3000].mean(0)
    slow = ((d @ inverse) * d).sum(1).div(6).sqrt()
    assert torch.allclose(known(z[3000:]), slow, rtol=1e-2)
    assert known.limit == MARGIN * known(z[3000:]).quantile(0.999)
    assert torch.allclose(known(z[3000:3001]), known(z[3000:])[:1])


def test_too_few_faces_are_no_figures():
    z = torch.randn(300, 4, generator=make_generator(0))
    assert known_faces(z, z[: LEAST - 1]) is None and known_faces(z[: LEAST - 1], z) is None
    wide = torch.randn(LEAST, 400, generator=make_generator(1))  # fewer faces than numbers in a code
    assert known_faces(wide, wide.flip(0))(wide).isfinite().all()


def test_it_travels_with_the_model(pipe, tmp_path):
    LatRefPipeline(pipe.autoencoder, pipe.linear, known_faces=pipe.known_faces).save_pretrained(tmp_path / "mine")
    back = LatRefPipeline.from_pretrained(tmp_path / "mine")
    z = torch.randn(5, pipe.known_faces.config.z_dim, generator=make_generator(0))
    assert torch.equal(back.distances(z), pipe.distances(z)) and back.known_faces.limit == pipe.known_faces.limit
    assert load_part(KnownFaces, tmp_path / "mine" / "known_faces").limit == pipe.known_faces.limit
    assert LatRefPipeline.from_pretrained(tmp_path / "mine", known_faces=None).distances(z) is None
    size = sum(p.stat().st_size for p in (tmp_path / "mine" / "known_faces").iterdir())
    assert size < 100_000
    with pytest.raises(ValueError, match="the known faces have codes of 5 numbers"):
        LatRefPipeline(pipe.autoencoder, pipe.linear, known_faces=KnownFaces(5))
    with pytest.raises(ValueError, match="Needed: \\(B,128\\)"):
        pipe.distances(z[:, :5])


def test_an_old_folder_still_loads(pipe, tmp_path):
    LatRefPipeline(pipe.autoencoder, pipe.linear).save_pretrained(tmp_path / "old")
    index = json.loads((tmp_path / "old" / "model_index.json").read_text())
    index.pop("known_faces")
    (tmp_path / "old" / "model_index.json").write_text(json.dumps(index))
    assert LatRefPipeline.from_pretrained(tmp_path / "old").known_faces is None


def test_arrays_are_no_surprise(pipe):
    "A picture given as an array is judged like any other."
    with pytest.warns(UnknownFace, match="the image does not look"):
        pipe(np.full((90, 90, 3), 200, np.uint8), (), 1, output_type="latent")


def test_the_classifier_stage_computes_it(tmp_path):
    "Recipe and `latref_train classifiers` fit by one function; stored in 16 bits the figures stay as they are."
    network, settings = tiny_pipeline().autoencoder, ClassifierSettings(steps=2)
    faces = SynthFaces(LEAST * 2 + 20, network.config.image_size, seed=0)
    pipe, _ = fit_classifiers(network, faces, LEAST, settings, {}, progress=False)
    z, _ = encode_dataset(network, faces)
    assert pipe.known_faces.limit == known_faces(z[:-LEAST], z[-LEAST:]).limit
    save_trained(pipe, {"stages": {}}, tmp_path / "pipeline", "classifiers", {}, half=True)
    back = LatRefPipeline.from_pretrained(tmp_path / "pipeline").known_faces
    assert torch.equal(back.whiten, pipe.known_faces.whiten)
    few, _ = fit_classifiers(network, faces, 16, settings, {}, progress=False)
    assert few.known_faces is None
