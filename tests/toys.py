"The toy denoiser of the published numbers, in diffusers' own attention modules, and a base around it."

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from latref_nb.bases import AttentionLayer, Base
from latref_nb.official import fill_by_rule
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import Attention

FIXTURES = Path(__file__).parent / "fixtures"
PARTS = {"down": "down_blocks.0", "mid": "mid_block", "up": "up_blocks.0"}


def published(name):
    "The record and the tensors of one set of published numbers: stylediffusion, null_text_direct."
    record = json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))
    return record, load_file(FIXTURES / f"{name}.safetensors")


def off(ours, theirs):
    "‖ours − theirs‖ / ‖theirs‖: 1e-4 is allowed for one pass, 1e-3 for a loop."
    return float((ours - theirs).norm() / theirs.norm())


class ToyBlock(nn.Module):
    "x + attention to itself, then x + attention to the tokens."

    def __init__(self, dim, ctx, heads):
        super().__init__()
        kw = dict(query_dim=dim, heads=heads, dim_head=dim // heads, bias=False, out_bias=True)
        self.norm1, self.attn1 = nn.LayerNorm(dim), Attention(**kw)
        self.norm2, self.attn2 = nn.LayerNorm(dim), Attention(cross_attention_dim=ctx, **kw)

    def forward(self, x, tokens):  # (B,HW,D), (B,N,X)
        x = x + self.attn1(self.norm1(x))
        return x + self.attn2(self.norm2(x), encoder_hidden_states=tokens)


class Toy(nn.Module):
    "A convolution, the time, three blocks of attention, a convolution; predicts ε."

    def __init__(self, channels=4, dim=16, ctx=12, heads=2):
        super().__init__()
        self.conv_in, self.conv_out = nn.Conv2d(channels, dim, 3, padding=1), nn.Conv2d(dim, channels, 3, padding=1)
        self.time = nn.Linear(8, dim)
        self.down_blocks = nn.ModuleList([ToyBlock(dim, ctx, heads)])
        self.mid_block = ToyBlock(dim, ctx, heads)
        self.up_blocks = nn.ModuleList([ToyBlock(dim, ctx, heads)])

    @property
    def dtype(self):
        return self.conv_in.weight.dtype

    def forward(self, x, t, tokens):  # (B,C,g,g), timestep, (B,N,X) → (B,C,g,g)
        angles = torch.arange(1, 5, dtype=x.dtype) * (2 * math.pi * t / 1000)
        time = self.time(torch.cat([angles.sin(), angles.cos()]))  # (8,) → (D,)
        h = self.conv_in(x) + time[:, None, None]  # (B,C,g,g) → (B,D,g,g)
        B, D, g, _ = h.shape
        h = h.flatten(2).mT  # (B,D,g,g) → (B,gg,D)
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            h = block(h, tokens)
        return self.conv_out(F.silu(h.mT.reshape(B, D, g, g)))  # (B,gg,D) → (B,C,g,g)


class ToyBase:
    "The toy behind the verbs of `latref_nb.bases.Base`; latents stand for themselves."

    def __init__(
        self,
        record,  # of `published`: the keys of the weights, the sizes, the noise schedule
    ):
        c, s = record["config"], record["scheduler"]
        self.unet = Toy(c["channels"], c["dim"], c["ctx"], c["heads"]).eval().requires_grad_(False)
        keys = {k: shape for k, shape in record["keys"].items() if k.startswith("toy.")}
        self.unet.load_state_dict({k.removeprefix("toy."): v for k, v in fill_by_rule(keys).items()})
        self.scheduler = DDIMScheduler(
            num_train_timesteps=s["train_steps"],
            beta_start=s["beta_start"],
            beta_end=s["beta_end"],
            beta_schedule=s["beta_schedule"],
            set_alpha_to_one=s["set_alpha_to_one"],
            steps_offset=s["steps_offset"],
            clip_sample=False,
        )
        self.ours, self.device = False, torch.device("cpu")
        self.layers = {
            f"unet.{part}.{kind}": AttentionLayer(f"unet.{part}.{kind}", f"{path}.attn{number}", kind)
            for part, path in PARTS.items()
            for kind, number in (("self", 1), ("cross", 2))
        }

    module, steps, level = Base.module, Base.steps, Base.level

    def predict(self, x, t, tokens):  # (B,C,g,g)
        return self.unet(x, t, tokens)

    def encode(self, images):
        return images

    def decode(self, latents):
        return latents
