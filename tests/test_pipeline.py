"The pipeline's contract on a tiny random model: edits as data, outputs, conventions, saving, and everything a checkpoint can be wrong in."
import json, os, shutil
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from latref_nb.autoencoder import DiffusionAutoencoder
from latref_nb.core import CELEBA_TAGS, ImageError, Tag, TagSet, load_image, make_generator
from latref_nb.directions import ValueClassifier, fit_classifiers
from latref_nb.pipeline import CheckpointError, Edit, LatRefOutput, LatRefPipeline, edit_files, encode_dataset, fit_pipeline, join_images, load_part
from latref_nb.sampling import round_trip

torch.set_num_threads(1)      # tiny work: threads only wait for one another
SIZE, Z = 32, 16


def tiny_pipeline(tags=CELEBA_TAGS, seed=0, **settings):
    "Random weights everywhere, also where a fresh network has zeros, so that the code matters."
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ae = DiffusionAutoencoder(image_size=SIZE, patch_size=4, enc_patch_size=2, model_channels=32, channel_mult=(1, 1), num_res_blocks=1, attention_resolutions=(),
                                  enc_channels=32, enc_channel_mult=(1, 1, 1), z_dim=Z, prediction_type="v_prediction")
        for p in ae.parameters():
            if not p.abs().sum(): torch.nn.init.normal_(p, std=0.05)
        z = torch.randn(200, Z); labels = torch.stack([torch.randint(0, len(t), (200,)) for t in tags], 1)
        pipe = fit_pipeline(ae, z, labels, tags, make_generator(seed), linear={"steps": 10}, mlp={"steps": 10}, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe

@pytest.fixture(scope="module")
def pipe(): return tiny_pipeline()

@pytest.fixture(scope="module")
def x(): return torch.rand(3, 3, SIZE, SIZE, generator=make_generator(1)) * 2 - 1

@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("models")/"tiny"; pipe.save_pretrained(path)
    return path

@pytest.fixture
def copy(saved, tmp_path): return Path(shutil.copytree(saved, tmp_path/"tiny"))

def refused(f, *contains, exc=ValueError):
    "`f` raises `exc` with one line that contains all of `contains`."
    with pytest.raises(exc) as e: f()
    said = str(e.value)
    assert "\n" not in said and len(said) < 500, said
    for c in contains: assert c in said, said


@pytest.mark.parametrize("text,edit", [
    ("Eyeglasses=with", Edit("Eyeglasses", "with")), ("HairColor=blond:gain=0.8", Edit("HairColor", "blond", gain=0.8)),
    (" Smiling = without : method=image_specific : gain=-1", Edit("Smiling", "without", method="image_specific", gain=-1.0))])
def test_edits_from_words(text, edit):
    assert Edit.parse(text) == edit and Edit.parse(str(edit)) == edit and hash(edit) == hash(Edit.parse(text))

@pytest.mark.parametrize("text,contains", [("", "name=value"), ("Eyeglasses", "name=value"), ("=with", "name=value"), ("Eyeglasses=", "name=value"), ("A=b:gain", "name=value"),
                                           ("A=b:gian=1", "Did you mean 'gain'?"), ("A=b:gain=much", "not a number"), ("A=b:gain=nan", "not finite"), ("A=b:gain=inf", "not finite"),
                                           ("A=b:method=global", "Did you mean 'global_direction'?")])
def test_words_that_are_no_edit(text, contains): refused(lambda: Edit.parse(text), contains)

def test_edits_are_checked_against_the_checkpoint(pipe, x):
    refused(lambda: pipe(x, ["Eyeglasess=with"]), "Did you mean 'Eyeglasses'?", "Known: Smiling")
    refused(lambda: pipe(x, Edit("HairColor", "blonde")), "Did you mean 'blond'?")
    refused(lambda: pipe(x, [3]), "int came as an edit")
    assert pipe.check_edits(["Smiling=with", Edit("Male", "with"), {"tag": "Bangs", "value": "without", "gain": 0.5}]) == [Edit("Smiling", "with"), Edit("Male", "with"), Edit("Bangs", "without", gain=0.5)]
    assert pipe.check_edits(None) == [] and pipe.check_edits("Male=with") == [Edit("Male", "with")]


def test_output_holds_everything(pipe, x):
    out = pipe(x, ["Eyeglasses=with", "HairColor=blond:method=image_specific"], 4)
    assert isinstance(out, LatRefOutput) and len(out.images) == 3 and out.images[0].size == (SIZE, SIZE)
    assert out.x_T.shape == x.shape and out.z.shape == out.z_edit.shape == (3, Z) and out.zs.shape == (3, 3, Z)
    assert torch.equal(out.zs[0], out.z) and torch.equal(out.zs[-1], out.z_edit) and torch.equal(out.source, x)
    assert {t: tuple(p.shape) for t, p in out.probabilities.items()} == {t.name: (2, 3, len(t)) for t in CELEBA_TAGS}
    assert out.inverted is None and out["z"] is out.z
    assert [str(e) for e in out.edits] == ["Eyeglasses=with", "HairColor=blond:method=image_specific"]

def test_no_edits_is_the_round_trip(pipe, x):
    out = pipe(x, num_inference_steps=5, output_type="pt")
    want = round_trip(pipe.autoencoder, x, 5).rendered.images.clamp(-1, 1)
    assert torch.allclose(out.images, want, atol=1e-5) and torch.equal(out.z, out.z_edit)

def test_the_verbs_compose_to_the_call(pipe, x):
    z = pipe.encode(x); x_T = pipe.invert(x, z, 5); z_edit = pipe.edit(z, ["Male=with", "Young=without"])
    out = pipe(x, ["Male=with", "Young=without"], 5, output_type="pt")
    assert torch.allclose(pipe.render(x_T, z_edit, 5), out.images, atol=1e-5)
    assert torch.allclose(pipe.edit(pipe.edit(z, "Male=with"), "Young=without"), z_edit, atol=1e-4) and torch.allclose(out.x_T, x_T, atol=1e-5)

def test_gain(pipe, x):
    z = pipe.encode(x)
    for method in ("global_direction", "image_specific"):
        full, half, none = (pipe.edit(z, Edit("Eyeglasses", "with", method=method, gain=g)) - z for g in (1, 0.5, 0))
        assert none.abs().max() < 1e-5 and torch.allclose(half, full / 2, atol=1e-5) and full.norm() > 1e-3

def test_a_wish_that_is_fulfilled_already_changes_nothing(x):
    eager = tiny_pipeline(sure=0.0); z = eager.encode(x)
    assert torch.equal(eager.edit(z, "Male=with"), z) and not torch.equal(eager.edit(z, "Male=with:gain=-1"), z)
    p = eager.read(z)["Male"][:, 1]; some = tiny_pipeline(sure=float(p.median()))
    moved = (some.edit(z, "Male=with") != z).any(1)
    assert moved.tolist() == (p < p.median()).tolist()

def test_method_of_the_checkpoint_is_the_default(pipe, x):
    z = pipe.encode(x); other = tiny_pipeline(method="image_specific", options={"image_specific": {"max_steps": 1, "step": 0.5}})
    other.autoencoder.load_state_dict(pipe.autoencoder.state_dict())
    assert torch.allclose(other.edit(z, "Bangs=with"), other.edit(z, "Bangs=with:method=image_specific"))
    step = other.mlp.normalise(other.edit(z, "Bangs=with")) - other.mlp.normalise(z)
    assert torch.allclose(step.norm(dim=1), torch.full((3,), 0.5), atol=1e-3)

def test_an_image_alone_and_in_a_batch(pipe, x):
    both = pipe(x, "Smiling=with:method=image_specific", 4, output_type="pt"); alone = pipe(x[1:2], "Smiling=with:method=image_specific", 4, output_type="pt")
    assert torch.allclose(both.images[1], alone.images[0], atol=1e-4)
    drawn = [pipe(o, None, 4, x_T="random", generator=make_generator(s), output_type="pt").x_T for o, s in ((x, [5, 6, 7]), (x[2:], [7]))]
    assert torch.equal(drawn[0][2], drawn[1][0])

def test_noise_given_drawn_or_inverted(pipe, x):
    z, x_T = pipe.encode(x), torch.randn(x.shape, generator=make_generator(3))
    out = pipe(x, None, 4, x_T=x_T, output_type="pt")
    assert out.x_T is x_T and torch.allclose(out.images, pipe.render(x_T, z, 4), atol=1e-5)
    a, b, c = (pipe(x, None, 2, x_T="random", generator=make_generator(s), output_type="pt").images for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)

def test_output_types(pipe, x):
    pt, np_, pil = (pipe(x, None, 3, output_type=o).images for o in ("pt", "np", "pil"))
    assert pt.shape == x.shape and pt.min() >= -1 and pt.max() <= 1
    assert np_.shape == (3, SIZE, SIZE, 3) and np_.min() >= 0 and np.allclose(np_, (pt.movedim(1, -1) + 1) / 2, atol=1e-5)
    assert (load_image(pil[0]) - pt[0]).abs().max() < 1.01 / 127.5 and (load_image(np_[0]) - pt[0]).abs().max() < 1.01 / 127.5
    refused(lambda: pipe(x, output_type="latent"), "output_type 'latent'", "pil, pt, np")

def test_images_of_every_kind(pipe, x, tmp_path):
    im = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8)); im.save(tmp_path/"me.png")
    want = load_image(im, SIZE)
    for src in (im, tmp_path/"me.png", str(tmp_path/"me.png"), np.array(im), [im], want, want[None], [want]): assert torch.allclose(pipe.load_images(src), want[None])
    assert pipe.load_images([im, want, np.array(im)]).shape == (3, 3, SIZE, SIZE)
    refused(lambda: pipe([]), "Give at least one"); refused(lambda: pipe(torch.zeros(1, 3, 9, 9)), f"(B,3,{SIZE},{SIZE}) is needed")
    refused(lambda: pipe(x * 200), "[-1, 1]"); refused(lambda: pipe(tmp_path/"no.png"), "no such file", exc=ImageError)
    refused(lambda: pipe((x > 0)), "floats"); refused(lambda: pipe(x, num_inference_steps=0), "num_inference_steps"); refused(lambda: pipe(x, num_inference_steps=2000), "1 to 1000")

