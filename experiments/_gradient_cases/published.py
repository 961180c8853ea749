"""Gradient bugs of released trainers, rebuilt in JAX from their descriptions.

Bugs that are not wrong gradients are left out: SAELens's threshold that Adam cannot
move because it is learned as a logarithm (SAELens#494, #718), optimiser state
copied into a clone (HoagyC/sparse_coding), initial values from half of the range
(pylearn2).
"""

import functools

import jax
import jax.numpy as jnp

from _gradient_cases.case import Catalogue, Function, f32
from _gradient_cases.models import (
    Tied,
    Untied,
    bernoulli,
    encode,
    mean,
    tied,
    tied_inputs,
    untied_inputs,
)

CASES = Catalogue()
bug = CASES.bug
hold = jax.lax.stop_gradient
SPARSIFY = "EleutherAI/sparsify"


def top(k, values):
    """`values` [H] where they are among the k largest, 0 elsewhere."""
    largest, indices = jax.lax.top_k(values, k)
    return jnp.zeros_like(values).at[indices].set(largest)


def pre_acts(p, x):
    return jax.nn.relu(p.W_enc @ x + p.b_enc)


# ---- sparsify's fused encoder --------------------------------------------------------


def multi_top_k(p, x, held=lambda a: a):
    """||x_hat - x||² with k latents, and 1/8 of that with 4 k (Gao et al., 2024).

    The first k are one output of the encoder, its pre-activations are another.
    """
    a, H = pre_acts(p, x), len(p.b_enc)
    k = max(H // 8, 1)

    def error(z):
        return jnp.sum((p.W_dec.T @ z + p.b_dec - x) ** 2)

    return error(top(k, a)) + error(top(min(4 * k, H), held(a))) / 8


@bug(
    Function(untied_inputs, mean(multi_top_k)),
    "fused encoder ignores a cotangent",
    "a loss on its output pre_acts sends nothing back to the encoder",
    wrong="W_enc b_enc",
    source=f"{SPARSIFY}@9d3b136, fused_encoder.py",
)
def fused_encoder(p, X):
    return jax.grad(mean(functools.partial(multi_top_k, held=hold)))(p, X)


def few_positive_inputs(rng, size):
    params, X = untied_inputs(rng, size)
    return params._replace(b_enc=params.b_enc - f32(1.0)), X


def most_of_few(p, x):
    """k = H - 1 latents are selected, most of which are zeros of the relu."""
    z = top(len(p.b_enc) - 1, pre_acts(p, x))
    return jnp.sum((p.W_dec.T @ z + p.b_dec - x) ** 2) / 2


@bug(
    Function(few_positive_inputs, mean(most_of_few)),
    "fused encoder's relu forgotten",
    "zeros that are among the k largest get the gradient of what is positive",
    wrong="W_enc b_enc",
    source=f"{SPARSIFY}@9d3b136, fused_encoder.py",
)
def fused_relu(p, X):
    def example(x):
        largest, indices = jax.lax.top_k(pre_acts(p, x), len(p.b_enc) - 1)
        z = jnp.zeros_like(p.b_enc).at[indices].set(largest)
        residual = p.W_dec.T @ z + p.b_dec - x
        d_z = (p.W_dec @ residual)[indices]
        d_a = jnp.zeros_like(z).at[indices].set(d_z)
        outer = jnp.outer(d_a, x), jnp.outer(z, residual)
        return Untied(*outer, d_a, residual)

    sums = jax.lax.map(example, X)
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), sums)


# ---- AuxK: dead latents reconstruct what the others left over ------------------------


def auxk_inputs(rng, size):
    """The second half of the latents is dead, with positive pre-activations."""
    params, X = untied_inputs(rng, size)
    num_live = size.H - size.H // 2
    params.b_enc[num_live:] += f32(1.0)
    return params, X


