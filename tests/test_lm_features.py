"""The study of language-model activations: forwards, splice, probes and contexts.

The models are tiny and random: no weights and no texts are needed.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

sys.path.append(str(Path(__file__).parents[1] / "experiments"))

import _language_models as lm

D, F, V, T, HEAD_DIM, NUM_BLOCKS = 12, 20, 30, 7, 4, 3
IDS = np.random.default_rng(1).integers(0, V, T)
# float32 against float64 after three blocks; entries are of order 1 to 10.
TOLERANCE = 5e-5


def arrays(shapes, seed=0):
    """Random arrays by name, in float64."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape) / 2 for name, shape in shapes.items()}


def bert_arrays():
    shapes = {
        "embeddings.word_embeddings.weight": (V, D),
        "embeddings.position_embeddings.weight": (T + 2, D),
        "embeddings.token_type_embeddings.weight": (2, D),
    }
    norms = ["embeddings.LayerNorm"]
    linears = {}
    for i in range(NUM_BLOCKS):
        layer = f"encoder.layer.{i}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            linears[f"{layer}.attention.{name}"] = (D, D)
        linears[f"{layer}.intermediate.dense"] = (F, D)
        linears[f"{layer}.output.dense"] = (D, F)
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for name in norms:
        shapes |= {f"{name}.weight": (D,), f"{name}.bias": (D,)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return arrays(shapes)


def llama_arrays(num_kv_heads=1):
    K = num_kv_heads * HEAD_DIM
    shapes = {"token_embd.weight": (V, D), "output_norm.weight": (D,)}
    for i in range(NUM_BLOCKS):
        of_block = {
            **{"attn_norm": (D,), "ffn_norm": (D,)},
            **{"attn_q": (D, D), "attn_k": (K, D), "attn_v": (K, D)},
            **{"attn_output": (D, D), "ffn_gate": (F, D), "ffn_up": (F, D)},
            "ffn_down": (D, F),
        }
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in of_block.items()}
    return arrays(shapes)


def in_float32(params):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)


def bert():
    return in_float32(lm.bert_params(bert_arrays()))


def llama(num_kv_heads=1):
    return in_float32(lm.llama_params(llama_arrays(num_kv_heads)))


# ---- the equations in NumPy, float64, one head and one position at a time ------------


def attention(q, k, v, is_causal):
    """Softmax attention of each head and position; keys are shared by equal groups."""
    num_heads, num_kv_heads = q.shape[1] // HEAD_DIM, k.shape[1] // HEAD_DIM
    out = np.zeros((len(q), q.shape[1]))
    for h in range(num_heads):
        own = slice(h * HEAD_DIM, (h + 1) * HEAD_DIM)
        g = h // (num_heads // num_kv_heads)
        shared = slice(g * HEAD_DIM, (g + 1) * HEAD_DIM)
        for t in range(len(q)):
            seen = slice(0, t + 1) if is_causal else slice(None)
            scores = k[seen, shared] @ q[t, own] / np.sqrt(HEAD_DIM)
            out[t, own] = special.softmax(scores) @ v[seen, shared]
    return out


def bert_oracle(w, ids, num_blocks=NUM_BLOCKS):
    def norm(name, x):
        centred = x - x.mean(1, keepdims=True)
        normed = centred / np.sqrt(x.var(1, keepdims=True) + 1e-12)
        return normed * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    e = "embeddings"
    x = norm(
        f"{e}.LayerNorm",
        w[f"{e}.word_embeddings.weight"][ids]
        + w[f"{e}.position_embeddings.weight"][: len(ids)]
        + w[f"{e}.token_type_embeddings.weight"][0],
    )
    for i in range(num_blocks):
        layer = f"encoder.layer.{i}"
        q, k, v = (
            linear(f"{layer}.attention.self.{n}", x) for n in ("query", "key", "value")
        )
        mixed = linear(f"{layer}.attention.output.dense", attention(q, k, v, False))
        x = norm(f"{layer}.attention.output.LayerNorm", x + mixed)
        a = linear(f"{layer}.intermediate.dense", x)
        gelu = a * (1 + special.erf(a / np.sqrt(2))) / 2
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", gelu))
    return x


