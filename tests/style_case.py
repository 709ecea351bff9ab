"A pipeline with style networks to test on: the shipped autoencoder and classifiers, and small style networks with random weights that do change a face."

import torch
from latref_nb.tags import tag_list
from latref_nb.modulation import StyleModulation
from latref_nb.pipeline import LatRefPipeline
from latref_nb.styles import LatentMapper, ReferenceExtractor

ENCODER = dict(
    image_size=64,
    patch_size=2,
    model_channels=32,
    channel_mult=(1, 2, 3, 4),
    num_res_blocks=2,
    attention_resolutions=(),
    num_heads=4,
    z_dim=128,
)


def style_pipeline(seed=0, **settings):
    "Random style networks on synthfaces64."
    base = LatRefPipeline.from_pretrained("synthfaces64")
    tags = tag_list(base.tags)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        modulation = StyleModulation(tags, 96, 32, 1, style_dim=8, token_dim=16)
        for p in modulation.post[1].parameters():
            torch.nn.init.normal_(p, std=0.05)  # fresh, it would change nothing
        for t in modulation.translators:
            torch.nn.init.normal_(t.transformer.proj_out.weight, std=0.05)
        parts = dict(
            modulation=modulation,
            extractor=ReferenceExtractor(tags, ENCODER, style_dim=8, token_dim=16, layers=1),
            mapper=LatentMapper(tags, 64, style_dim=8, token_dim=16, layers=1),
        )
    parts["known_faces"] = base.known_faces
    pipe = LatRefPipeline(base.autoencoder, base.linear, base.mlp, **parts, **{"inversion": "fixed_point"} | settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe
