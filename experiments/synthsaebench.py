"""Which sparse autoencoder finds the features of SynthSAEBench, and what helps it?

Claim: at 1/16 of the published size, for every seed and by at least 0.01 of F1,
Matryoshka BatchTopK is above BatchTopK, and that above L1 and matching pursuit.
Dropping the latents that a leave-one-out test calls superfluous raises the F1 of
Matryoshka, and so does training with a falling k together with that test.

Source: SynthSAEBench, 2026, https://arxiv.org/abs/2602.14687, and the documentation of
SAELens: the data, the protocol, the metrics and the published means. The ideas of the
frontier are those of public posts about this benchmark by Chanin and by Bussmann, 2026.
The model is Hugo Larochelle's autoencoder, Neural networks: Autoencoder, Université de
Sherbrooke, October 2012, untied and with a pre-encoder bias.

    python experiments/synthsaebench.py [--quick | --paper] [--out DIR]
        [--scale S] [--samples N] [--seeds N] [--l0 K] [--variants NAME ...]

At scale S there are 16,384 S features, 4,096 S latents and 128 S roots of trees, in 768
sqrt(S) dimensions. The number of active features falls as sqrt(S) by itself, so that
their interference, L0 / D, is that of the full size; the target is 25 sqrt(S). One
dictionary, of a seed of its own, is shared by all seeds, which determine the initial
parameters, the samples, their order, and the samples of the evaluation.

Samples are drawn once per seed, if they fit into 1 GiB, and each is used once; else in
each step. Where a run stops, the same command continues it: each variant and seed has
checkpoints and then its metrics in DIR/cells. The published size needs a GPU:

    python experiments/synthsaebench.py --paper --out runs/synthsaebench-16k
    timeout 600 python experiments/synthsaebench.py --paper --seeds 1 \
        --variants Matryoshka --out runs/synthsaebench-16k    # ten minutes of it

The study deviates from the protocol in these ways. The full run is small: 200,000
samples in batches of 256, a learning rate of 3e-3 instead of 3e-4, a controller of L0
that is ten times as fast, latents dead after 250 steps. At every size: arithmetic is in
float32 throughout; the inputs of JumpReLU are not scaled, but its thresholds are; the
term for dead latents lacks the factor min(1, num_dead / k), and picks its k latents
once for all prefixes. As published, BatchTopK selects from each batch of 1,024 in the
evaluation too, so that its L0 is k.

The frontier, of the Matryoshka model: k falls linearly from 2.4 k over all of the
training; prefixes by frequency means that every 100 steps the latents that fire most
become the first; "refined" is one step at inference that adds 0.3 W_enc (x - x_hat) to
the pre-activations and selects again; "leave one out" drops, at inference, each latent
j with <x - x_hat, w_j> + z_j |w_j|^2 < 2. The threshold and the claim are those of a
pilot run with another seed (100).

Results (full run, on a CPU: 1,024 features in 192 dimensions, 256 latents, L0 = 6;
means and 95 % t-intervals of five seeds; differences are of the same seeds):
* F1 of Matryoshka is 0.721 +- 0.033, of JumpReLU 0.631 +- 0.021, BatchTopK 0.612 +-
  0.027, L1 0.542 +- 0.004, matching pursuit 0.419 +- 0.007. The order is the published
  one, in which JumpReLU and BatchTopK are equal. So is that by explained variance, of
  which matching pursuit has most and L1 least.
* What does not replicate at this size and number of samples: Matryoshka has the best
  MCC, but not the best uniqueness (0.891, BatchTopK 0.932; 7 % of its latents are
  dead); the MCC of JumpReLU, 0.631, is below that of matching pursuit, 0.660. The
  controller leaves JumpReLU at an L0 of 6.19 +- 0.28.
* Leave-one-out adds 0.102 +- 0.010 to the F1 of Matryoshka, and drops a fifth of the
  active latents. A falling k adds 0.085 +- 0.032, both 0.141 +- 0.041: 0.862 +- 0.012.
* Refinement at inference alone lowers F1, by 0.015 +- 0.002, and changes nothing under
  leave-one-out; the published gain is of models that are trained with it. Prefixes by
  frequency add 0.015 +- 0.028: nothing certain, nor to a falling k. All four together
  have 0.861 +- 0.023, no more than a falling k with leave-one-out.
* In the quick run, at 1/64 of the size, the order of the variants is another: in a
  trial with all of its settings L1 was above BatchTopK. It judges Matryoshka alone.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import _study
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure
from scipy import stats

import jaxae
from jaxae import activations, metrics, optimizers, penalties, recovery, schedules
from jaxae.autoencoder import UntiedParams
from jaxae.autoencoder.parametrizations import Parametrization
from jaxae.penalties import Cotangents, Pass, Penalty
from jaxae.schedules import Schedule
from jaxae.training import TrainState

# By variant and encoder: the first has the higher F1, for every seed.
CLAIMED = [
    ("Matryoshka", "BatchTopK"),
    ("BatchTopK", "L1"),
    ("BatchTopK", "matching pursuit"),
    ("Matryoshka, leave one out", "Matryoshka"),
    ("Matryoshka, falling k, leave one out", "Matryoshka"),
]
MARGIN = 0.01  # of each of these differences
DICTIONARY_SEED = 42  # of the one dictionary that all seeds share
EVALUATION_BATCH = 1024
BLOCK = 4096  # of rows that are drawn at once
ROWS_BYTES = 2**30  # of samples that are drawn once and kept
REFINEMENT_RATE = 0.3
THRESHOLD = 2.0  # of leave-one-out; magnitudes of features are 4 to 5 on average
DECAY = 0.99  # of running firing frequencies
REORDER_EVERY = 100  # steps
# At full size with L0 = 25, the means of five runs: F1, MCC, uniqueness and variance
# explained.
PUBLISHED = {
    "L1": (0.5562, 0.6039, 0.8976, 0.7654),
    "JumpReLU": (0.7317, 0.7527, 0.9885, 0.7951),
    "BatchTopK": (0.7316, 0.7574, 0.9837, 0.7923),
    "matching pursuit": (0.4464, 0.6930, 0.8281, 0.8351),
    "Matryoshka": (0.8793, 0.7927, 0.9987, 0.7792),
}
PUBLISHED_METRICS = ("f1", "mcc", "uniqueness", "explained_variance")
FRONTIER = (
    "Matryoshka, falling k",
    "Matryoshka, by frequency",
    "Matryoshka, falling k, by frequency",
)
VARIANTS = (*PUBLISHED, *FRONTIER)


class Settings(NamedTuple):
    """The extent of the study."""

    scale: float  # of the numbers of features and latents; 1 is the published size
    num_seeds: int
    samples: int
    batch_size: int
    learning_rate: float
    controller_rate: float  # of the published one, 3e-4 in 195,312 steps
    dead_after: int  # steps
    num_evaluation: int  # samples
    l0: int | None = None  # None: 25 at full size, in proportion to sqrt(scale)
    variants: tuple[str, ...] = VARIANTS


FULL = Settings(
    scale=1 / 16,
    num_seeds=5,
    samples=200_000,
    batch_size=256,
    learning_rate=3e-3,
    controller_rate=3e-3,
    dead_after=250,
    num_evaluation=16_384,
)
QUICK = FULL._replace(
    scale=1 / 64,
    num_seeds=2,
    samples=60_000,
    num_evaluation=4096,
    variants=("BatchTopK", "Matryoshka"),
)
PAPER = Settings(
    scale=1.0,
    num_seeds=5,
    samples=200_000_000,
    batch_size=1024,
    learning_rate=3e-4,
    controller_rate=3e-4,
    dead_after=1000,
    num_evaluation=1_000_000,
)


def main(argv=None) -> int:
    args = _study.parse(argv, "synthsaebench", __doc__, OPTIONS, paper=PAPER_HELP)
    settings = settings_of(args)
    problem = problem_of(settings)
    source = problem.dictionary.source(settings.batch_size)
    N, D = problem.dictionary.features.shape
    print(
        f"scale {settings.scale:.4g}: {N} features in {D} dimensions, "
        f"{problem.latent_dim} latents, L0 {problem.l0}, {settings.samples} samples",
        flush=True,
    )
    cells = [
        {
            name: cell(name, problem, settings, seed, args.out)
            for name in settings.variants
        }
        for seed in range(settings.num_seeds)
    ]
    rows = summary(cells)
    show(rows)
    draw(rows, settings, args.out / "f1_by_variant.png")
    holds = judge(rows)
    print(f"claim: {holds}")
    data = SimpleNamespace(name=source.name, sha256=None)
    sizes = {"features": N, "dimensions": D, "latents": problem.latent_dim}
    results = {
        "holds": holds,
        "sizes": {**sizes, "l0": problem.l0},
        "metrics": rows,
        "gains": gains(rows),
    }
    return _study.finish(args, __doc__, settings, data, all(holds.values()), results)


PAPER_HELP = "the published sizes, for a GPU; run it again to continue after a stop"
OPTIONS = {
    "scale": {"type": float, "help": "of the sizes; 1 is the published one"},
    "samples": {"type": int, "help": "of training"},
    "seeds": {"type": int, "help": "how many"},
    "l0": {"type": int, "help": "active latents of an example"},
    "variants": {"nargs": "+", "choices": VARIANTS, "help": "all by default"},
}


def settings_of(args) -> Settings:
    settings = QUICK if args.quick else PAPER if args.paper else FULL
    given = {"scale": args.scale, "samples": args.samples, "num_seeds": args.seeds}
    given |= {"l0": args.l0, "variants": args.variants}
    given = {name: value for name, value in given.items() if value is not None}
    settings = settings._replace(**given)
    return settings._replace(variants=tuple(settings.variants))


class Problem(NamedTuple):
    """The dictionary and the sizes of the models that learn it."""

    dictionary: Any
    latent_dim: int
    l0: int
    norm_scale: float  # mean |x| / sqrt(D)

    @property
    def input_dim(self) -> int:
        """D."""
        return self.dictionary.features.shape[1]


def problem_of(settings: Settings) -> Problem:
    """N, F and the roots in proportion to the scale, D and L0 to its square root."""
    root = settings.scale**0.5
    dictionary = jaxae.data.synthsaebench(
        jax.random.key(DICTIONARY_SEED),
        num_features=round(16_384 * settings.scale),
        input_dim=round(768 * root),
        num_roots=round(128 * settings.scale),
    )
    x, _ = dictionary.draw(jax.random.key(DICTIONARY_SEED + 1), EVALUATION_BATCH)
    norms = jnp.linalg.norm(x, axis=1)
    return Problem(
        dictionary,
        latent_dim=round(4096 * settings.scale),
        l0=settings.l0 or round(25 * root),
        norm_scale=float(norms.mean()) / x.shape[1] ** 0.5,
    )


# ---- models --------------------------------------------------------------------------


class Model(NamedTuple):
    """How a variant is trained."""

    objective: jaxae.Objective
    hparams: dict[str, float]
    decoder_norm: float = 0.1  # at the start
    after_update: Callable[..., TrainState] | None = None
    unit_norm: bool = False


def _rescaled_expand(params: UntiedParams) -> UntiedParams:
    norms = jnp.linalg.norm(params.W_dec, axis=1, keepdims=True)
    b_enc = params.b_enc - params.W_enc @ params.b_dec
    return params._replace(
        W_enc=norms * params.W_enc,
        W_dec=params.W_dec / norms,
        b_enc=norms[:, 0] * b_enc,
    )


def _rescaled_pullback(params: UntiedParams, untied_grads: UntiedParams):
    return jax.vjp(_rescaled_expand, params)[1](untied_grads)[0]


# Pre-activations are multiplied by ||W_dec,j||, by which decoder rows are divided: the
# largest are those that change the reconstruction most. A pre-encoder bias as well.
rescaled = Parametrization(
    "rescaled",
    UntiedParams,
    _rescaled_expand,
    _rescaled_pullback,
    from_untied=lambda params: params,
    weights=("W_enc", "W_dec"),
    pre_bias=True,
)


def model_of(name: str, problem: Problem, settings: Settings) -> Model:
    """The published recipe of a variant.

    SAELens minimises twice our objective, summed over prefixes where we take the mean,
    so that coefficients and the norm at which gradients are clipped differ from it.
    """
    steps = settings.samples // settings.batch_size
    control = {"l0_target": problem.l0, "controller_rate": settings.controller_rate}
    if name == "L1":
        return Model(
            _objective(
                *(problem, activations.relu),
                penalties=(penalties.l1_decoder_norm,),
                schedules=(controller("l1_decoder_norm"),),
            ),
            {
                "l1_decoder_norm": 1.0,
                "max_norm": 0.5,
                "ramp_steps": steps // 3,
                **control,
            },
        )
    if name == "JumpReLU":
        scale = problem.norm_scale
        return Model(
            _objective(
                *(problem, activations.jumprelu(1.0, 1.0, scale)),
                penalties=(penalties.l0,),
                schedules=(controller("l0"),),
            ),
            {
                **dict.fromkeys(("l0", "max_norm"), 0.5 * scale**2),
                "ramp_steps": 0,
                **control,
            },
            decoder_norm=0.5,
        )
    if name == "matching pursuit":
        pursuit = activations.matching_pursuit(problem.l0)
        return Model(
            _objective(problem, pursuit, tied=True, bias=False),
            {"max_norm": 0.5},
            decoder_norm=1.0,
            unit_norm=True,
        )
    return _batch_topk_model(name, problem, settings)


def _batch_topk_model(name: str, problem: Problem, settings: Settings) -> Model:
    """BatchTopK, or Matryoshka with falling k and prefixes by frequency."""
    F, k = problem.latent_dim, problem.l0
    terms = [penalties.aux_k(min(problem.input_dim // 2, F))]
    prefixes, schedule, largest = None, (), k
    hparams = {"aux_k": 1.0, "max_norm": 0.5}
    after_update = None
    if name != "BatchTopK":
        prefixes = (F // 32, F // 8, F // 2, F)
        hparams["max_norm"] = 0.5 / len(prefixes)
    if "falling k" in name:
        largest = round(60 / 25 * k)
        schedule = (schedules.linear("k"),)
        steps = settings.samples // settings.batch_size
        hparams |= {"k": k, "k_start": largest, "k_steps": steps}
    if "by frequency" in name:
        terms.append(firing_frequency)
        hparams["firing_frequency"] = 0.0
        after_update = Reorder(REORDER_EVERY)
    objective = _objective(
        *(problem, activations.batch_topk(largest)),
        parametrization=rescaled,
        penalties=tuple(terms),
        prefixes=prefixes,
        schedules=schedule,
        dead_after=settings.dead_after,
    )
    return Model(objective, hparams, after_update=after_update)


def _objective(
    problem: Problem,
    activation,
    *,
    tied=False,
    bias=True,
    parametrization=None,
    **terms,
) -> jaxae.Objective:
    choices = {"tied": tied, "bias": bias, "pre_bias": True}
    if parametrization is not None:
        choices = {"parametrization": parametrization}
    ae = jaxae.Autoencoder(
        input_dim=problem.input_dim,
        latent_dim=problem.latent_dim,
        activation=activation,
        observation="gaussian",
        **choices,
    )
    return jaxae.Objective(ae, **terms)


# ---- the published controller of L0 --------------------------------------------------


class Control(NamedTuple):
    """The state of the controller."""

    step: Array
    l0: Array  # running mean
    slope: Array  # running mean of the change of that
    multiplier: Array


def _controlled(name: str, hparams, state: Control):
    ramp_steps = hparams["ramp_steps"]
    ramp = jnp.where(
        state.step < ramp_steps, state.step / jnp.maximum(ramp_steps, 1), 1
    )
    return hparams[name] * state.multiplier * ramp


def _next_control(hparams, state: Control, p: Pass) -> Control:
    """Multiply by 1 +- u, u = rate tanh(10 |e| / target), e the error of the mean L0.

    A hundredth of u while the error falls, and 1 before the end of the ramp.
    """
    observed, target = metrics.l0(p.z), hparams["l0_target"]
    l0 = jnp.where(state.step == 0, observed, 0.99 * state.l0 + 0.01 * observed)
    change = jnp.where(state.step == 0, 0, l0 - state.l0)
    slope = 0.95 * state.slope + 0.05 * change
    error = l0 - target
    u = hparams["controller_rate"] * jnp.tanh(10 * error / target)
    u = u * jnp.where(error * slope < 0, 0.01, 1)
    changed = jnp.clip(state.multiplier * (1 + u), 0.01, 100)
    is_ramp = state.step < hparams["ramp_steps"]
    multiplier = jnp.where(is_ramp, state.multiplier, changed)
    return Control(state.step + 1, l0, slope, multiplier)


def controller(name: str) -> Schedule:
    """The controller of SAELens for the coefficient `name`, after a linear ramp.

    `schedules.l0_controller` has no bound on its steps: in a run of few steps, an L0 of
    20 times the target at the start is more than it can make up for.
    """
    zero = jnp.float32(0)
    return Schedule(
        "published_controller",
        name,
        hparams=(name, "l0_target", "controller_rate", "ramp_steps"),
        value=functools.partial(_controlled, name),
        init_state=lambda: Control(jnp.int32(0), zero, zero, jnp.float32(1)),
        update_state=_next_control,
        check_hparams=lambda hparams: None,
    )


# ---- latents in the order of their firing frequency ----------------------------------


def _updated_frequency(ae, params, p: Pass) -> Array:
    del ae, params
    frequency = jnp.mean(p.z != 0, axis=0, dtype=jnp.float32)
    return DECAY * p.state["firing_frequency"] + (1 - DECAY) * frequency


# A term of value 0, for its state: how often each latent fires, as a running mean.
firing_frequency = Penalty(
    "firing_frequency",
    value=lambda ae, params, p: jnp.zeros((), p.z.dtype),
    cotangents=lambda ae, params, p: Cotangents(),
    init_state=lambda ae: jnp.zeros(ae.latent_dim),
    update_state=_updated_frequency,
)


@dataclasses.dataclass(frozen=True)
class Reorder:
    """Reorder the latents after every so many updates, those that fire most first.

    For `TrainConfig(after_update=)`. With it go their rows in the optimizer's state and
    their counts in the objective's, so that the model as a function, and what it learns
    apart from its prefixes, stay the same.
    """

    every: int

    def __call__(self, state: TrainState, p: Pass) -> TrainState:
        """The state with the latents in order, if it is time."""
        del p
        is_due = (state.step + 1) % self.every == 0
        frequency = state.state["firing_frequency"]
        order = jnp.where(is_due, jnp.argsort(-frequency), jnp.arange(len(frequency)))
        return reordered(state, order)


def reordered(state: TrainState, order) -> TrainState:
    """The state with latent order[j] as latent j."""

    def is_params(node: Any) -> bool:
        return isinstance(node, UntiedParams)

    def take(node: Any) -> Any:
        if not is_params(node):
            return node
        rows = {
            name: getattr(node, name)[order] for name in ("W_enc", "W_dec", "b_enc")
        }
        return node._replace(**rows)

    counts = {
        name: state.state[name][order]
        for name in ("firing_frequency", "steps_since_active")
    }
    return state._replace(
        params=take(state.params),
        opt_state=jax.tree.map(take, state.opt_state, is_leaf=is_params),
        state={**state.state, **counts},
    )


# ---- encoders: (ae, params, X [B, D]) -> Z [B, H] ------------------------------------


def encode(ae, params, X) -> Array:
    """The model's own latents; batch_topk selects from the batch, as in training."""
    return _select(ae, params, _pre_acts(ae, params, X))


