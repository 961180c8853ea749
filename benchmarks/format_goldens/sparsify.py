"""Goldens of sparsify: folders that the original wrote, and what it computes from them.

    pip install torch==2.13.0 eai-sparsify==1.3.3
    python benchmarks/format_goldens/sparsify.py

Writes tests/goldens/formats/sparsify/<architecture>/: `cfg.json`, `sae.safetensors` and
`outputs.safetensors`.
"""

import torch
from _original import (
    GOLDENS,
    INPUT_DIM,
    LATENT_DIM,
    K,
    draw_inputs,
    original,
    randomize,
    write_outputs,
)

SparseCoderConfig = original("sparsify.config").SparseCoderConfig
SparseCoder = original("sparsify.sparse_coder").SparseCoder

ARCHITECTURES = {
    "topk": {},
    "multi_topk": {"multi_topk": True, "k": 2},  # it takes the 4 k largest too
    "skip": {"skip_connection": True},
    "transcoder": {"transcode": True},
    "skip_transcoder": {"transcode": True, "skip_connection": True},
    "bfloat16": {},  # as stored; the forward pass is in float32
}


def main() -> None:
    """Write every golden."""
    for seed, (name, choices) in enumerate(ARCHITECTURES.items()):
        config = SparseCoderConfig(num_latents=LATENT_DIM, **{"k": K, **choices})
        dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
        sae = SparseCoder(INPUT_DIM, config, dtype=dtype)
        randomize(sae, seed)
        folder = GOLDENS / "sparsify" / name
        sae.save_to_disk(folder)
        sae = SparseCoder.load_from_disk(folder).float()
        sae.cfg.multi_topk = False  # with it, forward returns a term of training
        x = draw_inputs(seed)
        with torch.no_grad():
            top_acts, top_indices, _ = sae.encode(x)
            z = torch.zeros(len(x), LATENT_DIM).scatter_(1, top_indices, top_acts)
            write_outputs(folder, x, z, sae(x).sae_out)


if __name__ == "__main__":
    main()