def test_callback_in_diffusers_form(pipe, x):
    seen = []
    def note(p, step, timestep, state): assert p is pipe; seen.append((step, timestep, sorted(state)))
    pipe(x, None, 4, callback_on_step_end=note)
    assert [s for s, *_ in seen] == [0, 1, 2, 3] and seen[0][1] > seen[-1][1] and {"xt", "x0", "z"} <= set(seen[0][2])
    assert not torch.equal(*(pipe(x, None, 4, output_type="pt", callback_on_step_end=f).images for f in (None, lambda p, i, t, s: {"z": s["z"] + 1})))

def test_trajectories_on_request(pipe, x):
    out = pipe(x, "Male=with", 4, return_trajectory=True)
    assert out.inverted.xs.shape == (5, 3, 3, SIZE, SIZE) == out.rendered.xs.shape and torch.equal(out.inverted.xT, out.x_T)

def test_progress_bar_is_diffusers(pipe, x, capsys):
    p = tiny_pipeline(); p.set_progress_bar_config(ascii=True); p(x, None, 2)
    assert "4/4" in capsys.readouterr().err
    p.set_progress_bar_config(disable=True); p(x, None, 2)
    assert capsys.readouterr().err == ""

def test_nothing_keeps_gradients_or_modes(pipe, x):
    out = pipe(x, "Male=with:method=image_specific", 2, output_type="pt")
    assert not any(o.requires_grad for o in (out.images, out.z, out.z_edit, out.x_T)) and not any(p.requires_grad for m in pipe.parts.values() for p in m.parameters())

