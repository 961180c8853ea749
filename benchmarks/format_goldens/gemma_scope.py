"""A golden of Gemma Scope: `params.npz`, and its forward pass in float64 NumPy.

    python benchmarks/format_goldens/gemma_scope.py

The weights were published without a library; the forward pass is that of the paper:
Lieberum et al., Gemma Scope, 2024, section 2. Writes
tests/goldens/formats/gemma_scope/jumprelu/: `params.npz` and `outputs.safetensors`.
"""

import numpy as np
from _original import GOLDENS, INPUT_DIM, LATENT_DIM, NUM_EXAMPLES, write_outputs


def main() -> None:
    """Write the golden."""
    rng = np.random.default_rng(2)

    def draw(*shape):
        return (rng.standard_normal(shape) / INPUT_DIM**0.5).astype(np.float32)

    params = {
        "W_enc": draw(INPUT_DIM, LATENT_DIM),
        "W_dec": draw(LATENT_DIM, INPUT_DIM),
        "b_enc": draw(LATENT_DIM),
        "b_dec": draw(INPUT_DIM),
        "threshold": np.abs(draw(LATENT_DIM)),
    }
    x = rng.standard_normal((NUM_EXAMPLES, INPUT_DIM)).astype(np.float32)
    p = {name: array.astype(np.float64) for name, array in params.items()}
    a = x.astype(np.float64) @ p["W_enc"] + p["b_enc"]
    assert np.abs(a - p["threshold"]).min() > 1e-3  # roundings decide nothing
    z = (a > p["threshold"]) * np.maximum(a, 0)
    folder = GOLDENS / "gemma_scope" / "jumprelu"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **params)
    write_outputs(folder, x, z, z @ p["W_dec"] + p["b_dec"])


if __name__ == "__main__":
    main()
