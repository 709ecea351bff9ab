"SynthFaces: determinism to the bit, counterfactuals that touch nothing else, masks, styles, labels, faults."

import pytest, torch
from latref_nb.tags import CELEBA_TAGS, TagSet
from latref_nb.faces import (
    CLASSES,
    IDENTITY,
    NUISANCE,
    STYLES,
    SynthFaces,
    draw_factors,
    draw_labels,
    render_faces,
    render_masks,
    uniforms,
)


@pytest.fixture(scope="module")
def ds():
    return SynthFaces(n=2000, size=64, seed=11)


@pytest.fixture(scope="module")
def dozen(ds):
    return ds.batch(range(12))["image"]


# ---- determinism
def test_a_face_is_a_function_of_seed_and_index(ds, dozen):
    assert torch.equal(SynthFaces(n=50, seed=11).batch(range(12))["image"], dozen)  # n plays no part
    assert not torch.equal(SynthFaces(n=50, seed=12).batch(range(12))["image"], dozen)


def test_one_alone_equals_one_in_any_batch(ds, dozen):
    for i in (0, 5, 11):
        assert torch.equal(ds[i]["image"], dozen[i])
    mixed = ds.batch([7, 1999, 3, 3])["image"]
    assert torch.equal(mixed[2], dozen[3]) and torch.equal(mixed[3], dozen[3]) and torch.equal(mixed[0], dozen[7])


def test_across_bites_of_the_renderer(ds):
    many = ds.batch(range(35))["image"]
    assert torch.equal(many[16:19], ds.batch([16, 17, 18])["image"]) and torch.equal(many[34], ds[34]["image"])


def test_threads_do_not_matter(ds, dozen):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if before > 1 else 2)
        assert torch.equal(ds.batch(range(12))["image"], dozen)
    finally:
        torch.set_num_threads(before)


def test_item_and_loader(ds, dozen):
    item = ds[4]
    assert (
        item["image"].shape == (3, 64, 64)
        and item["image"].dtype == torch.float32
        and item["labels"].shape == (6,)
        and item["labels"].dtype == torch.long
        and item["index"] == 4
    )
    batch = next(iter(torch.utils.data.DataLoader(ds, batch_size=12)))
    assert torch.equal(batch["image"], dozen) and batch["index"].tolist() == list(range(12))


def test_numbers_are_uniform_and_unlike_their_neighbours():
    u = uniforms(3, torch.arange(20_000), 6)
    assert (
        (u >= 0).all()
        and (u < 1).all()
        and (u.mean(0) - 0.5).abs().max() < 0.01
        and (u.var(0) * 12 - 1).abs().max() < 0.03
    )
    both = torch.corrcoef(
        torch.cat(
            [u[:-1], u[1:], uniforms(4, torch.arange(19_999), 6), uniforms(3, torch.arange(19_999), 6, stream=1)], 1
        ).T
    )
    assert (both - torch.eye(24)).abs().max() < 0.035


def test_seeds_of_any_size():
    for seed in (-1, 2**63, 2**80):
        assert SynthFaces(n=2, size=32, seed=seed)[0]["image"].isfinite().all()


# ---- sizes and devices
@pytest.mark.parametrize("size", [32, 33, 64, 100, 128, 256])
def test_sizes(ds, size):
    im = render_faces(ds.factors([2, 9]), size)
    assert im.shape == (2, 3, size, size) and im.isfinite().all() and im.min() >= -1 and im.max() <= 1
    assert torch.equal(render_faces(ds.factors(9), size)[0], im[1])


def test_a_size_is_the_same_face_finer(ds, dozen):
    coarse = torch.nn.functional.avg_pool2d(render_faces(ds.factors(range(12)), 256), 4)
    assert ((coarse - dozen) ** 2).mean().sqrt() < 0.12
    assert ((coarse - dozen.roll(1, 0)) ** 2).mean().sqrt() > 0.3


def test_supersampling_is_an_average(ds):
    f = ds.factors([1, 2])
    error = (render_faces(f, 32, supersample=2) - torch.nn.functional.avg_pool2d(render_faces(f, 64), 2)).abs()
    assert (
        error.median() < 1e-6 and error.max() < 0.1
    )  # they differ only where highlights are cut off at white, before or after


def test_no_tensor_of_the_cpu_hides_in_the_renderer(ds):  # on "meta" any mixture of devices raises
    f = ds.factors(range(3))
    assert render_faces(f, 64, device="meta").shape == (3, 3, 64, 64)
    assert render_masks(f, 64, device="meta").shape == (3, 19, 64, 64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_faces(ds, dozen):
    im = SynthFaces(n=2000, seed=11, device="cuda").batch(range(12))["image"]
    assert im.is_cuda and (im.cpu() - dozen).abs().max() < 1e-3


# ---- labels
def test_balanced_and_independent():
    lab = SynthFaces(n=20_000, seed=5).labels
    for j, tag in enumerate(CELEBA_TAGS):
        share = torch.bincount(lab[:, j], minlength=len(tag)) / len(lab)
        assert (share - 1 / len(tag)).abs().max() < 0.015, tag.name
    assert (torch.corrcoef(lab.float().T) - torch.eye(6)).abs().max() < 0.03


def test_correlated_like_celeba():
    lab = SynthFaces(n=40_000, seed=5, correlated=True).labels
    col = {n: lab[:, i] for i, n in enumerate(CELEBA_TAGS.names)}
    for tag, share in {"Male": 0.417, "Young": 0.774, "Smiling": 0.482, "Eyeglasses": 0.065, "Bangs": 0.152}.items():
        assert abs(col[tag].float().mean() - share) < 0.02, tag
    men = col["Male"] == 1
    assert (col["HairColor"][~men] == 1).float().mean() > 5 * (col["HairColor"][men] == 1).float().mean()
    old = col["Young"] == 0
    assert (col["Eyeglasses"][old] == 1).float().mean() > 2 * (col["Eyeglasses"][~old] == 1).float().mean()


def test_labels_without_rendering_are_those_of_the_items(ds):
    assert ds.labels.shape == (2000, 6)
    for i in (0, 77, 1999):
        assert torch.equal(ds.labels[i], ds[i]["labels"])


def test_some_tags_in_another_order(ds, dozen):
    some = SynthFaces(n=2000, seed=11, tags=TagSet([CELEBA_TAGS["Male"], CELEBA_TAGS["Smiling"]]))
    assert torch.equal(some.labels, ds.labels[:, [5, 0]]) and torch.equal(some.batch(range(12))["image"], dozen)
    assert torch.equal(some.counterfactual(3, "Male", "with"), ds.counterfactual(3, "Male", "with"))
    with pytest.raises(ValueError, match="Bangs"):
        some.counterfactual(0, "Bangs", "with")


# ---- counterfactuals
REACH = {
    "Smiling": 0.2,
    "Eyeglasses": 0.2,
    "Bangs": 0.25,
    "HairColor": 0.5,
    "Young": 0.55,
    "Male": 0.6,
}  # largest share of pixels a tag may change


@pytest.mark.parametrize("tag,value", CELEBA_TAGS.pairs)
def test_each_value_shows_and_touches_only_its_region(ds, dozen, tag, value):
    truth = ds.counterfactual(range(12), tag, value)
    changed = (truth != dozen).any(1).float().mean((1, 2))  # (12,)
    had = ds.labels[:12, CELEBA_TAGS.index(tag)] == CELEBA_TAGS[tag].index(value)
    assert (changed[had] == 0).all()
    assert (changed[~had] > 0.05).all() and (changed[~had] < REACH[tag]).all()
    assert (truth - dozen).abs().amax((1, 2, 3))[~had].min() > 0.2


def inner(mask, by=1):
    "A mask (B,H,W) without its outermost pixels, where parts blend."
    return -torch.nn.functional.max_pool2d(-mask[:, None].float(), 2 * by + 1, 1, by)[:, 0] > 0.5


def test_the_background_is_never_touched(ds, dozen):
    bare = inner(render_masks(ds.factors(range(12)))[:, 0])
    for tag in ("Smiling", "Eyeglasses", "Bangs"):
        for value in ("without", "with"):
            assert not ((ds.counterfactual(range(12), tag, value) != dozen).any(1) & bare).any()


def test_smile_leaves_the_hair_and_glasses_leave_the_mouth(ds, dozen):
    m = render_masks(ds.factors(range(12)))
    mouth = m[:, CLASSES.index("mouth")] | m[:, CLASSES.index("u_lip")] | m[:, CLASSES.index("l_lip")]
    for value in ("without", "with"):
        assert not (
            (ds.counterfactual(range(12), "Smiling", value) != dozen).any(1) & inner(m[:, CLASSES.index("hair")], 3)
        ).any()
        assert not ((ds.counterfactual(range(12), "Eyeglasses", value) != dozen).any(1) & mouth).any()


def test_there_and_back(ds):
    f = ds.edited(5, "Smiling", "with")
    f.labels[:, 0] = ds.labels[5, 0]
    assert torch.equal(render_faces(f)[0], ds[5]["image"])


def test_style_from_takes_that_style_and_nothing_else(ds):
    a = ds.counterfactual([1, 2], "Eyeglasses", "with", style_from=[8, 9])
    own = ds.counterfactual([1, 2], "Eyeglasses", "with")
    assert not torch.equal(a, own)
    assert torch.equal(ds.counterfactual(2, "Eyeglasses", "with", style_from=9), a[1])
    assert torch.equal(ds.counterfactual([1, 2], "Eyeglasses", "with", style_from=[1, 2]), own)
    f = ds.edited([1, 2], "Eyeglasses", "with", style_from=8)
    assert torch.equal(f.style["Eyeglasses"], ds.style([8, 8], "Eyeglasses")) and torch.equal(
        f.style["Male"], ds.style([1, 2], "Male")
    )
    assert torch.equal(
        ds.counterfactual([1, 2], "Eyeglasses", "without", style_from=8),
        ds.counterfactual([1, 2], "Eyeglasses", "without"),
    )


def test_size_of_counterfactuals(ds):
    assert ds.counterfactual(1, "Bangs", "with", size=96).shape == (3, 96, 96)
    assert ds.counterfactual([1], "Bangs", "with", size=96).shape == (1, 3, 96, 96)


# ---- styles
SIDE = {
    ("Young", "wrinkles"): "without",
    ("Young", "greying"): "without",
    ("Male", "lashes"): "without",
    ("Male", "lip_colour"): "without",
    ("Male", "hair_length"): "without",
}
DIALS = [(t, n) for t in STYLES for n in STYLES[t]]


@pytest.mark.parametrize("tag,name", DIALS)
def test_each_style_shows_where_its_value_does(ds, tag, name):
    for value in CELEBA_TAGS[tag].values:
        shows = tag == "HairColor" or value == SIDE.get((tag, name), "with")
        f = ds.edited(range(4), tag, value)
        g = ds.edited(range(4), tag, value)
        f.style[tag][:, STYLES[tag].index(name)], g.style[tag][:, STYLES[tag].index(name)] = 0.0, 1.0
        moved = (render_faces(f) - render_faces(g)).abs().amax((1, 2, 3))
        assert (moved > 0.05).all() if shows else (moved == 0).all()


def test_at_least_two_styles_for_each_value_that_adds_something(ds):
    for tag in CELEBA_TAGS:
        assert ds.style(0, tag.name).shape == (1, len(ds.style_names[tag.name]))
        for value in ["with"] if tag.name in ("Smiling", "Eyeglasses", "Bangs") else tag.values:
            assert (
                sum(tag.name == "HairColor" or SIDE.get((tag.name, n), "with") == value for n in STYLES[tag.name]) >= 2
            )


@pytest.mark.parametrize("group", ["identity", "nuisance"])
def test_every_other_factor_shows(ds, group):
    for j, name in enumerate(IDENTITY if group == "identity" else NUISANCE):
        f, g = ds.factors(range(6)), ds.factors(range(6))
        for h in (f, g):
            h.labels[:, CELEBA_TAGS.index("Young")] = 0
            h.labels[:, CELEBA_TAGS.index("Bangs")] = 0
        getattr(f, group)[:, j], getattr(g, group)[:, j] = 0.0, 1.0
        assert (render_faces(f) != render_faces(g)).any(), name


# ---- people
def test_faces_of_one_person():
    ds = SynthFaces(n=40, seed=3, faces_per_person=4)
    assert ds.identity(7) == 1 and ds.identity([0, 3, 4, 39]).tolist() == [0, 0, 1, 9]
    f = ds.factors(range(8))
    assert (
        (f.identity[:4] == f.identity[0]).all()
        and (f.identity[4:] == f.identity[4]).all()
        and not (f.identity[0] == f.identity[4]).any()
    )
    assert len(f.nuisance.unique(dim=0)) == 8 and len(f.labels[:4].unique(dim=0)) > 1
    assert SynthFaces(n=3).identity([0, 1, 2]).tolist() == [0, 1, 2]


# ---- masks
def test_one_class_at_each_pixel(ds):
    m = ds.masks(range(12))
    assert m.shape == (12, 19, 64, 64) and m.dtype == torch.bool and (m.sum(1) == 1).all() and len(CLASSES) == 19
    for name in ("background", "skin", "nose", "l_eye", "r_eye", "u_lip", "l_lip", "hair", "neck", "cloth"):
        assert m[:, CLASSES.index(name)].flatten(1).any(1).all(), name
    for name in ("hat", "ear_r", "neck_l"):
        assert not m[:, CLASSES.index(name)].any()
    assert ds.masks(3, size=128).shape == (19, 128, 128)


def test_masks_follow_the_tags(ds):
    mask = lambda tag, value, name: (
        render_masks(ds.edited(range(12), tag, value))[:, CLASSES.index(name)].flatten(1).sum(1)
    )
    assert (mask("Eyeglasses", "with", "eye_g") > 60).all() and (mask("Eyeglasses", "without", "eye_g") == 0).all()
    assert (mask("Smiling", "with", "mouth") > 8).all() and (mask("Smiling", "without", "mouth") == 0).all()
    assert (mask("Bangs", "with", "hair") > mask("Bangs", "without", "hair")).all()


def test_masks_lie_where_the_parts_are(ds):
    m, x = ds.masks(range(12)), torch.arange(64.0)
    middle = lambda name, axis: (
        (m[:, CLASSES.index(name)].float().sum(axis) * x).sum(1) / m[:, CLASSES.index(name)].float().sum((1, 2))
    )
    assert (
        (middle("l_eye", 1) + 8 < middle("r_eye", 1)).all()
        and (middle("l_eye", 2) < middle("nose", 2)).all()
        and (middle("nose", 2) < middle("u_lip", 2)).all()
    )


# ---- faults
@pytest.mark.parametrize(
    "wrong,message",
    [
        (lambda d: d.counterfactual(0, "Smile", "with"), "Smiling"),
        (lambda d: d.counterfactual(0, "HairColor", "blonde"), "blond"),
        (lambda d: d.style(0, "Glasses"), "Eyeglasses"),
        (lambda d: SynthFaces(size=16), "32 to 256"),
        (lambda d: SynthFaces(size=64.0), "32 to 256"),
        (lambda d: d.counterfactual(0, "Bangs", "with", size=1000), "32 to 256"),
        (lambda d: d.masks(0, size=0), "32 to 256"),
        (lambda d: SynthFaces(n=0), "at least 1"),
        (lambda d: SynthFaces(faces_per_person=0), "at least 1"),
        (lambda d: d.counterfactual([0, 1, 2], "Bangs", "with", style_from=[3, 4]), "one for each"),
    ],
)
def test_faults_in_one_line(ds, wrong, message):
    with pytest.raises(ValueError, match=message) as e:
        wrong(ds)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("index", [2000, -1, [0, 2000], [], 1.5, [True, False]])
def test_faces_that_are_not_there(ds, index):
    with pytest.raises(IndexError, match="0 to 1999") as e:
        ds.batch(index)
    assert "\n" not in str(e.value)


def test_a_loop_over_the_set_ends():
    assert len([item for item in SynthFaces(n=3, size=32)]) == 3


def test_labels_from_numbers():
    assert draw_labels(torch.zeros(1, 6)).tolist() == [[0] * 6] and draw_labels(torch.full((1, 6), 0.999)).tolist() == [
        [1, 1, 1, 2, 1, 1]
    ]
    assert len(draw_factors(0, [1, 2, 3])[1:]) == 2
