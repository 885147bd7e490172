"""What a checkpoint of a run is restored into. That depends on the checkpoint: a stage has its own number of rows that carry memory."""

from collections.abc import Callable, Mapping
from typing import Any

from armt_jax.config import Config
from armt_jax.data import check_fingerprint
from armt_jax.training import step as steps
from armt_jax.training.curriculum import Standing
from armt_jax.training.optimizer import make_optimizer
from armt_jax.training.step import TrainState
from armt_jax.training.workdir import WorkdirError, differences


def restore_target(config: Config, raw: Mapping[str, Any], mesh) -> Callable[[Mapping[str, Any]], TrainState]:
    """For `Checkpoints.restore`: from a checkpoint's meta to the shapes and shardings of its state. raw: the plain config of `config`.

    It raises WorkdirError for a checkpoint that was made with another config, and DataError for one that was made from other data, or
    with another tokenizer, than the config's.
    """
    # The optimizer state has the same structure in every stage, whatever its schedule and length.
    optimizer = make_optimizer(config.train.optimizer, 10**9)

    def target(meta):
        standing = Standing(**meta["standing"])
        if "config" not in meta:
            raise WorkdirError(f"the checkpoint of step {standing.step} holds no config: use the code of its time")
        if shown := differences(meta["config"], raw):
            raise WorkdirError(
                f"the checkpoint of step {standing.step} was made with another config ({shown}): use that config, which the "
                "checkpoint holds and config.json beside it should say, or another --workdir"
            )
        stage = standing.stage
        source = config.tasks[stage]
        if source.fingerprint is not None:
            check_fingerprint(meta["data"], source.fingerprint, "the checkpoint")
        rows = config.train.batch_of(config.train.stages[stage]) if config.carries_memory(stage) else None
        return steps.abstract_state(config.model, optimizer, mesh, rows)

    return target