def test_half_precision(pipe, x):
    a = pipe(x, "Male=with", 3, output_type="pt").images
    b = pipe(x, "Male=with", 3, output_type="pt", dtype=torch.bfloat16).images
    c = tiny_pipeline().to(torch.bfloat16)(x, "Male=with", 3, output_type="pt").images
    assert (a - b).abs().mean() < 0.05 and (a - c).abs().mean() < 0.1 and c.dtype == torch.float32


def test_parts_must_fit(pipe):
    lin, mlp, ae = pipe.linear, pipe.mlp, pipe.autoencoder
    few = ValueClassifier(Z, TagSet(list(CELEBA_TAGS)[:2]), "mlp"); wide = ValueClassifier(Z + 1, CELEBA_TAGS, "mlp")
    refused(lambda: LatRefPipeline(ae, lin, few), "different tags"); refused(lambda: LatRefPipeline(ae, lin, wide), "Fit it on this autoencoder's codes")
    refused(lambda: LatRefPipeline(ae, mlp, mlp), "kind='linear'"); refused(lambda: LatRefPipeline(ae, lin, mlp, method="x"), "Known: global_direction")
    refused(lambda: LatRefPipeline(ae, lin, mlp, inversion="x"), "inversion")
    refused(lambda: pipe.check_tags(few.tags), "is needed"); assert pipe.check_tags(CELEBA_TAGS) is pipe

