__version__ = "0.1.0"


def _repair_torchvision():
    "Let torchvision import beside a CPU-only torch that lacks its compiled operators; does nothing where it imports by itself."
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


_torchvision_library = _repair_torchvision()
