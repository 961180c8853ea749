"""Goldens of OpenAI's sparse autoencoders: state dicts, and what the original computes.

    pip install torch==2.13.0
    git clone https://github.com/openai/sparse_autoencoder ORIGINAL    # commit 4965b94
    PYTHONPATH=ORIGINAL python benchmarks/format_goldens/openai.py

Writes tests/goldens/formats/openai/<architecture>/: `autoencoder.pt`, the same values
as `state.npz` and `state.json` for the tests, which have no torch, and
`outputs.safetensors`. From a state dict whose activation is TopK the original makes a
model that normalizes its inputs; of that one, the outputs are those of the normalized
inputs, before the normalization is undone.
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
    write_state,
)

model = original("sparse_autoencoder.model")

ARCHITECTURES = {
    "relu": {},
    "identity": {"activation": torch.nn.Identity()},
    "tied": {"tied": True},
    "topk": {"activation": model.TopK(K), "normalize": True},
}


def main() -> None:
    """Write every golden."""
    for seed, (name, choices) in enumerate(ARCHITECTURES.items()):
        ae = model.Autoencoder(LATENT_DIM, INPUT_DIM, **choices)
        randomize(ae, seed)
        folder = GOLDENS / "openai" / name
        write_state(folder, "autoencoder.pt", dict(ae.state_dict()))
        if name != "tied":  # which the original writes and cannot read
            state = torch.load(folder / "autoencoder.pt")
            # Not strict: the original refuses activation.k, which it writes itself.
            ae = model.Autoencoder.from_state_dict(state, strict=False)
        x = draw_inputs(seed)
        with torch.no_grad():
            z, normalization = ae.encode(x)
            x_hat = ae.decode(z, normalization)
            if ae.normalize:
                mean, std = normalization["mu"], normalization["std"]
                x, _ = ae.preprocess(x)
                x_hat = (x_hat - mean) / std
            write_outputs(folder, x, z, x_hat)


if __name__ == "__main__":
    main()
