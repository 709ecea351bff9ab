"What tests of photographs share: rendered faces of known landmarks, pasted into a photograph."

from functools import cache

import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image

from latref_nb.alignment import Aligned, seam, unwarp
from latref_nb.core import to_pil
from latref_nb.faces import SynthFaces
from latref_nb.images import read_rgb
from latref_nb.photos import points_of_masks

HOPPER = get_sample_data("grace_hopper.jpg", asfileobj=False)  # US Navy, public domain
POINTS = np.array([(226, 195), (313, 190), (273, 241), (236, 281), (310, 278)], float)  # hers


@cache
def people():
    return SynthFaces(40, 256, seed=2033)


def bare():
    "Faces without glasses: their eyes can be seen."
    return [i for i in range(40) if not people().labels[i, 1]]


def pasted(photo, i, at, side, degrees):
    "A copy of a photograph with rendered face i in it, its middle `at`, and the face's five points there."
    turn = np.radians(degrees)
    to = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * side / 256
    matrix = np.vstack([np.column_stack([to, at - to @ [127.5, 127.5]]), [0, 0, 1]])
    place = Aligned(to_pil(people()[i]["image"]), matrix)
    l, t, r, b = place.box
    box = max(l, 0), max(t, 0), min(r, photo.width), min(b, photo.height)
    w, out = seam(place, box), photo.copy()
    new = np.asarray(photo.crop(box).convert("RGB")) * (1 - w) + unwarp(place, np.asarray(place.crop, float), box) * w
    out.paste(Image.fromarray(new.round().clip(0, 255).astype(np.uint8)), box[:2])
    return out, place.to_photo(points_of_masks(people().masks(i)))


@cache
def wall():
    "A photograph of the officer with two rendered faces beside her, and their points."
    photo, first = pasted(read_rgb(HOPPER), bare()[0], (140, 430), 230, 18)
    photo, second = pasted(photo, bare()[1], (390, 470), 150, -12)
    return photo, (first, second)


def squares(aligned, size):
    "Where the squares of crops lie in a photograph of a size (w, h): (h,w) bool."
    return sum(seam(a, (0, 0, *size))[..., 0] for a in aligned) > 0


def psnr(a, b):
    return float(10 * np.log10(255**2 / max(np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2), 1e-12)))
