"""The options of each verb: names, defaults, help."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainOptions:
    """Train an autoencoder on real data and write a run folder."""

    data: str = "digits"
    """digits, mnist, fashion_mnist, or a path to your own .npy or .npz of [N, D]."""
    array: str | None = None
    """The array to take from an .npz that holds several."""
    data_root: str | None = None
    """A folder to look in first for mnist and fashion_mnist."""
    divide_by: float | None = None
    """Divide the data by this. None: 16 for digits, 255 for images, 1 for your own."""
    test_fraction: float = 0.2
    """Rows held out for the test, where the data set has no test split of its own."""
    validation_fraction: float = 0.1
    """Rows held out for the validation curve."""

    latent_dim: int = 64
    """Number of latents H."""
    untied: bool = False
    """Give the decoder weights of its own, instead of the encoder's transposed."""
    activation: str = "sigmoid"
    """The encoder's g: sigmoid, tanh, relu, softplus, identity."""
    observation: str = "bernoulli"
    """What the data are: bernoulli (in [0, 1]), gaussian (real)."""
    bias_from_mean: bool = False
    """Start the output bias at the mean of the training data."""

    corruption: str | None = None
    """Denoising noise: masking, gaussian, salt_and_pepper; with --corruption-rate."""
    corruption_rate: float | None = None
    """Probability of a corrupted input; standard deviation for gaussian."""
    l1: float | None = None
    """Coefficient of the batch mean of sum |z|."""
    kl_sparsity: float | None = None
    """Coefficient of KL(target || mean activity), for sigmoid latents."""
    kl_sparsity_target: float | None = None
    """The target activity of --kl-sparsity."""
    contractive: float | None = None
    """Coefficient of the batch mean of ||dz/dx||_F^2."""
    weight_decay: float | None = None
    """Coefficient of the sum of squared weights."""

    optimizer: str = "adam"
    """adam, sgd, momentum, adamw, rmsprop."""
    learning_rate: float = 1e-3
    """The optimizer's step size."""
    momentum: float | None = None
    """For --optimizer momentum."""
    adamw_decay: float | None = None
    """For --optimizer adamw."""
    epochs: int = 20
    """Passes over the training data."""
    batch_size: int = 128
    """Examples a step."""
    gradient: str = "autodiff"
    """autodiff, or manual for the hand-derived one."""
    seed: int = 0
    """Of the split, the initial parameters, the order and the noise."""
    dtype: str = "float32"
    """Of parameters and computation: bfloat16, float32, float64."""

    out: str = "runs/train"
    """The run folder to write."""
    overwrite: bool = False
    """Replace the run that the folder holds."""
