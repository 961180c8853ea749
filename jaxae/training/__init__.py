"""Training: one pure function per epoch, and the host loop around it."""

from jaxae.training.config import TrainConfig
from jaxae.training.run import Run
from jaxae.training.train_step import TrainState, epoch, init_state, step
from jaxae.training.trainer import train

__all__ = ["Run", "TrainConfig", "TrainState", "epoch", "init_state", "step", "train"]

# The names that are not public but that other packages of jaxae may import, by module
# (checked by tests/test_package.py). Why these packages need them:
# - batches, train_step: a sweep vmaps the training step of a single run;
# - checkpointing: a sweep resumes in the same way as a run;
# - checks: a sweep and the estimator check their arguments by the rules of `train`;
# - config: the command line has an option for each setting of `TrainConfig`;
# - diagnostics: the metrics of a lane are those of a single run;
# - run, trainer: the command line and the scikit-learn estimator call the phases of
#   `train` separately.
KERNEL = {
    module: set(names.split())
    for module, names in {
        "batches": "Data batches_of epoch_order fast_argsort num_rows num_steps "
        "order_bits shuffle_of",
        "checkpointing": "Pace fingerprint",
        "checks": "as_callbacks as_data as_hparams as_rows check_arguments "
        "check_hparams check_hparam_ranges check_rows check_updates names_read "
        "trace_custom_components",
        "config": "settings",
        "diagnostics": "as_metrics evaluate evaluate_block names_of_step probe remarks "
        "sum_blocks",
        "run": "PreparedRun RunState advice all_steps_skipped status_of warnings_of",
        "train_step": "INIT_SCALE INIT_SCALES Means TrainState data_key_of init_means "
        "init_state initial_params run_steps",
        "trainer": "execute open_checkpoints prepare start",
    }.items()
}
