"An edit of one photograph at 256 pixels beside the published loop, precision, memory by batch, and on a GPU pictures a second: the published shape, random weights."

import subprocess
import sys
from statistics import median

import torch
from common import Row, ratio, side_by_side
from styles import PUBLISHED, equal_steps

from latref_nb.autoencoder import from_preset
from latref_nb.core import default_device, has_bf16, make_generator
from latref_nb.faces import SynthFaces
from latref_nb.pipeline import LatRefPipeline

PRESET, FACES, ENCODED = "ffhq256_autoenc", 16, 3  # faces of the equal error; encodings that the published loop makes in each step: source twice, reference once
BATCHES, CARD = (1, 8), 24  # faces at once whose memory is measured; GiB of a card
CHILD = """
import sys, psutil, torch
from latref_nb.autoencoder import from_preset
preset, n = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(int(sys.argv[3]))
model = from_preset(preset).eval()
with torch.no_grad():
    x = torch.zeros(max(n, 1), 3, model.config.image_size, model.config.image_size)
    if n: model.denoise(x, torch.zeros(n), torch.zeros(n, model.config.z_dim))
now = psutil.Process().memory_info()
status = open("/proc/self/status").read() if sys.platform == "linux" else ""  # ru_maxrss would be that of the parent
peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024 if status else getattr(now, "peak_wset", now.rss)
print(peak / 2**30)
"""


def wait(device):
    "Let a GPU finish, so that a clock sees its work."
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def made(preset, device):
    "The model with random weights, and a function of a batch: one call of its network."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = from_preset(preset).eval().to(device)
    side, g = model.config.image_size, make_generator(0)

    def inputs(n):
        return torch.randn(n, 3, side, side, generator=g).to(device), torch.randn(n, model.config.z_dim, generator=g)

    return model, inputs


def edit_row(model, inputs, preset, rounds, device, faces):
    "One step of our loop and one of the published loop side by side, times the steps that give equal error."
    shipped = LatRefPipeline.from_pretrained("synthfaces64").autoencoder
    n, k, ours, theirs = equal_steps(shipped, SynthFaces(faces, 64, seed=5).batch(range(faces))["image"])
    x, z = inputs(1)
    z, t = z.to(device), torch.full((1,), 500, device=device)

    @torch.no_grad()
    def step():
        model.denoise(x, t, z).sum().item()

    @torch.no_grad()
    def published():
        for _ in range(ENCODED):
            model.encode(x)
        model.denoise(x, t, z).sum().item()

    seconds = side_by_side({"ours": step, "published": published}, rounds)
    calls = n * (1 + k)
    a, b = calls * median(seconds["ours"]), 2 * PUBLISHED * median(seconds["published"])
    r = ratio(seconds, "ours", "published") * calls / (2 * PUBLISHED)
    note = f"{1 / r:.1f}×; {calls} network calls against {2 * PUBLISHED}, squared error {ours:.1e} against {theirs:.1e}"
    what = f"an edit of one photograph, {preset} on {device}, beside the published loop at equal error"
    return Row(what, a, b, "s", r, "≤ 1/6", r <= 1 / 6, note)


def precision_row(model, inputs, preset, rounds, device):
    "A network call in bfloat16 beside float32, where there are instructions for it."
    x, z = inputs(1)
    z, t = z.to(device), torch.full((1,), 500, device=device)

    def call(word):
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=word == "bf16"):
            model.denoise(x, t, z).sum().item()

    seconds = side_by_side({word: lambda word=word: call(word) for word in ("bf16", "no")}, rounds)
    a, b = (1000 * median(seconds[word]) for word in ("bf16", "no"))
    return Row(f"a network call of {preset}: bfloat16 beside float32", a, b, "ms", ratio(seconds, "bf16", "no"))


def memory_rows(preset, device):
    "Most memory while faces are drawn, by batch; from two batches follows how many fit on a card."
    if device.type == "cuda":
        model, inputs = made(preset, device)

        def peak(n):
            torch.cuda.reset_peak_memory_stats(device)
            x, z = inputs(n)
            with torch.no_grad():
                model.denoise(x, torch.zeros(n, device=device), z.to(device))
            return torch.cuda.max_memory_allocated(device) / 2**30

    else:

        def peak(n):
            argv = [sys.executable, "-c", CHILD, preset, str(n), str(torch.get_num_threads())]
            return float(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)

    few, many = (peak(n) for n in BATCHES)
    face = max((many - few) / (BATCHES[1] - BATCHES[0]), 1e-6)
    rows = [Row(f"memory of {preset}, batch {n}", gib, None, "GiB", None) for n, gib in zip(BATCHES, (few, many))]
    fit = int((0.9 * CARD - (few - face)) / face)
    return [*rows, Row(f"largest batch in {CARD} GiB, float32, a tenth left free", fit, None, "faces", None)]


def gpu_rows(model, inputs, preset, rounds, device):
    "Pictures a second by batch size, and what compiling and another order in memory change."
    ways = {"as it is": model, "channels last": model.to(memory_format=torch.channels_last)}
    ways["torch.compile"] = torch.compile(model)
    rows = []
    for name, net in ways.items():
        for n in (1, 4, 16, 64):
            x, z = inputs(n)
            z, t = z.to(device), torch.full((n,), 500, device=device)

            @torch.no_grad()
            def call():
                with torch.autocast(device.type, torch.bfloat16):
                    net(x, t, z)
                wait(device)

            seconds = side_by_side({"call": call}, rounds)["call"]
            rows.append(Row(f"{preset} on {device}, {name}, batch {n}", n / median(seconds), None, "faces/s", None))
    return rows


def run(rounds, preset=PRESET, faces=FACES):
    device = default_device()
    rounds = rounds if device.type == "cuda" else min(rounds, 3)  # a call takes seconds on a processor
    model, inputs = made(preset, device)
    rows = [edit_row(model, inputs, preset, rounds, device, faces)]
    if has_bf16(device):
        rows.append(precision_row(model, inputs, preset, rounds, device))
    rows += memory_rows(preset, device)
    return rows + (gpu_rows(model, inputs, preset, rounds, device) if device.type == "cuda" else [])
