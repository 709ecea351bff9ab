"Memory while a folder of files is edited: it must not grow with their number."

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import Row

CHILD = """
import gc, json, sys, psutil, torch
from pathlib import Path
from latref_nb.autoencoder import DiffusionAutoencoder
from latref_nb.tags import CELEBA_TAGS
from latref_nb.core import save_image
from latref_nb.faces import SynthFaces
from latref_nb.pipeline import edit_files, fit_pipeline
n, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.manual_seed(0)
ds = SynthFaces(n=64, size=32, seed=0)
net = DiffusionAutoencoder(image_size=32, patch_size=4, model_channels=32, channel_mult=(1,), enc_channels=32, enc_channel_mult=(1, 1, 1, 1), attention_resolutions=(), num_res_blocks=1, z_dim=16, prediction_type="v_prediction").eval()
batch = ds.batch(range(64))
for i in range(64): save_image(batch["image"][i], folder / f"{i:02d}.png")
with torch.no_grad(): z = net.encode(batch["image"])
how = dict(steps=20)
pipe = fit_pipeline(net, z, batch["labels"], CELEBA_TAGS, torch.Generator().manual_seed(0), linear=how, mlp=how)
pipe.set_progress_bar_config(disable=True)
files, process, seen = (folder / f"{i % 64:02d}.png" for i in range(n)), psutil.Process(), []
edit_files(pipe, files, "Smiling=with", folder / "out", num_inference_steps=1, report=lambda row: seen.append(process.memory_info().rss / 2**20))
print(json.dumps(seen))
"""


def run(rounds, n=1000):
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-c", CHILD, str(n), folder], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the editing process failed:\n{done.stderr[-2000:]}")
    seen = json.loads(done.stdout.splitlines()[-1])
    early, late = max(seen[n // 10 : n // 5]), max(seen[-n // 10 :])
    return [
        Row(
            f"memory over files {n - n // 10}–{n} beside files {n // 10}–{n // 5}, editing {n} files",
            late,
            early,
            "MiB",
            late / early,
            "≤ 1.02",
            late / early <= 1.02,
        )
    ]
