"""`MLPRegressor(X, X)` of scikit-learn: untied, half the mean squared error."""

import warnings

from sklearn.neural_network import MLPRegressor

from benchmarks.one_model.work import Work


def train(**options):
    """`fit` from its own initial parameters."""
    work = Work(**options)
    X = work.data()
    model = MLPRegressor(
        hidden_layer_sizes=(work.latent_dim,),
        activation="logistic",
        solver=work.optimizer,
        alpha=0.0,
        batch_size=work.batch_size,
        learning_rate_init=work.learning_rate,
        max_iter=work.num_epochs,
        n_iter_no_change=work.num_epochs,
        momentum=0.0,
        nesterovs_momentum=False,
        random_state=0,
    )

    def run() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # stopped before it converged
            losses = model.fit(X, X).loss_curve_
        return work.input_dim * sum(losses) / len(losses)

    return run