def test_saved_and_loaded(pipe, saved, x):
    back = LatRefPipeline.from_pretrained(saved); back.set_progress_bar_config(disable=True)
    for name, m in pipe.parts.items():
        ours, theirs = m.state_dict(), back.components[name].state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert back.tags == pipe.tags and back.config.method == pipe.config.method and back.name_or_path == str(saved)
    assert torch.allclose(back(x, "Male=with", 3, output_type="pt").images, pipe(x, "Male=with", 3, output_type="pt").images, atol=1e-4)

def test_settings_and_strengths_travel(tmp_path):
    from latref_nb.directions import Calibration
    p = tiny_pipeline(method="image_specific", inversion="fixed_point", iterations=2, options={"image_specific": {"confidence": 0.9}})
    p.linear.set_strengths("global_direction", Calibration({("Male", "with"): 2.5})); p.save_pretrained(tmp_path/"m")
    back = LatRefPipeline.from_pretrained(tmp_path/"m")
    assert (back.config.method, back.config.inversion, back.config.iterations, back.config.options) == ("image_specific", "fixed_point", 2, {"image_specific": {"confidence": 0.9}})
    assert back.linear.strength("global_direction", "Male", "with") == 2.5
    assert LatRefPipeline.from_pretrained(tmp_path/"m", method="global_direction").config.method == "global_direction"
    assert LatRefPipeline.from_pretrained(tmp_path/"m", torch_dtype=torch.bfloat16).autoencoder.dtype == torch.bfloat16

def test_saving_again_keeps_the_model_card_and_replaces_the_rest(pipe, copy):
    (copy/"README.md").write_text("card"); pipe.save_pretrained(copy)
    assert (copy/"README.md").read_text() == "card" and LatRefPipeline.from_pretrained(copy).tags == CELEBA_TAGS
    assert os.listdir(copy.parent) == ["tiny"]


