"""How a run trains and evaluates, as frozen checked dataclasses (the sections `train` and `evaluation` of a config)."""

import dataclasses
import math
from typing import Any

SCHEDULES = ("constant", "linear", "cosine")
DECAY_MASKS = ("matrices", "all")
CLIPS = ("none", "norm", "value")


def _check(holds: bool, name: str, value: Any, rule: str) -> None:
    if not holds:
        raise ValueError(f"train.optimizer.{name} = {value!r} {rule}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How parameters move.

    Attributes:
      learning_rate: peak rate; 0 freezes what it applies to.
      memory_learning_rate: peak rate of the memory parameters (see `is_memory_path`); None: `learning_rate`.
      schedule: what follows the warm-up: "constant", or down to `final_scale` of the peak, as a line or half a cosine.
      warmup_steps: steps of the rise from 0 to the peak, counted inside the length of the schedule.
      decay_steps: step at which "linear" and "cosine" arrive; they stay there. None: the steps of the stage.
      final_scale: share of the peak at the end of "linear" and "cosine".
      b1, b2, eps: Adam's.
      weight_decay: decoupled, per unit of learning rate.
      decay_mask: what decays: "matrices" (see `is_decayed`) or "all".
      clip: "norm" (one norm over all gradients), "value" (every entry) or "none".
      clip_at: the largest norm or absolute value after clipping.
    """

    learning_rate: float = 1e-3
    memory_learning_rate: float | None = None
    schedule: str = "constant"
    warmup_steps: int = 0
    decay_steps: int | None = None
    final_scale: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay_mask: str = "matrices"
    clip: str = "none"
    clip_at: float = 1.0

    def __post_init__(self):
        for name, allowed in (("schedule", SCHEDULES), ("decay_mask", DECAY_MASKS), ("clip", CLIPS)):
            value = getattr(self, name)
            _check(value in allowed, name, value, f"must be one of {', '.join(allowed)}")
        for name in ("learning_rate", "memory_learning_rate", "weight_decay"):
            value = getattr(self, name)
            if name == "memory_learning_rate" and value is None:
                continue
            _check(_is_number(value) and value >= 0, name, value, "must be a finite number >= 0; give 0 to switch it off")
        for name in ("b1", "b2"):
            value = getattr(self, name)
            _check(
                _is_number(value) and 0 <= value < 1,
                name,
                value,
                "must be in [0, 1); Adam's usual values are 0.9, 0.999",
            )
        for name in ("eps", "clip_at"):
            value = getattr(self, name)
            _check(_is_number(value) and value > 0, name, value, "must be a finite number > 0; clip='none' for no clipping")
        share = self.final_scale
        _check(_is_number(share) and 0 <= share <= 1, "final_scale", share, "must be in [0, 1]: it is a share of the peak")
        _check(is_count(self.warmup_steps, 0), "warmup_steps", self.warmup_steps, "must be an integer >= 0")
        if self.decay_steps is not None:
            rule = "must be an integer >= 1, or None for the steps of the stage"
            _check(is_count(self.decay_steps, 1), "decay_steps", self.decay_steps, rule)
            self.check_warmup(self.decay_steps)

    def check_warmup(self, length: int) -> None:
        schedule = f"the {self.schedule} schedule, {length} steps"
        rule = f"must be less than the length of {schedule}; shorten it or raise decay_steps"
        _check(self.schedule == "constant" or self.warmup_steps < length, "warmup_steps", self.warmup_steps, rule)


# Fields of the optimizer that a stage may set for itself.
STAGE_OPTIMIZER = ("learning_rate", "schedule", "weight_decay")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a curriculum. Besides these fields it may have `task`: fields of the config's task that it changes (`data`, of a text),
    and `memory`: the same of the memory system, where parameters and state stay what they are (`MemoryConfig.stage_fields`).

    Attributes:
        steps: optimizer steps at most.
        stop_at: the stage ends early once a validation reaches this exact match; None: never.
        patience: the stage ends early after this many validations without a better one; None: never.
        batch_size: of this stage; None: train.batch_size.
        learning_rate, schedule, weight_decay: of this stage; None: those of train.optimizer.
        keep_memory: the share of rows, drawn anew every step, that go on with the memory which the row in their place ended with in the
            batch before (no gradient crosses); the others start empty. A model so trained meets empty memories, and memories as full as
            only rows 1 / (1 - keep_memory) times as long would make them. Validation starts empty. None: all rows go on in a contiguous
            text, and none in a generated task.
    """

    steps: int
    stop_at: float | None = None
    patience: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    schedule: str | None = None
    weight_decay: float | None = None
    keep_memory: float | None = None

    def __post_init__(self):
        if self.keep_memory is not None and not 0 <= self.keep_memory < 1:
            raise ValueError(f"stage keep_memory = {self.keep_memory} is a share of rows, and some must start empty: it must lie in [0, 1)")
        if self.schedule is not None and self.schedule not in SCHEDULES:
            raise ValueError(f"stage schedule = {self.schedule!r} must be one of {', '.join(SCHEDULES)}, or None")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"stage batch_size = {self.batch_size} must be at least 1, or None for train.batch_size")
        if self.steps < 1:
            raise ValueError(f"stage steps = {self.steps} must be at least 1")
        if self.stop_at is not None and not 0 < self.stop_at <= 1:
            raise ValueError(f"stage stop_at = {self.stop_at} is an exact match: it must lie in (0, 1]")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"stage patience = {self.patience} must be at least 1, or None")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Attributes:
    batch_size: rows per step, over all devices. accumulate: parts a batch is computed in, one after the other (same gradient).
    stages: the curriculum, in order. Every later stage starts from the best checkpoint of the one before.
    keep_optimizer: Adam's moments go on from stage to stage (the schedule starts anew all the same); otherwise each stage starts fresh.
    max_stage_steps: caps the steps of every stage, for a quick look at a long curriculum.
    log_every, validate_every, checkpoint_every: in steps. validation_batches: batches per validation. keep_last: checkpoints kept.
    data_workers: processes that make batches ahead; 0: the process that trains makes each, while the device computes the step before.
    """

    optimizer: OptimizerConfig
    stages: tuple[Stage, ...]
    batch_size: int = 64
    accumulate: int = 1
    keep_optimizer: bool = False
    max_stage_steps: int | None = None
    log_every: int = 50
    validate_every: int = 250
    validation_batches: int = 4
    checkpoint_every: int = 500
    keep_last: int = 2
    tensorboard: bool = True
    data_workers: int = 0

    def __post_init__(self):
        if not is_count(self.data_workers, 0):
            raise ValueError(f"train.data_workers = {self.data_workers!r} must be an integer >= 0; with 0 the run makes its batches itself")
        if not self.stages:
            raise ValueError("train.stages is empty: give at least one stage, for instance [dict(steps=1000)]")
        if self.max_stage_steps is not None:
            if self.max_stage_steps < 1:
                raise ValueError(f"train.max_stage_steps = {self.max_stage_steps} must be at least 1, or None")
            capped = tuple(dataclasses.replace(s, steps=min(s.steps, self.max_stage_steps)) for s in self.stages)
            object.__setattr__(self, "stages", capped)
        for name in (
            "batch_size", "accumulate", "log_every", "validate_every", "validation_batches", "checkpoint_every", "keep_last",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} = {getattr(self, name)} must be at least 1")
        for i, stage in enumerate(self.stages):
            batch = self.batch_of(stage)
            if batch % self.accumulate:
                raise ValueError(
                    f"train.accumulate = {self.accumulate} does not divide the batch of {batch} rows of train.stages[{i}]: change one"
                )
            try:
                optimizer = self.optimizer_of(stage)
                optimizer.check_warmup(stage.steps if optimizer.decay_steps is None else optimizer.decay_steps)
            except ValueError as error:
                raise ValueError(f"train.stages[{i}]: {error}") from error
            if stage.patience is not None and stage.steps < self.validate_every:
                raise ValueError(
                    f"train.stages[{i}].steps = {stage.steps} is less than train.validate_every = {self.validate_every}, "
                    "so its patience can never run out"
                )


    def batch_of(self, stage: Stage) -> int:
        return self.batch_size if stage.batch_size is None else stage.batch_size

    def optimizer_of(self, stage: Stage) -> OptimizerConfig:
        changes = {name: getattr(stage, name) for name in STAGE_OPTIMIZER if getattr(stage, name) is not None}
        return dataclasses.replace(self.optimizer, **changes)


MEMORY = ("on", "off")
EVALUATION_SPLITS = ("validation", "test")
STREAM_SCHEDULES = ("auto", "sequential", "diagonal")


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """What a run starts from.

    Attributes:
        path: the folder of a pretrained checkpoint (`armt_jax.interop.pretrained`), checked before anything runs; None: random weights.
    """

    path: str | None = None


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Attributes:
    batch_size: rows per batch. batches: batches per point of a sweep; None: the whole split (of a text, no other has an end).
    split: "test" or "validation".
    memory: "off" empties the memory before every segment, which shows what it is worth.

    Of task "babilong", whose samples are read as streams:
        lengths: tokens of a sample, or several lengths. facts_within: the facts stand in the first so many tokens, and one pass over the
            longest sample answers at every length; None: they are spread over each length, and each is a pass of its own.
        samples: of each task and length. batch_size: samples that are read side by side. (`batches` is not used.)
        schedule: "auto" takes the faster one by a short timing. segments_at_once: read by one call of the model, at most.
        save_every_s: seconds between saves of where a pass stands. new_tokens: of an answer, at most.
    """

    batch_size: int = 64
    batches: int | None = 8
    split: str = "test"
    memory: str = "on"
    lengths: int | tuple[int, ...] | None = None
    facts_within: int | None = None
    samples: int = 100
    schedule: str = "auto"
    segments_at_once: int = 64
    save_every_s: float = 60.0
    new_tokens: int = 10

    def __post_init__(self):
        for name in ("batch_size", "batches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"evaluation.{name} = {value} must be at least 1")
        for name, allowed in (("split", EVALUATION_SPLITS), ("memory", MEMORY), ("schedule", STREAM_SCHEDULES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"evaluation.{name} = {getattr(self, name)!r} must be one of {', '.join(allowed)}")
        for name in ("samples", "segments_at_once", "new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name} = {getattr(self, name)} must be at least 1")
        if self.save_every_s < 0:
            raise ValueError(f"evaluation.save_every_s = {self.save_every_s} must be at least 0")
        lengths = self.lengths if isinstance(self.lengths, tuple) else () if self.lengths is None else (self.lengths,)
        for length in lengths:
            if not is_count(length, 1):
                raise ValueError(f"evaluation.lengths = {self.lengths!r}: {length!r} must be a number of tokens, at least 1")
        if self.lengths == () or len(set(lengths)) < len(lengths):
            raise ValueError(f"evaluation.lengths = {self.lengths!r} must name at least one length, and each once")
        if self.facts_within is not None and not (lengths and 1 <= self.facts_within <= min(lengths)):
            raise ValueError(
                f"evaluation.facts_within = {self.facts_within} must lie in 1..{min(lengths, default=0)}, the shortest of "
                "evaluation.lengths"
            )