def turned(x):
    """Each pair of neighbours as a complex number, turned by t theta^(-2i/d)."""
    pairs = x[:, 0::2] + 1j * x[:, 1::2]
    i = np.arange(pairs.shape[1]) % (HEAD_DIM // 2)
    angles = np.arange(len(x))[:, None] * 1e5 ** (-2 * i / HEAD_DIM)
    pairs = pairs * np.exp(1j * angles)
    return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)


def llama_oracle(w, ids, num_blocks=NUM_BLOCKS):
    def norm(name, x):
        root = np.sqrt((x**2).mean(1, keepdims=True) + 1e-5)
        return x / root * w[f"{name}.weight"]

    x = w["token_embd.weight"][ids]
    for i in range(num_blocks):
        p = f"blk.{i}"
        h = norm(f"{p}.attn_norm", x)
        q, k, v = (h @ w[f"{p}.attn_{n}.weight"].T for n in "qkv")
        mixed = attention(turned(q), turned(k), v, True)
        x = x + mixed @ w[f"{p}.attn_output.weight"].T
        h = norm(f"{p}.ffn_norm", x)
        gate = h @ w[f"{p}.ffn_gate.weight"].T
        up = h @ w[f"{p}.ffn_up.weight"].T
        x = x + (gate * special.expit(gate) * up) @ w[f"{p}.ffn_down.weight"].T
    logits = norm("output_norm", x) @ w["token_embd.weight"].T
    log_p = special.log_softmax(logits, axis=1)
    return x, np.array([-log_p[t, ids[t + 1]] for t in range(len(ids) - 1)])


# ---- the forwards --------------------------------------------------------------------


@pytest.mark.parametrize("num_blocks", [0, 1, NUM_BLOCKS])
def test_bert_follows_its_equations(num_blocks):
    first, _ = lm.split(bert(), num_blocks)
    expected = bert_oracle(bert_arrays(), IDS, num_blocks)
    np.testing.assert_allclose(
        lm.bert_states(first, IDS, HEAD_DIM), expected, atol=TOLERANCE
    )


@pytest.mark.parametrize("num_kv_heads", [1, 3])
def test_llama_and_its_loss_follow_their_equations(num_kv_heads):
    params, w = llama(num_kv_heads), llama_arrays(num_kv_heads)
    states, loss = llama_oracle(w, IDS)
    np.testing.assert_allclose(
        lm.llama_states(params, IDS, HEAD_DIM), states, atol=TOLERANCE
    )
    none, all_blocks = lm.split(params, 0)
    embedded = lm.llama_states(none, IDS, HEAD_DIM)
    np.testing.assert_array_equal(embedded, params.words[IDS])
    actual = lm.next_token_loss(all_blocks, embedded, IDS, HEAD_DIM)
    np.testing.assert_allclose(actual, loss, atol=TOLERANCE)


def test_a_later_token_changes_no_state_of_llama_and_all_of_bert():
    changed = IDS.copy()
    changed[4] = (IDS[4] + 1) % V
    before, after = (lm.llama_states(llama(), ids, HEAD_DIM) for ids in (IDS, changed))
    np.testing.assert_array_equal(before[:4], after[:4])
    assert np.abs(before[4:] - after[4:]).max(axis=1).min() > 1e-3
    before, after = (lm.bert_states(bert(), ids, HEAD_DIM) for ids in (IDS, changed))
    assert np.abs(before - after).max(axis=1).min() > 1e-4  # roundings are 1e-6


def test_rotary_products_depend_on_the_distance_of_positions_alone():
    q, k = np.random.default_rng(2).normal(size=(2, 1, 1, HEAD_DIM))
    q, k = (lm.rotate(jnp.tile(x, (T, 1, 1)))[:, 0] for x in (q, k))
    products = np.asarray(q @ k.T)
    for distance in range(-T + 1, T):
        diagonal = np.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)
    assert np.ptp(products[0]) > 0.1
    norms = jnp.linalg.norm(q, axis=1)
    np.testing.assert_allclose(norms, norms[0], rtol=1e-5)


@pytest.mark.parametrize("num_blocks", [0, 1, NUM_BLOCKS])
def test_the_two_parts_of_a_model_are_the_model(num_blocks):
    first, others = lm.split(llama(), num_blocks)
    x = lm.llama_states(first, IDS, HEAD_DIM)
    expected = lm.llama_states(llama(), IDS, HEAD_DIM)
    actual = lm.llama_blocks(others.blocks, x, HEAD_DIM)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