def damage_cut(p): (p/"autoencoder"/"diffusion_pytorch_model.safetensors").write_bytes((p/"autoencoder"/"diffusion_pytorch_model.safetensors").read_bytes()[:5000])
def damage_zeros(p): (p/"linear"/"diffusion_pytorch_model.safetensors").write_bytes(bytes(5000))
def damage_empty(p): (p/"mlp"/"diffusion_pytorch_model.safetensors").write_bytes(b"")
def damage_no_weights(p): (p/"mlp"/"diffusion_pytorch_model.safetensors").unlink()
def damage_no_part(p): shutil.rmtree(p/"linear")
def damage_no_index(p): (p/"model_index.json").unlink()
def damage_index(p): (p/"model_index.json").write_text("{")
def damage_foreign_index(p): (p/"model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
def damage_list_index(p): (p/"model_index.json").write_text("[]")
def damage_foreign_part(p): shutil.rmtree(p/"autoencoder"); shutil.copytree(p/"mlp", p/"autoencoder")
def damage_config(p): edit_json(p/"autoencoder"/"config.json", z_dim=Z + 1)
def damage_config_type(p): edit_json(p/"autoencoder"/"config.json", channel_mult="wide")
def damage_depth(p): edit_json(p/"autoencoder"/"config.json", num_res_blocks=2)
def damage_fewer(p): edit_json(p/"autoencoder"/"config.json", enc_channel_mult=[1, 1])
def damage_tags(p): edit_json(p/"mlp"/"config.json", tags=[{"name": "Beard", "values": ["without", "with"], "attributes": []}])
def damage_tags_type(p): edit_json(p/"mlp"/"config.json", tags=7)
def damage_method(p): edit_json(p/"model_index.json", method="magic")

def edit_json(path, **changes): path.write_text(json.dumps(json.loads(path.read_text()) | changes))

@pytest.mark.parametrize("damage", [f for n, f in list(globals().items()) if n.startswith("damage_")], ids=lambda f: f.__name__[7:])
def test_checkpoints_that_cannot_be_used(copy, damage):
    damage(copy)
    refused(lambda: LatRefPipeline.from_pretrained(copy), str(copy), exc=CheckpointError)

def test_names_that_are_no_checkpoint(tmp_path):
    refused(lambda: LatRefPipeline.from_pretrained("synthfaces46"), "no such folder", "Shipped:", exc=CheckpointError)
    refused(lambda: LatRefPipeline.from_pretrained(tmp_path), "model_index.json", exc=CheckpointError)
    refused(lambda: LatRefPipeline.from_pretrained(tmp_path/"gone"), "no such folder", exc=CheckpointError)
    refused(lambda: load_part(DiffusionAutoencoder, tmp_path), "config.json", exc=CheckpointError)

def test_other_tags(tmp_path):
    mood = TagSet([Tag("Mood", ("calm", "glad", "sad")), Tag("Hat", ("without", "with"))])
    p = tiny_pipeline(mood); p.save_pretrained(tmp_path/"m"); p = LatRefPipeline.from_pretrained(tmp_path/"m")
    assert p.tags == mood and p.check_edits("Mood=glad") == [Edit("Mood", "glad")]
    refused(lambda: p.check_edits("Smiling=with"), "Known: Mood, Hat"); refused(lambda: p.check_tags(CELEBA_TAGS), "checkpoint trained on these tags", exc=CheckpointError)

def test_a_full_disk_keeps_the_old_checkpoint(pipe, copy):
    import resource
    old, before = resource.getrlimit(resource.RLIMIT_FSIZE), {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, old[1]))
    try: refused(lambda: pipe.save_pretrained(copy), "cannot write", exc=OSError)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before and os.listdir(copy.parent) == ["tiny"]


@pytest.fixture
def folder(tmp_path):
    "Five pictures of several formats and sizes, and three bad files among them."
    d = tmp_path/"in"; d.mkdir(); rng = np.random.default_rng(0)
    for i, s in enumerate([".png", ".jpg", ".webp", ".bmp", ".png"]): Image.fromarray(rng.integers(0, 255, (40 + i, 50, 3), dtype=np.uint8)).save(d/f"{i}{s}")
    (d/"1a.png").write_text("a letter"); (d/"1b.png").touch(); (d/"3a.png").write_bytes((d/"0.png").read_bytes()[:300])
    return d

def test_files_bad_ones_are_skipped_the_rest_is_done(pipe, folder, tmp_path):
    said = []
    files = sorted(folder.iterdir()) + [folder/"gone.png"]
    report = edit_files(pipe, iter(files), ["Eyeglasses=with"], tmp_path/"out", batch_size=2, num_inference_steps=2, report=said.append)
    assert len(report.done) == 5 and len(report.failed) == 4 and len(said) == 9
    names = {f"{i}_{k}.png" for i in range(5) for k in ("edited", "strip")} | {"edits.json"}
    assert set(os.listdir(tmp_path/"out")) == names
    data = json.loads((tmp_path/"out"/"edits.json").read_text())
    assert data["edits"] == ["Eyeglasses=with"] and data["num_inference_steps"] == 2 and data["files"] == report.rows
    for r in report.done:
        assert load_image(tmp_path/"out"/r["edited"]).shape == (3, SIZE, SIZE) and load_image(tmp_path/"out"/r["strip"]).shape == (3, SIZE, 2 * SIZE + 2)
        assert CELEBA_TAGS.encode(r["before"]).min() >= 0 and CELEBA_TAGS.encode(r["after"]).min() >= 0 and all(0 <= p <= 1 for p in r["probability"]["Eyeglasses=with"])
    for r in report.failed: assert "\n" not in r["error"] and Path(r["file"]).name in r["error"]

