"""What is checked before a run's first step, once the config is resolved."""

from armt_jax.config import Config
from armt_jax.data.windows import Windows
from armt_jax.interop.pretrained import Checkpoint, open_checkpoint
from armt_jax.parallel.mesh import check_rows
from armt_jax.recurrence.checks import check_targets, check_tokens
from armt_jax.tasks import Batch


def check_rows_go_on(config: Config) -> None:
    """Not part of `resolve`: an evaluation reads the same stages with windows."""
    for i, (stage, source) in enumerate(zip(config.train.stages, config.tasks, strict=True)):
        if isinstance(source, Windows) and stage.keep_memory:
            raise ValueError(
                f"config: train.stages[{i}].keep_memory = {stage.keep_memory} needs rows that go on where the ones before ended: "
                "data.stream must be 'contiguous', not 'windows'"
            )


def check_batches(config: Config, mesh) -> None:
    """Raises ValueError for a batch of any stage that does not divide over the mesh: now that the devices are known, and not when the
    stage's turn comes."""
    for i, stage in enumerate(config.train.stages):
        try:
            check_rows(config.train.batch_of(stage), config.train.accumulate, mesh)
        except ValueError as error:
            raise ValueError(f"config: train.stages[{i}]: {error}") from error


def check_ids(batch: Batch, vocab_size: int) -> None:
    """Raises ValueError for an id outside the vocabulary: inside the compiled step it would be taken for another token."""
    check_tokens(batch.tokens_BxN, vocab_size)
    check_targets(batch.targets_BxN, batch.weights_BxN, vocab_size)


def check_init(config: Config) -> Checkpoint | None:
    """The pretrained checkpoint that the config starts from, compared with its model. Raises ValueError naming what does not fit."""
    return None if config.init.path is None else open_checkpoint(config.init.path, config.model)
