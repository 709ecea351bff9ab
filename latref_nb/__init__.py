__version__ = "0.1.0"

from functools import lru_cache
from importlib import import_module

_PUBLIC = {"LatRefPipeline": "pipeline", "LatRefOutput": "pipeline", "Edit": "pipeline", "StyleCode": "styles", "SynthFaces": "faces",
           "Tag": "tags", "TagSet": "tags", "load_image": "core", "save_image": "core", "record_attention": "attention", "evaluate": "metrics"}


def __getattr__(name):
    "What scripts begin with, imported when it is first asked for: `from latref_nb import LatRefPipeline, Edit`."
    if name not in _PUBLIC: raise AttributeError(f"module {__name__!r} has no attribute {name!r}. Names at hand here: {', '.join(sorted(_PUBLIC))}.")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__(): return sorted({*globals(), *_PUBLIC})


@lru_cache(maxsize=1)
def repair_torchvision():
    "Let torchvision import beside a CPU-only torch that lacks its compiled operators; does nothing where it imports by itself. What it returns must stay alive."
    import sys, torch
    try: import torchvision
    except ImportError: return None
    except RuntimeError as e:
        if "torchvision::nms" not in str(e): raise
    else: return None
    for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]: del sys.modules[name]
    lib = torch.library.Library("torchvision", "DEF")
    for op in ("nms", "qnms"): lib.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision
    return lib