def test_files_do_not_depend_on_the_batch(pipe, folder, tmp_path):
    files = sorted(folder.glob("[0-4].*")); how = dict(num_inference_steps=2, seed=4, x_T="random")
    for n in (1, 3): edit_files(pipe, files, "Male=with", tmp_path/str(n), batch_size=n, **how)
    for i in range(5): assert (load_image(tmp_path/"1"/f"{i}_edited.png") - load_image(tmp_path/"3"/f"{i}_edited.png")).abs().max() < 2.01 / 127.5

def test_files_of_one_name_do_not_overwrite_each_other(pipe, folder, tmp_path):
    (tmp_path/"other").mkdir(); shutil.copy(folder/"0.png", tmp_path/"other"/"0.png")
    report = edit_files(pipe, [folder/"0.png", tmp_path/"other"/"0.png"], None, tmp_path/"out", num_inference_steps=1)
    assert [r["edited"] for r in report.rows] == ["0_edited.png", "0-2_edited.png"]

def test_files_into_places_that_cannot_be_written(pipe, folder):
    refused(lambda: edit_files(pipe, [folder/"0.png"], None, folder/"0.png"/"out"), "cannot write", exc=OSError)

def test_stopped_in_the_middle_the_report_is_there(pipe, folder, tmp_path):
    def stop(row):
        if Path(row["file"]).stem == "3": raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): edit_files(pipe, sorted(folder.glob("[0-4].*")), None, tmp_path/"out", batch_size=2, num_inference_steps=1, report=stop)
    assert [Path(r["file"]).stem for r in json.loads((tmp_path/"out"/"edits.json").read_text())["files"]] == ["0", "1", "2", "3"]
    assert not [p for p in (tmp_path/"out").iterdir() if ".part" in p.name]

def test_join_images(x): assert torch.equal(join_images(x)[:, :, SIZE + 2:2 * SIZE + 2], x[1]) and join_images(x[:1]).shape == x[0].shape


class Faces(torch.utils.data.Dataset):
    "Some random pictures with random labels."
    def __init__(self, n): self.x = torch.rand(n, 3, SIZE, SIZE, generator=make_generator(0)) * 2 - 1; self.labels = torch.stack([torch.arange(n) % len(t) for t in CELEBA_TAGS], 1)
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return {"image": self.x[i], "labels": self.labels[i], "index": i}

def test_codes_of_a_dataset(pipe):
    ds = Faces(10); z, labels = encode_dataset(pipe.autoencoder, ds, batch_size=4)
    assert torch.allclose(z, pipe.encode(ds.x), atol=1e-5) and torch.equal(labels, ds.labels)
    assert len(encode_dataset(pipe.autoencoder, ds, 7, batch_size=4)[0]) == 7

def test_calibration_looks_at_decoded_pictures(x):
    p = tiny_pipeline(); faces = Faces(12); seen = []
    def judge(images): seen.append(len(images)); return torch.stack([(images.mean((1, 2, 3)) > -9).long() * (torch.arange(len(images)) % len(t)) for t in CELEBA_TAGS], 1)
    found = p.calibrate(faces.x, judge, num_inference_steps=1, batch_size=5, strengths=(1., 2.), n=3, pairs=[("Male", "with")], methods=("global_direction",))
    row = found["global_direction"].rows[0]
    assert set(row) >= {"tag", "value", "strength", "target", "others"} and len(found["global_direction"].rows) == 2
    assert p.linear.strength("global_direction", "Male", "with") in (1., 2.) and max(seen) <= 5
