"""Goldens of dictionary_learning: its state dicts, and what it computes from them.

    pip install torch==2.13.0 einops
    pip install --no-deps dictionary-learning==0.1.0
    python benchmarks/format_goldens/dictionary_learning.py

Writes tests/goldens/formats/dictionary_learning/<architecture>/: `ae.pt`, the same
values as `state.npz` and `state.json` for the tests, which have no torch, `config.json`
and `outputs.safetensors`. `backup` has the layout that newer versions write during
training: https://github.com/saprmarks/dictionary_learning, commit 60ec6bf, training.py.
"""

import json

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

dictionary = original("dictionary_learning.dictionary")
trainers = "dictionary_learning.trainers"
AutoEncoderTopK = original(f"{trainers}.top_k").AutoEncoderTopK
BatchTopKSAE = original(f"{trainers}.batch_top_k").BatchTopKSAE
matryoshka = original(f"{trainers}.matryoshka_batch_top_k").MatryoshkaBatchTopKSAE

GROUP_SIZES = [2, 3, 5]
NORM_FACTOR = 2.5  # of the backup
ARCHITECTURES = {
    "AutoEncoder": (dictionary.AutoEncoder,),
    "AutoEncoderNew": (dictionary.AutoEncoderNew,),
    "GatedAutoEncoder": (dictionary.GatedAutoEncoder,),
    "JumpReluAutoEncoder": (dictionary.JumpReluAutoEncoder,),
    "AutoEncoderTopK": (AutoEncoderTopK, K),
    "BatchTopKSAE": (BatchTopKSAE, K),
    "BatchTopKSAE_unset": (BatchTopKSAE, K),
    "MatryoshkaBatchTopKSAE": (matryoshka, K, GROUP_SIZES),
    "backup": (BatchTopKSAE, K),
}
THRESHOLDS = {  # -1, "unset", where none is given
    "AutoEncoderTopK": 0.4,
    "BatchTopKSAE": 0.3,
    "MatryoshkaBatchTopKSAE": 0.5,
    "backup": 0.3,
}


def make(name: str, seed: int):
    """A model of the original with random parameters."""
    cls, *sizes = ARCHITECTURES[name]
    ae = cls(INPUT_DIM, LATENT_DIM, *sizes)
    randomize(ae, seed)
    if cls is dictionary.JumpReluAutoEncoder:
        ae.threshold.data.abs_()
    if name in THRESHOLDS:
        ae.threshold.fill_(THRESHOLDS[name])
    return ae


def trainer_config(ae) -> dict:
    """The part of a trainer's configuration that concerns the model, and some more."""
    config = {"dict_class": type(ae).__name__, "lr": 1e-3, "layer": 8}
    config |= {"activation_dim": INPUT_DIM, "dict_size": LATENT_DIM}
    if hasattr(ae, "k"):
        config["k"] = ae.k.item()
    return config


def main() -> None:
    """Write every golden."""
    for seed, name in enumerate(ARCHITECTURES):
        ae = make(name, seed)
        folder = GOLDENS / "dictionary_learning" / name
        config = trainer_config(ae)
        state = {key: value.clone() for key, value in ae.state_dict().items()}
        if name == "backup":
            optimizer = torch.optim.Adam(ae.parameters(), lr=config["lr"]).state_dict()
            state = {"step": 7, "ae": state, "optimizer": optimizer, "config": config}
            state["norm_factor"] = NORM_FACTOR
            ae.scale_biases(NORM_FACTOR)  # as the original does before its final save
        write_state(folder, "ae.pt", state)
        (folder / "config.json").write_text(json.dumps({"trainer": config}, indent=1))
        x = draw_inputs(seed)
        with torch.no_grad():
            z = ae.encode(x)
            write_outputs(folder, x, z, ae.decode(z))


if __name__ == "__main__":
    main()
