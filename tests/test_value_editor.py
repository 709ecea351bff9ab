"An editor made of a prompted model: edits as data, what is read or said, masks, files, the command."

import json

import pytest
import torch

from latref_nb import commands
from latref_nb.batch import edit_files
from latref_nb.checkpoints import CheckpointError
from latref_nb.core import load_image, save_image
from latref_nb.edits import GUIDANCES, INVERTED, Edit, guidances_of
from latref_nb.obeyed import asked
from latref_nb.pipeline import LatRefPipeline
from latref_nb.shell import run_command
from latref_nb.value_editor import PromptedEditor
from test_value_claims import made

torch.set_num_threads(1)
SEED, STEPS = 3022, 2


@pytest.fixture(scope="module")
def editor():
    e = PromptedEditor(made(128), calls=8)
    e.set_progress_bar_config(disable=True)
    return e


@pytest.fixture(scope="module")
def few():
    return asked(3, SEED)


def other(few, tag, i=0):
    "A value that face i has not."
    t = few.faces.tags[tag]
    return t.values[(int(few.prompt.labels[i, few.faces.tags.index(tag)]) + 1) % len(t)]


def test_the_table_of_guidances_knows_who_can_do_what(editor):
    assert {g.name for g in guidances_of(editor)} == set(INVERTED) < set(GUIDANCES)
    for method in INVERTED:
        e = Edit.parse(f"Smiling=with:method={method}")
        assert e.method == method and e.guidance() == method and Edit.from_dict(e.to_dict()) == e
        assert editor.check_edits(str(e)) == [e]


@pytest.mark.parametrize("method", INVERTED)
def test_each_method_edits(editor, few, method):
    edit = f"Smiling={other(few, 'Smiling')}:method={method}"
    out = editor(few.x[:1], edit, STEPS, output_type="pt")
    assert out.images.shape == (1, 3, 64, 64) and out.images.isfinite().all() and out.images.abs().max() <= 1
    assert not torch.equal(out.images, few.x[:1]) and torch.equal(out.source, few.x[:1])
    j = few.faces.tags.index("Smiling")
    assert (out.z != out.z_edit).nonzero().tolist() == [[0, j]] and len(out.zs) == 2
    assert set(out.probabilities) == set(few.faces.tags.names) and out.probabilities["Smiling"].shape == (2, 1, 2)
    again = editor(few.x[:1], edit, STEPS, output_type="pt")
    assert torch.equal(again.images, out.images), "nothing is drawn at random"


def test_what_is_said_goes_before_what_is_read(editor, few):
    seen = editor.read(few.x)
    read = torch.stack([p.argmax(1) for p in seen.values()], 1)
    assert torch.equal(editor.labels_of(seen), read) and torch.equal(editor.labels_of(seen, few.prompt.labels), few.prompt.labels)
    for value in ("with", "without"):
        labels = editor.labels_of(seen, f"Male={value}")
        j = few.faces.tags.index("Male")
        assert (labels[:, j] == few.faces.tags["Male"].index(value)).all()
        assert torch.equal(labels[:, [k for k in range(6) if k != j]], read[:, [k for k in range(6) if k != j]])
    with pytest.raises(ValueError, match="Nose"):
        editor(few.x[:1], "Male=with", STEPS, says="Nose=with")


def test_a_face_that_has_the_value_is_left_alone(editor, few):
    value = few.faces.tags["Bangs"].values[int(few.prompt.labels[0, few.faces.tags.index("Bangs")])]
    out = editor(few.x[:2], f"Bangs={value}:method=direct", STEPS, says=few.prompt.labels[:2], output_type="pt")
    assert torch.equal(out.images[0], few.x[0])
    trip = editor(few.x[:1], (), STEPS, output_type="pt")
    assert trip.images.shape == (1, 3, 64, 64) and not trip.edits


def test_masks_and_several_edits(editor, few):
    half = torch.zeros(64, 64)
    half[:32] = 1
    edits = [Edit(t, other(few, t), method="direct", mask=m) for t, m in (("Smiling", half), ("Young", half / 2))]
    out = editor(few.x[:1], edits, STEPS, says=few.prompt.labels[:1], output_type="pt")
    assert torch.equal(out.images[..., 32:, :], few.x[:1, :, 32:]) and not torch.equal(out.images, few.x[:1])
    assert torch.equal(out.mask[0, 0], half) and (out.zs[0] != out.zs[2]).sum() == 2
    for form, kind in (("pil", list), ("np", None)):
        images = editor(few.x[:1], edits, STEPS, output_type=form).images
        assert isinstance(images, list) if kind else images.shape == (1, 64, 64, 3)


