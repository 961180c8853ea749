"""Training: one pure function per epoch, and the host loop around it."""

from jaxae.training.config import TrainConfig
from jaxae.training.epochs import TrainState, epoch, init_state, step
from jaxae.training.host import train
from jaxae.training.loop import Run

__all__ = [
    "Run",
    "TrainConfig",
    "TrainState",
    "epoch",
    "init_state",
    "step",
    "train",
]

# The names that are not public but that other packages of jaxae may import, by module
# (checked by tests/test_package.py). Why these packages need them:
# - checks: `sweep` checks its arguments by the same rules as `train`;
# - config: the command line has an option for each setting of `TrainConfig`;
# - epochs: a sweep vmaps the training step of a single run;
# - diagnostics, evaluation: the metrics of a lane are those of a single run;
# - fingerprint, checkpointing: a sweep resumes in the same way as a run;
# - host: the command line calls the phases of `train` separately.
KERNEL = {
    "checkpointing": {"Pace"},
    "checks": {
        "as_data",
        "as_hparams",
        "as_rows",
        "check_arguments",
        "check_hparams",
        "check_numbers",
        "check_parts",
        "check_updates",
        "names_read",
    },
    "config": {"settings"},
    "diagnostics": {
        "as_metrics",
        "evaluate",
        "evaluate_block",
        "names_of_step",
        "remarks",
        "sum_blocks",
    },
    "epochs": {
        "INIT_SCALE",
        "INIT_SCALES",
        "Data",
        "Means",
        "TrainState",
        "batches",
        "data_key_of",
        "init_means",
        "init_state",
        "initial_params",
        "num_rows",
        "num_steps",
        "order_bits",
        "run_steps",
        "sorted_rows",
        "sorted_rows_on_host",
    },
    "evaluation": {"probe"},
    "fingerprint": {"fingerprint"},
    "host": {
        "PreparedRun",
        "advice",
        "all_steps_skipped",
        "execute",
        "open_checkpoints",
        "prepare",
        "start",
        "status_of",
    },
}
