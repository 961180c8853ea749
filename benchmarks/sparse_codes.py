"""The gradient by codes against dense autodiff, for topk.

    .venv/bin/python benchmarks/sparse_codes.py [--latents 16384 65536] [--k 32]

Timed are, in turns, so that a busy moment of the machine strikes all:

floor: the encoder's product and top-k, which no method can leave out.
codes: loss and gradient by hand, by codes (`manual.value_and_grad`).
dense: loss and gradient by `jax.value_and_grad`.
step by codes, step by dense: a whole training step with Adam, in a loop of steps.

Reported are medians of the ratios within a round. Writes
benchmarks/results/sparse_codes_<device>.json.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp

import jaxae
from jaxae import manual
from jaxae.training import init_state
from jaxae.training.train_step import init_means, run_steps

RESULTS = Path(__file__).parent / "results"
KEY = jax.random.key(0)
HPARAMS = {"learning_rate": jnp.float32(1e-3)}


def programs(objective, params, batch, steps_at_once):
    """What is timed, by name: functions without arguments."""
    k = objective.ae.activation.max_active

    @jax.jit
    def floor(params, batch):
        return jax.lax.top_k(batch @ params.W_enc.T + params.b_enc[None], k)

    by_hand = manual.value_and_grad(objective)
    codes = jax.jit(lambda params, batch: by_hand(params, batch, None, HPARAMS))
    value_and_grad = jax.value_and_grad(objective, has_aux=True)
    dense = jax.jit(lambda params, batch: value_and_grad(params, batch, None, HPARAMS))
    gradients = {"floor": floor, "codes": codes, "dense": dense}
    timed = {
        name: lambda function=function: function(params, batch)
        for name, function in gradients.items()
    }
    for name, gradient in {"codes": "manual", "dense": "autodiff"}.items():
        timed[f"step by {name}"] = steps(
            objective, params, batch, gradient, steps_at_once
        )
    return timed


def steps(objective, params, batch, gradient, num_steps):
    """A function that trains for some steps on one batch, from where it last ended."""
    config = jaxae.TrainConfig(gradient=gradient)
    settings = {"objective": objective, "config": config}
    # A copy, because the state is donated.
    params = jax.tree.map(jnp.copy, params)
    state = init_state(objective, HPARAMS, KEY, config=config, params=params)
    means = init_means(state, batch, HPARAMS, objective=objective)

    @jax.jit(donate_argnums=0)
    def train(state, means):
        return run_steps(
            state, means, lambda i: batch, HPARAMS, 0, num_steps, **settings
        )

    carried = [state]

    def run():
        carried[0], result = train(carried[0], means)
        return result

    return run


def measure(timed, num_rounds):
    """The seconds of each program in each round."""
    for run in timed.values():
        jax.block_until_ready(run())
    seconds = {name: [] for name in timed}
    for _ in range(num_rounds):
        for name, run in timed.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds, name, to):
    """The median, the least and the largest ratio within a round."""
    ratios = [a / b for a, b in zip(seconds[name], seconds[to], strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def main():
    """Time each size and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=768)
    parser.add_argument("--latents", type=int, nargs="+", default=[16384, 65536])
    parser.add_argument("--k", type=int, nargs="+", default=[32])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="in one call")
    parser.add_argument("--out", help="the results file")
    options = parser.parse_args()
    rows = []
    for H in options.latents:
        for k in options.k:
            ae = jaxae.Autoencoder(
                input_dim=options.inputs,
                latent_dim=H,
                activation=jaxae.activations.topk(k),
                observation="gaussian",
                tied=False,
            )
            batch = jax.random.normal(KEY, (options.batch, options.inputs))
            objective = jaxae.Objective(ae)
            timed = programs(objective, ae.init(KEY), batch, options.steps)
            seconds = measure(timed, options.rounds)
            pairs = {
                "dense / codes": ("dense", "codes"),
                "codes / floor": ("codes", "floor"),
                "step by dense / step by codes": ("step by dense", "step by codes"),
            }
            ratios = {name: ratio(seconds, *pair) for name, pair in pairs.items()}
            medians = {name: statistics.median(s) for name, s in seconds.items()}
            rows.append({"H": H, "k": k, "ratios": ratios, "seconds": medians})
            shown = ", ".join(f"{n} {r[0]:.2f}" for n, r in ratios.items())
            print(f"H {H}, k {k}: {shown}; floor {medians['floor']:.3f} s", flush=True)
    device = jax.devices()[0]
    result = {
        "date": datetime.date.today().isoformat(),
        "device": device.device_kind,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "jax": jax.__version__,
        "inputs": options.inputs,
        "batch": options.batch,
        "rounds": options.rounds,
        "rows": rows,
    }
    path = options.out or RESULTS / f"sparse_codes_{device.platform}.json"
    Path(path).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
