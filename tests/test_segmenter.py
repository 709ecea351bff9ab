"The network that finds parts: its figure, its training, and what it finds on faces that it never saw."

import pytest
import torch
from latref_nb.drawing import CLASSES
from latref_nb.faces import SynthFaces
from latref_nb.segmenter import (
    Segmenter,
    iou_of,
    load_segmenter,
    mean_iou,
    overlaps,
    segmenter_card,
    segmenter_report,
    train_segmenter,
)

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def faces():
    ds = SynthFaces(64, 64, seed=31_007)
    return ds.batch(range(64))["image"], ds.masks(range(64)).int().argmax(1)


def test_the_shipped_network_finds_parts_of_faces_it_never_saw(faces):
    x, truth = faces
    found = load_segmenter().predict(x)
    assert found.shape == truth.shape and mean_iou(found, truth) > 0.88
    assert iou_of(overlaps(found, truth))[CLASSES.index("hair")] > 0.94


def test_a_mask_agrees_with_itself_and_less_with_another_face(faces):
    _, truth = faces
    assert mean_iou(truth, truth) == 1
    assert mean_iou(truth.roll(1, 0), truth) < 0.7


def test_the_tables_are_counted_as_one_would_by_hand():
    truth = torch.tensor([[[0, 0], [1, 2]]])
    parts = torch.tensor([[[0, 1], [1, 1]]])
    table = overlaps(parts, truth, n_classes=3)[0]
    assert table.tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert torch.allclose(iou_of(table[None]), torch.tensor([1 / 2, 1 / 3, 0.0]))


def test_a_batch_is_as_one_by_one_and_another_size_is_fitted(faces):
    x, _ = faces
    net = load_segmenter()
    assert torch.equal(net.predict(x[:4]), torch.cat([net.predict(x[i : i + 1]) for i in range(4)]))
    big = torch.nn.functional.interpolate(x[:2], scale_factor=2.0, mode="bilinear")
    assert net.predict(big).shape == (2, 64, 64)


def test_masks_of_two_shapes_are_refused(faces):
    _, truth = faces
    with pytest.raises(ValueError, match="two of one shape"):
        overlaps(truth[:1], truth)


def test_a_training_is_the_same_for_a_seed_and_is_kept(tmp_path):
    how = dict(n=48, batch_size=8, warmup=0, progress=False, trackers=(), device="cpu")
    whole = train_segmenter(tmp_path / "whole", steps=4, **how)
    again = train_segmenter(tmp_path / "again", steps=4, **how)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))
    kept = load_segmenter(tmp_path / "whole/model")
    x = torch.zeros(1, 3, 64, 64)
    assert torch.equal(kept(x), whole(x)) and not kept.training


def test_the_card_says_what_the_report_says(tmp_path):
    net = Segmenter().eval()
    report = segmenter_report(net, 8)
    facts = dict(settings=dict(batch_size=8, precision="no"), steps=2, seconds=60.0)
    facts["machine"] = dict(threads=1, cpu="one", torch="2")
    card = segmenter_card(net, facts, report)
    assert f"| mIoU, clean | {report['mIoU, clean']:.4f} |" in card and "Labels seen: masks." in card


@pytest.mark.parametrize("wrong", [dict(steps=0), dict(n=0)])
def test_no_steps_and_no_faces_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="allowed"):
        train_segmenter(tmp_path, progress=False, **wrong)
