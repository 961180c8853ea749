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

# Other packages of jaxae use the public names and these, by module, and nothing else
# (tests/test_package.py). Why they need them:
# - checks: `sweep` checks its arguments by the same rules as `train`;
# - config: the command line has an option for each setting of `TrainConfig`;
# - epochs: a lane of a sweep is traced from the same steps as a single run;
# - diagnostics, evaluation: the metrics of a lane are those of a single run;
# - fingerprint, checkpointing: a sweep is resumed as a run is;
# - host: the command line takes the steps of `train` one by one.
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
        "Data",
        "Means",
        "TrainState",
        "batches",
        "data_key_of",
        "init_means",
        "init_state",
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