def refined(ae, params, X) -> Array:
    """One step of refinement: the latents of a + eta W_enc (x - x_hat), eta = 0.3."""
    residuals = X - _decode(ae, params, encode(ae, params, X))
    correction = residuals @ ae.expand(params).W_enc.T
    return _select(ae, params, _pre_acts(ae, params, X) + REFINEMENT_RATE * correction)


def left_one_out(ae, params, X, Z, threshold) -> Array:
    """Z without the latents j that their reconstruction hardly needs.

    Those with <x - x_hat, w_j> + z_j ||w_j||^2 below the threshold, w_j their decoder
    row: of the residual without latent j, the part along w_j, times ||w_j||.
    """
    W_dec = ae.expand(params).W_dec
    residuals = X - _decode(ae, params, Z)
    needed = residuals @ W_dec.T + Z * jnp.sum(W_dec**2, axis=1)[None]
    return jnp.where(needed >= threshold, Z, 0)


def leave_one_out(ae, params, X) -> Array:
    return left_one_out(ae, params, X, encode(ae, params, X), THRESHOLD)


def refined_leave_one_out(ae, params, X) -> Array:
    return left_one_out(ae, params, X, refined(ae, params, X), THRESHOLD)


def _pre_acts(ae, params, X) -> Array:
    return jax.vmap(ae.encoder_pre_acts, (None, 0))(params, X)