def auxk_loss(p, x, held=hold, bias=0.0, scale=1.0, shift=0):
    """||x_hat - x||² + ½ ||W_decᵀ z_aux - e||², e = x - x_hat held (Gao et al., 2024).

    The keywords are what went wrong: a bias added to the second reconstruction, another
    scale of it, and latents whose index is too small by `shift`.
    """
    a, H = pre_acts(p, x), len(p.b_enc)
    num_live = H - H // 2
    k = max(H // 8, 1)
    is_dead = jnp.arange(H) >= num_live
    z = top(k, jnp.where(is_dead, 0, a))
    z_aux = jnp.roll(top(k, jnp.where(is_dead, a, 0)), -shift)
    e = x - p.W_dec.T @ z - p.b_dec
    e_hat = p.W_dec.T @ z_aux + bias * p.b_dec
    return jnp.sum(e**2) + scale * jnp.sum((e_hat - held(e)) ** 2) / 2


auxk = Function(untied_inputs, mean(auxk_loss), ("W_enc", "W_dec", "b_enc", "b_dec"))
auxk = auxk._replace(inputs=auxk_inputs)


def auxk_grad(p, X, **mistakes):
    return jax.grad(mean(functools.partial(auxk_loss, **mistakes)))(p, X)


@bug(
    auxk,
    "AuxK double-counts b_dec",
    "the residual, already without b_dec, is compared with one that has it",
    wrong="W_enc W_dec b_enc b_dec",
    source=f"{SPARSIFY}#132, #134",
)
def auxk_bias(p, X):
    return auxk_grad(p, X, bias=1.0)


@bug(
    auxk,
    "AuxK residual not detached",
    "live latents are pulled too, by the whole derivative of the function",
    wrong="W_enc W_dec b_enc b_dec",
    source=f"{SPARSIFY}#57, bartbussmann/BatchTopK#4",
)
def auxk_attached(p, X):
    return auxk_grad(p, X, held=lambda e: e)


@bug(
    auxk,
    "AuxK never back-propagated",
    "computed and logged, but the reconstruction alone is differentiated",
    wrong="W_enc W_dec b_enc",
    source="oclivegriffin/crosscode#3",
)
def auxk_unused(p, X):
    return auxk_grad(p, X, scale=0.0)


@bug(
    auxk,
    "AuxK averaged over inputs",
    "the reconstruction is a sum over D, this is a mean",
    wrong="W_enc W_dec b_enc",
    source="saprmarks/dictionary_learning#36",
)
def auxk_averaged(p, X):
    return auxk_grad(p, X, scale=1 / X.shape[1])


@bug(
    auxk,
    "AuxK's index of the wrong array",
    "an index among the dead latents is used as one among all",
    wrong="W_enc W_dec b_enc",
    source="saprmarks/dictionary_learning#36",
)
def auxk_index(p, X):
    H = len(p.b_enc)
    return auxk_grad(p, X, shift=H - H // 2)


# ---- gates and thresholds ------------------------------------------------------------


def gated_inputs(rng, size):
    """A gated autoencoder's magnitudes have their own scale and bias."""
    params, X = untied_inputs(rng, size)
    scale, bias = 0.1 * rng.normal(size=(2, size.H))
    return {"gate": params, "scale": f32(scale), "b_mag": f32(bias)}, X


def gated_loss(p, x, held=hold):
    """||x_hat - x||² + ||x_hat_gate - x||² + ||relu(gate)||_1 (Rajamanoharan, 2024).

    The gate's own reconstruction reads a frozen decoder.
    """
    model = p["gate"]
    shared = model.W_enc @ x
    gate = shared + model.b_enc
    magnitude = jax.nn.relu(jnp.exp(p["scale"]) * shared + p["b_mag"])
    z = jnp.where(gate > 0, magnitude, 0)
    main = jnp.sum((model.W_dec.T @ z + model.b_dec - x) ** 2)
    W_dec, b_dec = held((model.W_dec, model.b_dec))
    via_gate = jnp.sum((W_dec.T @ jax.nn.relu(gate) + b_dec - x) ** 2)
    return main + via_gate + jnp.sum(jax.nn.relu(gate))


gated = Function(gated_inputs, mean(gated_loss), ("gate/W_dec", "gate/b_dec"))


@bug(
    gated,
    "gated loss leaks into the decoder",
    "the gate's reconstruction trains the decoder that should be frozen",
    wrong="gate/W_dec gate/b_dec",
    source="decoderesearch/SAELens#539, #545, #546",
)
def gated_leak(p, X):
    return jax.grad(mean(functools.partial(gated_loss, held=lambda tree: tree)))(p, X)


def jump_relu_inputs(rng, size):
    params, X = untied_inputs(rng, size)
    return {"log_threshold": f32(rng.uniform(-2, -1, size.H)), "model": params}, X


def jump_relu_loss(p, x, bandwidth=1.0):
    """JumpReLU latents: a where it exceeds θ, with a declared derivative in θ.

    That is -θ / ε where |a - θ| < ε / 2, else 0 (Rajamanoharan et al., 2024).
    """
    model, threshold = p["model"], jnp.exp(p["log_threshold"])
    a = model.W_enc @ x + model.b_enc
    is_near = jnp.abs(a - hold(threshold)) < bandwidth / 2
    slope = hold(jnp.where(is_near, -threshold / bandwidth, 0))
    z = jnp.where(a > hold(threshold), a, 0) + slope * (threshold - hold(threshold))
    return jnp.sum((model.W_dec.T @ z + model.b_dec - x) ** 2)


jump_relu = Function(jump_relu_inputs, mean(jump_relu_loss), ("log_threshold",))


@bug(
    jump_relu,
    "JumpReLU's chain factor missing",
    "the derivative in θ is handed back as that in log θ",
    wrong="log_threshold",
    source="the parametrization of decoderesearch/SAELens#494, #718",
)
def chain_factor_missing(p, X):
    grads = jax.grad(mean(jump_relu_loss))(p, X)
    in_theta = grads["log_threshold"] / jnp.exp(p["log_threshold"])
    return grads | {"log_threshold": in_theta}


@bug(
    jump_relu,
    "JumpReLU's threshold in bfloat16",
    "its gradient is rounded to 8 bits on the way",
    wrong="log_threshold",
    source="the precision of decoderesearch/SAELens#728",
)
def threshold_rounded(p, X):
    grads = jax.grad(mean(jump_relu_loss))(p, X)
    rounded = jax.lax.reduce_precision(grads["log_threshold"], 8, 7)
    return grads | {"log_threshold": rounded}


# ---- tied weights that are not -------------------------------------------------------


def copied_inputs(rng, size):
    """Inputs with the decoder's initial copy of the weights."""
    params, X = tied_inputs(rng, size)
    return params, X, params.W + f32(0.1 * rng.normal(size=params.W.shape))


def tied_loss(p, X, copy):
    del copy
    return tied.loss(p, X)


@bug(
    Function(copied_inputs, tied_loss),
    "weights never tied",
    "the decoder reads its own copy, and W gets the encoder's path",
    wrong="W b_enc b_dec",
    source="keras-team/keras#386",
)
def never_tied(p, X, copy) -> Tied:
    def untied_loss(p, x):
        return bernoulli(copy.T @ encode(p, x) + p.b_dec, x)

    return jax.grad(mean(untied_loss))(p, X)
