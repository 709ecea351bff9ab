"A processor without instructions for bfloat16: `make test-avx2` tells torch that this is one, and runs these tests, two chapters and a training there."

import json, os, platform
import pytest, torch

TOLD = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
X86 = platform.machine().lower() in ("x86_64", "amd64")
pytestmark = pytest.mark.skipif(
    not X86 or any(os.environ.get(k) != v for k, v in TOLD.items()),
    reason="for `make test-avx2`, which has torch leave out what came after AVX2",
)


def test_torch_and_the_package_take_the_processor_for_one_with_avx2_alone():
    from latref_nb.core import has_bf16

    assert torch.backends.cpu.get_cpu_capability() == "AVX2"
    assert not has_bf16("cpu")


def test_a_training_chooses_float32_by_itself(tmp_path):
    from latref_nb.training import fit
    from training_case import HOW, Curve, Points

    fit(Curve(), Points(), tmp_path, **{**HOW, "steps": 2})
    assert json.loads((tmp_path / "training.json").read_text())["settings"]["precision"] == "no"
