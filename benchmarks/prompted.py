"What drawing by a prompt costs beside diffusers' own loop, and a step of its training with either attention."

from statistics import median

import torch
from common import Row, ratio, side_by_side
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from latref_nb.core import autocast_dtype
from latref_nb.faces import SynthFaces
from latref_nb.prompted import PromptedPipeline, PromptedTask, beside, prompted_scheduler, prompted_unet
from latref_nb.prompts import FacePrompt, PromptEncoder
from latref_nb.resuming import StepGenerator

FACES, STEPS, BATCH = 4, 5, 16


def drawing(rounds):
    "The pipeline's call beside the same calls of network and scheduler written out."
    pipe = PromptedPipeline(prompted_unet(), PromptEncoder(), prompted_scheduler())
    pipe.set_progress_bar_config(disable=True)
    prompt = FacePrompt.of_faces(SynthFaces(FACES, 64, seed=0), range(FACES))
    noise = torch.randn(FACES, 48, 16, 16)

    def ours():
        return pipe(prompt, latents=noise, num_inference_steps=STEPS, guidance_scale=1.0, output_type="latent")

    @torch.no_grad()
    def bare():
        x, tokens = noise, pipe.prompt_encoder(prompt)
        pipe.scheduler.set_timesteps(STEPS)
        for t in pipe.scheduler.timesteps:
            said = pipe.unet(beside(x, prompt), t, encoder_hidden_states=tokens).sample
            x = pipe.scheduler.step(said, t, x).prev_sample

    t = side_by_side({"ours": ours, "bare": bare}, rounds)
    r, ms = ratio(t, "ours", "bare"), {k: 1000 * median(v) for k, v in t.items()}
    what = f"{FACES} faces from a prompt in {STEPS} steps beside diffusers' own loop"
    return Row(what, ms["ours"], ms["bare"], "ms", r, "≤ 1.15", r <= 1.15)


def training(rounds):
    "A step with the attention that the task sets beside the one that diffusers sets."
    faces = SynthFaces(BATCH, 64, seed=0)
    said = FacePrompt.of_faces(faces, range(BATCH))
    batch = {"image": faces.batch(range(BATCH))["image"], "labels": said.labels, "cover": said.cover}
    dtype = autocast_dtype("auto", "cpu")

    def step_with(processor):
        task = PromptedTask(prompted_unet(), PromptEncoder())
        task.modules["unet"].set_attn_processor(processor)

        def step():
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                loss = task.loss(batch, StepGenerator(0, 0, BATCH))["loss"]
            loss.backward()

        return step

    t = side_by_side({"ours": step_with(AttnProcessor()), "fused": step_with(AttnProcessor2_0())}, rounds)
    r, ms = ratio(t, "ours", "fused"), {k: 1000 * median(v) for k, v in t.items()}
    what = f"training step of {BATCH} with attention written out beside the fused one"
    return Row(what, ms["ours"], ms["fused"], "ms", r, "≤ 1", r <= 1)


def run(rounds):
    return [drawing(rounds), training(rounds)]
