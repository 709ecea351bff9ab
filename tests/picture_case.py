"Pictures, names and places that the tests of pictures and files share; every refusal is one line."

import io
import os
import resource
import socket
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from latref_nb.images import ImageError


ODD = ["plain", "ü é 中 🙂", "caf\udce9", "\\udcff \udcff", "two\nlines", 'a"b\\', "\x00\x1f\x7f", "\ud800"]  # names


def photo(w=40, h=30, seed=0):
    "Smooth random colours, so that JPEG and resizing keep them nearly."
    small = np.random.default_rng(seed).integers(30, 225, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((w, h), Image.Resampling.BICUBIC)


def as_tensor(im):
    return torch.from_numpy(np.array(im.convert("RGB"))).permute(2, 0, 1) / 127.5 - 1  # (3,H,W)


def encoded(im, fmt="PNG", **kw):
    b = io.BytesIO()
    im.save(b, fmt, **kw)
    return b.getvalue()


def refused(f, *contains, exc=ImageError):
    "`f` raises `exc` with one line that contains all of `contains`."
    with pytest.raises(exc) as e:
        f()
    said = str(e.value)
    assert "\n" not in said and len(said) < 300, said
    for c in contains:
        assert c in said, said
    return said


@contextmanager
def small_disk(limit=2000):
    "Writes beyond `limit` bytes fail, as they do on a full disk."
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def not_regular(folder):
    "Paths of what stands in a folder under a file's name and is none."
    os.mkfifo(folder / "pipe")
    for name, target in (("broken", folder / "gone"), ("device", "/dev/zero"), ("loop", "loop")):
        (folder / name).symlink_to(target)
    (folder / "folder").mkdir()
    (folder / "file").touch()
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(folder / "socket"))
    names = ("pipe", "broken", "device", "loop", "folder", "socket", "gone", "file/x", "n" * 300, "nul\0")
    return [folder / n for n in names]
