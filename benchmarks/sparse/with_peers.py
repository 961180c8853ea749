"""The model in libraries for sparse autoencoders in PyTorch, by their own trainers.

Each trainer is used as it is installed. Left out are logging and saved files. With
`fused`, the trainer's Adam is PyTorch's fused one, which no trainer offers: its
parameter groups are changed before the first step.
"""

import importlib
import os
import sys
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock

import torch

from benchmarks.sparse.work import Work, fvu


def sparsify(fused: bool = False, **options):
    """`Trainer.fit` of eai-sparsify, without its default unit norm."""
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sparsify import SparseCoderConfig, TrainConfig, Trainer

    work = Work(**options)
    batches, other_rows = tensors(work)
    config = TrainConfig(
        SparseCoderConfig(
            num_latents=work.latent_dim, k=work.k, normalize_decoder=False
        ),
        batch_size=1,  # of sequences; a batch is one
        optimizer="adam",
        lr=work.learning_rate,
        lr_warmup_steps=0,
        hookpoints=["rows"],
        finetune="given parameters",  # or the trainer sets b_dec to the mean
        log_to_wandb=False,
    )
    endless = Sequences(range(10**9), work)  # the learning rate falls to 0 at its end
    trainer = Trainer(config, endless, LookUp(batches))
    trainer.save = lambda: None
    sae = trainer.saes["rows"]
    set_weights(work, sae.encoder.weight, sae.W_dec)
    set_fused(trainer.optimizers[0], fused)

    def train():
        last = trainer.global_step + work.num_steps
        trainer.dataset = Sequences(range(last), work)
        trainer.fit()

    return runs(train, lambda x: sae(x).sae_out, other_rows)


class LookUp(torch.nn.Module):
    """A language model, as far as sparsify's trainer uses one: rows by their number."""

    def __init__(self, batches):
        super().__init__()
        self.rows = torch.nn.Embedding.from_pretrained(batches.flatten(0, 1))
        self.device = batches.device
        self.dummy_inputs = {"input_ids": torch.zeros((1, 1), dtype=torch.long)}

    @property
    def base_model(self):
        """The model whose submodules have activations."""
        return self

    def forward(self, input_ids):
        """The activations, to which the trainer listens."""
        return self.rows(input_ids)


class Sequences(torch.utils.data.Dataset):
    """Sequences of the numbers of the rows of a batch; sequence i is of step i."""

    def __init__(self, steps, work: Work):
        self.steps, self.work = steps, work
        self.rows = torch.arange(work.num_batches * work.batch_size)

    def __len__(self):
        return len(self.steps)

    def __getitem__(self, index):
        first = self.steps[index] % self.work.num_batches * self.work.batch_size
        return {"input_ids": self.rows[first : first + self.work.batch_size]}

    def select(self, indices):
        """The sequences of these indices."""
        return Sequences([self.steps[i] for i in indices], self.work)


def dictionary_learning(fused: bool = False, **options):
    """`TopKTrainer.update`; with unit norm, which it always has."""
    without("nnsight", "zstandard")
    from dictionary_learning.trainers.top_k import TopKTrainer

    work = Work(**options)
    batches, other_rows = tensors(work)
    trainer = TopKTrainer(
        steps=10**9,
        activation_dim=work.input_dim,
        dict_size=work.latent_dim,
        k=work.k,
        layer=0,
        lm_name="",
        lr=work.learning_rate,
        warmup_steps=0,
        device="cpu",
    )
    set_weights(work, trainer.ae.encoder.weight, trainer.ae.decoder.weight)
    set_fused(trainer.optimizer, fused)
    steps = Steps(work, batches)

    def train():
        for step, x in steps:
            trainer.update(step + 1, x)  # step 0 would set b_dec

    return runs(train, trainer.ae, other_rows)


def sae_lens(fused: bool = False, use_sparse_activations: bool = False, **options):
    """`SAETrainer.step`."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    work = Work(**options)
    batches, other_rows = tensors(work)
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=work.input_dim,
            d_sae=work.latent_dim,
            k=work.k,
            use_sparse_activations=use_sparse_activations,
            rescale_acts_by_decoder_norm=False,
        )
    )
    set_weights(work, sae.W_enc, sae.W_dec)
    config = SAETrainerConfig(
        total_training_samples=10**12,
        train_batch_size_samples=work.batch_size,
        lr=work.learning_rate,
        lr_end=work.learning_rate,
    )
    trainer = SAETrainer(config, sae, iter(()))
    set_fused(trainer.optimizer, fused)
    steps = Steps(work, batches)

    def train():
        for _, x in steps:
            trainer.step(x)
            trainer.n_training_steps += 1

    return runs(train, sae, other_rows)


def overcomplete(fused: bool = False, **options):
    """`train_sae`; without b_dec, which it never has."""
    without("cv2", "matplotlib", "matplotlib.pyplot", "matplotlib.colors")
    without("skimage", "torchvision")
    from overcomplete.sae import TopKSAE, train_sae

    work = Work(**options)
    batches, other_rows = tensors(work)
    model = TopKSAE(
        work.input_dim,
        work.latent_dim,
        top_k=work.k,
        dictionary_params={"normalization": "identity"},
    ).untied(bias=True)
    set_weights(work, model.encoder.weight, model.dictionary._weights)
    optimizer = torch.optim.Adam(model.parameters(), lr=work.learning_rate, fused=fused)
    steps = Steps(work, batches)

    def loss(x, x_hat, pre_codes, codes, dictionary):
        return (x - x_hat).square().sum(-1).mean()

    def train():
        batches = (x for _, x in steps)
        train_sae(
            model, batches, loss, optimizer, nb_epochs=1, clip_grad=None, monitoring=0
        )

    return runs(train, lambda x: model(x)[2], other_rows)


def without(*packages: str) -> None:
    """Replace packages that are missing, and that the trainers never use."""
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = MagicMock(__path__=[], __spec__=ModuleSpec(name, None))


def tensors(work: Work):
    """The batches and the other rows."""
    return map(torch.from_numpy, work.data())


def set_weights(work: Work, *weights) -> None:
    """Set the weights, which some libraries store as `[D, H]`."""
    W = torch.from_numpy(work.weights())
    with torch.no_grad():
        for weight in weights:
            weight.copy_(W if weight.shape == W.shape else W.T)


def set_fused(optimizer, fused: bool) -> None:
    """Use PyTorch's fused Adam in an optimizer that a library has made."""
    for group in optimizer.param_groups:
        group["fused"] = fused


class Steps:
    """The batches of the next run, with the numbers of their steps."""

    def __init__(self, work: Work, batches):
        self.work, self.batches, self.first = work, batches, 0

    def __iter__(self):
        steps = range(self.first, self.first + self.work.num_steps)
        self.first = steps.stop
        return ((step, self.batches[step % len(self.batches)]) for step in steps)


def runs(train, reconstruct, other_rows):
    """A run that trains; its result is the FVU on other rows."""

    def evaluate() -> float:
        with torch.no_grad():
            return fvu(other_rows.numpy(), reconstruct(other_rows).numpy())

    def run():
        train()
        return evaluate

    return run