def _select(ae, params, A) -> Array:
    g, theta = ae.activation, ae.activation.theta_of(ae.expand(params))
    state = g.init_state(ae.latent_dim) if g.init_state else ()
    return g.checked_apply_batch(A, theta, state, training=True)


def _decode(ae, params, Z) -> Array:
    return jax.vmap(ae.decode, (None, 0))(params, Z)


ENCODERS = {
    "": encode,
    "refined": refined,
    "leave one out": leave_one_out,
    "refined, leave one out": refined_leave_one_out,
}


# ---- training and evaluation ---------------------------------------------------------


@functools.lru_cache(maxsize=1)  # those of one seed, for all of its variants
def draw_rows(source, seed: int, num_blocks: int) -> np.ndarray:
    """Samples `[num_blocks B, D]`."""
    draw = jax.jit(lambda key: source(key, {}))
    keys = jax.random.split(_keys(seed)[1], num_blocks)
    return np.concatenate([np.asarray(draw(key)) for key in keys])


def _keys(seed: int):
    """Of the initial parameters, the samples, training and evaluation."""
    return jax.random.split(jax.random.key(seed), 4)


def train(model: Model, problem: Problem, settings: Settings, seed: int, folder):
    """Train a variant; the seed determines initial parameters, samples and order."""
    init_key, _, key, _ = _keys(seed)
    size = settings.batch_size
    num_steps = settings.samples // size
    if 4 * problem.input_dim * settings.samples <= ROWS_BYTES:
        # Drawing is slower than training: draw rows once for all variants.
        block = problem.dictionary.source(BLOCK)
        rows = draw_rows(block, seed, -(-settings.samples // BLOCK))
        data, num_epochs = rows[: num_steps * size], 1
    else:
        data, num_epochs = problem.dictionary.source(size), min(100, num_steps)
    optimizer = optimizers.build("adam", clip=True, unit_norm=model.unit_norm)
    config = jaxae.TrainConfig(
        num_epochs=num_epochs,
        batch_size=size,
        steps_per_epoch=num_steps // num_epochs if callable(data) else None,
        optimizer=optimizer,
        after_update=model.after_update,
        diagnostics=False,
        checkpoint_minutes=1.0,
    )
    return jaxae.train(
        model.objective,
        data,
        hparams={"learning_rate": settings.learning_rate, **model.hparams},
        key=key,
        config=config,
        params=model.objective.ae.init(init_key, decoder_norm=model.decoder_norm),
        checkpoint_dir=folder,
    )


def evaluate(model: Model, params, problem: Problem, settings: Settings, seed: int):
    """The metrics of each encoder, by its name."""
    ae = model.objective.ae
    if ae.activation.init_state is not None:  # batch_topk: without the falling k
        ae = dataclasses.replace(ae, activation=activations.batch_topk(problem.l0))
    num_batches = settings.num_evaluation // EVALUATION_BATCH
    dictionary, key = problem.dictionary, _keys(seed)[3]
    encoders = ENCODERS if model.objective.prefixes else {"": encode}
    return {
        name: recovery.evaluate(
            ae,
            params,
            dictionary.batches(key, num_batches, EVALUATION_BATCH),
            dictionary.features,
            encode=function,
        )
        for name, function in encoders.items()
    }


def cell(name: str, problem: Problem, settings: Settings, seed: int, out) -> dict:
    """Train and evaluate a variant, unless the folder holds its result already."""
    folder = out / "cells" / f"{name.replace(', ', '_').replace(' ', '-')}-{seed}"
    # What the result depends on: not how many other variants and seeds there are.
    others = {"num_seeds", "variants"}
    about = {n: v for n, v in settings._asdict().items() if n not in others}
    about["variant"] = name
    path = folder / "metrics.json"
    if path.exists() and (saved := json.loads(path.read_text()))["about"] == about:
        return saved["metrics"]
    model = model_of(name, problem, settings)
    run = train(model, problem, settings, seed, folder / "checkpoints")
    metrics = evaluate(model, run.params, problem, settings, seed)
    _study.write_json(path, {"about": about, "metrics": metrics})
    print(f"seed {seed}, {name}: F1 {metrics['']['f1']:.4f}", flush=True)
    return metrics


# ---- the verdict ---------------------------------------------------------------------


def summary(cells: list[dict]) -> list[dict]:
    """Of each variant and encoder, the metrics by seed, their mean and interval."""
    rows = []
    for variant, encoders in cells[0].items():
        for encoder, scores in encoders.items():
            by_seed = {
                name: np.array([c[variant][encoder][name] for c in cells])
                for name in scores
            }
            published = PUBLISHED.get(variant) if encoder == "" else None
            rows.append(
                {
                    "variant": ", ".join(filter(None, (variant, encoder))),
                    "mean": {n: values.mean() for n, values in by_seed.items()},
                    "half_width": {n: half_width(v) for n, v in by_seed.items()},
                    "by_seed": by_seed,
                    "published_at_full_size": published,
                }
            )
    return rows


def half_width(values) -> float:
    """Of the 95 % interval of the mean, by Student's t; nan for one value."""
    num = len(values)
    if num == 1:
        return np.nan
    return stats.t.ppf(0.975, num - 1) * np.std(values, ddof=1) / num**0.5


def judge(rows) -> dict[str, bool]:
    """Whether each statement of the claim holds; of variants that were trained."""
    f1 = {row["variant"]: row["by_seed"]["f1"] for row in rows}
    return {
        f"F1: {better} above {worse}": bool(np.all(f1[better] - f1[worse] >= MARGIN))
        for better, worse in CLAIMED
        if better in f1 and worse in f1
    }


def gains(rows) -> dict[str, dict]:
    """By how much F1 is above that of Matryoshka with the same seed."""
    f1 = {row["variant"]: row["by_seed"]["f1"] for row in rows}
    differences = {
        name: values - f1["Matryoshka"]
        for name, values in f1.items()
        if name.startswith("Matryoshka, ") and "Matryoshka" in f1
    }
    return {
        name: {"mean": difference.mean(), "half_width": half_width(difference)}
        for name, difference in differences.items()
    }


def show(rows) -> None:
    """Print the table: means and half-widths of 95 % intervals, and published means."""
    table = []
    for row in rows:
        cells = {
            heading: f"{row['mean'][name]:.3f} +- {row['half_width'][name]:.3f}"
            for heading, name in COLUMNS.items()
        }
        published = row["published_at_full_size"]
        numbers = [f"{x:.3f}" for x in published] if published else [""]
        table.append(
            {"variant": row["variant"], **cells, "at full size": " ".join(numbers)}
        )
    _study.print_table(table, dict.fromkeys(table[0], ""))
    for name, gain in gains(rows).items():
        difference = f"{gain['mean']:+.3f} +- {gain['half_width']:.3f}"
        print(f"F1 of {name} above Matryoshka: {difference}")


COLUMNS = {
    "F1": "f1",
    "MCC": "mcc",
    "uniqueness": "uniqueness",
    "explained": "explained_variance",
    "L0": "l0",
    "shrinkage": "shrinkage",
    "dead": "dead_fraction",
}


# ---- plot ----------------------------------------------------------------------------


def draw(rows, settings, path) -> None:
    """F1 of each row with its interval, its seeds, and the published mean."""
    figure = Figure(figsize=(8, 1.5 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    ours = f"scale {settings.scale:.4g}, {settings.samples:,} samples"
    for place, row in zip(places, rows, strict=True):
        seeds = row["by_seed"]["f1"]
        axes.plot(seeds, np.full(len(seeds), place), "|", color="#9a9a9a", zorder=1)
    axes.errorbar(
        [row["mean"]["f1"] for row in rows],
        places,
        xerr=[row["half_width"]["f1"] for row in rows],
        fmt="o",
        color="#335c67",
        capsize=3,
        label=f"{ours}: mean, 95 %, seeds",
    )
    known = [(p, row) for p, row in enumerate(rows) if row["published_at_full_size"]]
    axes.plot(
        [row["published_at_full_size"][0] for _, row in known],
        [place for place, _ in known],
        "D",
        color="#d1495b",
        markerfacecolor="none",
        label="published: scale 1, 200,000,000 samples",
    )
    axes.set_yticks(places, [row["variant"] for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set(xlabel="F1", title="SynthSAEBench by variant")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _study.save(figure, path)


if __name__ == "__main__":
    sys.exit(main())