@pytest.mark.parametrize(
    "edits, words",
    [
        ("Smiling=with:seed=3", "has no seed"),
        ("Smiling=with:method=global_direction", "has no global_direction"),
        ("Smiling=with:gain=0.5", "Leave gain out"),
        ("Smiling=maybe", "maybe"),
        (["Smiling=with:method=null", "Male=with"], "null and values"),
        (["Smiling=with", "Smiling=without"], "both with and without"),
    ],
)
def test_what_it_cannot_do_is_said_in_one_line(editor, few, edits, words):
    with pytest.raises(ValueError) as e:
        editor(few.x[:1], edits, STEPS)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_wrong_calls(editor, few):
    for how, words in ((dict(num_inference_steps=0), "num_inference_steps"), (dict(output_type="gif"), "output_type")):
        with pytest.raises(ValueError, match=words):
            editor(few.x[:1], "Male=with", **how)
    with pytest.raises(ValueError, match="picture_mask"):
        editor(few.x[:1], "Male=with", STEPS, keep=True)
    with pytest.raises(ValueError, match="Known: values, null, direct"):
        PromptedEditor(editor.pipe, method="value")


def test_a_pipeline_of_codes_says_which_model_it_takes():
    pipe = LatRefPipeline.from_pretrained("synthfaces64")
    for method in INVERTED:
        with pytest.raises(ValueError) as e:
            pipe.check_edits(f"Smiling=with:method={method}")
        assert "unet and prompt_encoder" in str(e.value) and "prompted64" in str(e.value)


def test_files(editor, few, tmp_path):
    for i in range(3):
        save_image(few.x[i], tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_text("Dear reader,")
    files = [tmp_path / f"{i}.png" for i in range(4)]
    report = edit_files(editor, files, "Male=with:method=direct", tmp_path / "out", num_inference_steps=STEPS)
    assert len(report.done) == 3 and len(report.failed) == 1 and set(report.done[0]["before"]) == set(few.faces.tags.names)
    record = json.loads((tmp_path / "out" / "edits.json").read_text())
    assert record["edits"] == ["Male=with:method=direct"]
    alone = editor(load_image(files[0], 64)[None], "Male=with:method=direct", STEPS, output_type="pt").images[0]
    assert (load_image(tmp_path / "out" / "0_edited.png", 64) - alone).abs().max() < 0.02
    with pytest.raises(ValueError, match="strict"):
        edit_files(editor, files, "Male=with", tmp_path / "strict", strict=True)


def test_the_command(few, tmp_path, capsys):
    made(128).save_pretrained(tmp_path / "model")
    save_image(few.x[0], tmp_path / "me.png")
    line = [str(tmp_path / "me.png"), "--model", str(tmp_path / "model"), "--steps", str(STEPS), "--device", "cpu"]
    run = lambda *more: run_command(commands.latref_edit, "latref_edit", argv=[*line, *more])
    out = ["--out", str(tmp_path / "out")]
    assert run("--edit", "Smiling=with:method=direct", "--compare", *out) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"me_edited.png", "me_strip.png", "me_compare.png", "edits.json"}
    capsys.readouterr()
    for more, words in (
        (["--edit", "Smiling=with:seed=3"], "has no seed"),
        (["--edit", "Smiling=with", "--align", "none"], "Leave --align out"),
        (["--edit", "Smiling=with:method=valeus"], "values"),
    ):
        assert run(*more, *out) != 0
        said = capsys.readouterr().err.strip()
        assert words in said and len(said.splitlines()) == 1, said


def test_which_class_edits_is_in_the_folder(tmp_path):
    made(128).save_pretrained(tmp_path / "model")
    assert isinstance(commands.load_editor(str(tmp_path / "model")), PromptedEditor)
    assert isinstance(commands.load_editor("synthfaces64"), LatRefPipeline)
    (tmp_path / "model" / "model_index.json").write_text("[]")
    with pytest.raises(CheckpointError):
        commands.load_editor(str(tmp_path / "model"))
    with pytest.raises(CheckpointError, match="nowhere"):
        commands.load_editor("nowhere")
