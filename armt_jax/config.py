"""The door: a loose ConfigDict in, frozen and checked dataclasses out. Nothing below reads a ConfigDict.

A config file's sections are the dataclasses' fields:

    seed
    backbone    name (or preset) + fields of that backbone
    memory      name + fields of that memory system
    recurrence  RecurrenceConfig        dtype
    init        InitConfig: the pretrained checkpoint to start from, if any
    task        name + fields of that task (of "babilong" with task.background, a section of its own); or, for a text,
    data        dataset + fields of CorpusConfig, stream + fields of that stream
    train       TrainConfig, with train.optimizer and train.stages
    evaluation  EvaluationConfig        mesh  MeshConfig

Resolving a config with `data` opens the corpus, and on its first use prepares it: so what is wrong with it is known before anything runs.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from armt_jax.data import STREAMS, CorpusConfig, DataError, TextSource
from armt_jax.data.babilong import BabilongBatches, BackgroundConfig
from armt_jax.data.sources import SOURCES
from armt_jax.fields import as_section, build, check_type, named, plain, suggestion
from armt_jax.memory.interface import MemoryConfig
from armt_jax.memory.presets import MEMORIES
from armt_jax.model import ModelConfig, RecurrenceConfig
from armt_jax.nn.backbones import BACKBONES, PRESETS, BackboneConfig
from armt_jax.nn.positions import RotaryScaling
from armt_jax.parallel.mesh import MeshConfig
from armt_jax.settings import EvaluationConfig, InitConfig, OptimizerConfig, Stage, TrainConfig
from armt_jax.tasks import TASKS, BatchSource


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment. `tasks`, `models`: of each stage of `train.stages`, in order; of an evaluation's point none. A text stands where a
    task does.

    Models share parameters. They differ at most in their segment length (without recurrence.segment_length each task brings its own) and in
    fields of the memory that a stage may change.
    """

    seed: int
    model: ModelConfig
    task: BatchSource
    tasks: tuple[BatchSource, ...]
    models: tuple[ModelConfig, ...]
    train: TrainConfig
    evaluation: EvaluationConfig
    mesh: MeshConfig
    init: InitConfig = InitConfig()

    def carries_memory(self, stage: int) -> bool:
        """Whether the memory state goes on from batch to batch in this stage's training."""
        return self.tasks[stage].carries_state or bool(self.train.stages[stage].keep_memory)


def resolve_backbone(fields: Mapping[str, Any]) -> BackboneConfig:
    fields = as_section("backbone", fields)
    preset = fields.pop("preset", None)
    if preset is not None:
        if preset not in PRESETS:
            raise ValueError(f"config: backbone.preset = {preset!r} is unknown{suggestion(preset, PRESETS)}")
        name, defaults = PRESETS[preset]
        if fields.setdefault("name", name) != name:
            raise ValueError(f"config: backbone.preset = {preset!r} is a {name!r}, but backbone.name = {fields['name']!r}: drop one")
        fields = {**defaults, **fields}
    kind, fields = named("backbone", fields, BACKBONES)
    if isinstance(fields.get("rotary_scaling"), Mapping):
        fields["rotary_scaling"] = build(RotaryScaling, fields["rotary_scaling"], "backbone.rotary_scaling")
    return build(kind, fields, "backbone")


def resolve_memory(fields: Mapping[str, Any]) -> MemoryConfig:
    return build(*named("memory", fields, MEMORIES), "memory")


# What `task.name` may say: tasks that are generated whole, and one that reads a text besides.
TASK_NAMES: dict[str, type[BatchSource]] = {**TASKS, BabilongBatches.name: BabilongBatches}
# Fields of "babilong" that stages share: others would be another experiment, under the wrong fingerprint.
BABILONG_DATA = ("background", "stories", "compat")


def resolve_task(fields: Mapping[str, Any], section: str = "task") -> BatchSource:
    kind, fields = named(section, fields, TASK_NAMES)
    if kind is BabilongBatches and "background" in fields:
        try:
            fields["background"] = build(BackgroundConfig, fields["background"], f"{section}.background")
        except DataError as error:
            raise DataError(f"config: {section}.background: {error} (--config.{section}.background.path=DIR)") from error
    return build(kind, fields, section)


# Fields of a corpus as the section `data` calls them.
CORPUS_FIELDS = {"dataset" if f.name == "name" else f.name: f for f in dataclasses.fields(CorpusConfig)}


def stream_fields(kind: type[TextSource]) -> tuple[str, ...]:
    """The keys of `data` that belong to a kind of stream."""
    return tuple(f.name for f in dataclasses.fields(kind) if f.name != "corpus")


def resolve_data(fields: Mapping[str, Any], segment_length: int | None = None, section: str = "data") -> TextSource:
    """A text as batches. segment_length: that of recurrence, None where it says nothing."""
    fields = as_section(section, fields)
    stream = fields.pop("stream", "contiguous")
    if stream not in STREAMS:
        raise ValueError(f"config: {section}.stream = {stream!r} is unknown{suggestion(stream, STREAMS)}")
    kind = STREAMS[stream]
    known = (*CORPUS_FIELDS, "stream", *stream_fields(kind))
    for name in fields:
        others = [other for other, k in STREAMS.items() if name in stream_fields(k)]
        if name not in known and others:
            raise ValueError(f"config: {section}.{name} belongs to {section}.stream = {others[0]!r}, not to {stream!r}: drop it")
        if name not in known:
            raise ValueError(f"config: unknown key {section}.{name}{suggestion(name, known)}")
    if "dataset" not in fields:
        raise ValueError(f"config: {section}.dataset is missing{suggestion('', SOURCES)}")
    own = {name: value for name, value in fields.items() if name not in CORPUS_FIELDS}
    _take_segment_length(own, segment_length, section)
    corpus = {name: value for name, value in fields.items() if name in CORPUS_FIELDS}
    for name, value in corpus.items():
        check_type(f"{section}.{name}", value, CORPUS_FIELDS[name].type)
    corpus = CorpusConfig(**{"name" if name == "dataset" else name: value for name, value in corpus.items()})
    return build(kind, {"corpus": corpus, **own}, section)


def _require_shared(changes: Mapping[str, Any], shared, section: str, kind: str) -> None:
    if fixed := [name for name in changes if name in shared]:
        raise ValueError(f"config: {section}.{fixed[0]} = {changes[fixed[0]]!r}: stages share their corpus; set {kind}.{fixed[0]} instead")


def _take_segment_length(fields: dict[str, Any], segment_length: int | None, section: str) -> None:
    """Rows of text are cut where the model cuts them. segment_length: that of recurrence, None where it says nothing."""
    if segment_length is not None and fields.setdefault("segment_length", segment_length) != segment_length:
        raise ValueError(
            f"config: {section}.segment_length = {fields['segment_length']} differs from recurrence.segment_length = {segment_length}: a "
            "text is cut where the model cuts it; set one of them alone"
        )


def _resolve_source(config: Mapping[str, Any], changes: Mapping[str, Any], section: str) -> BatchSource:
    """The config's task or text with some of its fields changed."""
    recurrence = as_section("recurrence", config.get("recurrence", {}))
    if "task" in config:
        task = {**as_section("task", config["task"]), **changes}
        if task.get("name") == BabilongBatches.name:
            _require_shared(changes, BABILONG_DATA, section, "task")
            _take_segment_length(task, recurrence.get("segment_length"), section)
        return resolve_task(task, section)
    # A stage of its own data would be another experiment, and carry the wrong fingerprint.
    _require_shared(changes, CORPUS_FIELDS, section, "data")
    return resolve_data({**as_section("data", config["data"]), **changes}, recurrence.get("segment_length"), section)


def resolve_model(config: Mapping[str, Any], task: BatchSource) -> ModelConfig:
    given = as_section("recurrence", config.get("recurrence", {}))
    recurrence = build(RecurrenceConfig, {"segment_length": task.segment_length, **given}, "recurrence")
    memory = resolve_memory(config.get("memory", {"name": "none"}))
    return ModelConfig(resolve_backbone(config["backbone"]), memory, recurrence, config.get("dtype", "float32"))


class StageChanges(NamedTuple):
    """What a stage changes in other sections: the task or text, and the memory."""

    source: dict[str, Any]
    memory: dict[str, Any]


def _train(config: Mapping[str, Any], kind: str) -> tuple[TrainConfig, list[StageChanges]]:
    """The section `train`, and what each stage changes elsewhere. kind: "task" or "data"."""
    fields = as_section("train", config["train"])
    optimizer = build(OptimizerConfig, fields.pop("optimizer", {}), "train.optimizer")
    stages, changes = [], []
    listed = fields.pop("stages", ())
    if not isinstance(listed, tuple):
        raise ValueError(f"config: train.stages = {listed!r} must be a list of stages, like [dict(steps=1000)]")
    for i, stage in enumerate(listed):
        stage = as_section(f"train.stages[{i}]", stage)
        changes.append(StageChanges(*(as_section(f"train.stages[{i}].{name}", stage.pop(name, {})) for name in (kind, "memory"))))
        stages.append(build(Stage, stage, f"train.stages[{i}]"))
    return build(TrainConfig, {**fields, "optimizer": optimizer, "stages": tuple(stages)}, "train"), changes


def _tasks(config: Mapping[str, Any], changes: list[StageChanges], kind: str) -> tuple[BatchSource, ...]:
    return tuple(_resolve_source(config, each.source, f"train.stages[{i}].{kind}") for i, each in enumerate(changes))


def _models(config: Mapping[str, Any], changes: list[StageChanges], tasks: tuple[BatchSource, ...]) -> tuple[ModelConfig, ...]:
    """The model of every stage: with the segments of its task, and what it changes in the memory."""
    models = []
    for i, (each, task) in enumerate(zip(changes, tasks, strict=True)):
        model = resolve_model(config, task)
        fixed = [name for name in each.memory if name not in model.memory.stage_fields]
        if fixed:
            allowed = ", ".join(model.memory.stage_fields) or "nothing"
            raise ValueError(
                f"config: train.stages[{i}].memory.{fixed[0]} = {each.memory[fixed[0]]!r}: stages share parameters and memory state, and "
                f"in {type(model.memory).__name__} one may change {allowed}; set memory.{fixed[0]} instead"
            )
        try:
            memory = resolve_memory({**as_section("memory", config.get("memory", {"name": "none"})), **each.memory})
        except ValueError as error:
            raise ValueError(f"config: train.stages[{i}]: {error}") from error
        models.append(dataclasses.replace(model, memory=memory))
    return tuple(models)


SECTIONS = ("seed", "backbone", "memory", "recurrence", "dtype", "init", "task", "data", "train", "evaluation", "mesh")


def resolve(config: Any) -> Config:
    """The experiment that a ConfigDict (or plain dict) describes.

    Raises:
        ValueError: an unknown or missing key, a wrong type, or values that do not fit together; the message names them. (DataError, a
            ValueError, where the data does not fit.)
    """
    config = plain(config)
    kind = _check_sections(config)
    task = _resolve_source(config, {}, kind)
    train, changes = _train(config, kind)
    tasks = _tasks(config, changes, kind)
    resolved = _assemble(config, task, train, tasks, _models(config, changes, tasks))
    _check_mesh(resolved)
    check = _check_text if isinstance(task, TextSource) else _check_babilong if isinstance(task, BabilongBatches) else _check_task
    check(resolved)
    for i, each in enumerate((task, *resolved.tasks)):
        _check_vocabulary(resolved.model, each, kind if i == 0 else f"train.stages[{i - 1}].{kind}")
    return resolved


def _assemble(
    config: Mapping[str, Any], task: BatchSource, train: TrainConfig, tasks: tuple[BatchSource, ...], models: tuple[ModelConfig, ...]
) -> Config:
    return Config(
        seed=config.get("seed", 0), model=resolve_model(config, task), task=task, tasks=tasks, train=train, models=models,
        evaluation=build(EvaluationConfig, config.get("evaluation", {}), "evaluation"),
        mesh=build(MeshConfig, config.get("mesh", {}), "mesh"), init=build(InitConfig, config.get("init", {}), "init"),
    )  # fmt: skip


def resolve_point(config: Any) -> Config:
    """As `resolve`, for one evaluation: `task` and `model` are those of the sections `task` or `data`. What stages change in them is of the
    training and would stand above what a point changes: there are no `tasks` and `models` of stages, and training need not fit.

    Raises:
        ValueError: as `resolve`.
    """
    config = plain(config)
    kind = _check_sections(config)
    train, _ = _train(config, kind)
    resolved = _assemble(config, _resolve_source(config, {}, kind), train, (), ())
    if not isinstance(resolved.task, (TextSource, BabilongBatches)):
        _check_task(resolved)
    _check_vocabulary(resolved.model, resolved.task, kind)
    return resolved


def _check_vocabulary(model: ModelConfig, source: BatchSource, where: str) -> None:
    if source.vocab_size > model.backbone.vocab_size:
        raise ValueError(
            f"config: {where} needs a vocabulary of {source.vocab_size}, more than backbone.vocab_size = {model.backbone.vocab_size}: "
            "raise backbone.vocab_size"
        )


def resolve_without_data(config: Any) -> Config:
    """As `resolve`, and a text is not opened: enough to compile a program. What is wrong with the text is not found."""
    config = plain(config)
    kind = _check_sections(config)
    train, changes = _train(config, kind)
    tasks = _tasks(config, changes, kind)
    models = _models(config, changes, tasks)
    mesh = build(MeshConfig, config.get("mesh", {}), "mesh")
    resolved = Config(config.get("seed", 0), models[0], tasks[0], tasks, models, train, EvaluationConfig(), mesh)
    _check_mesh(resolved)
    return resolved


def _check_sections(config: Mapping[str, Any]) -> str:
    """Which of "task" and "data" it has."""
    for name in config:
        if name not in SECTIONS:
            raise ValueError(f"config: unknown section {name}{suggestion(name, SECTIONS)}")
    for name in ("backbone", "train"):
        if name not in config:
            raise ValueError(f"config: section {name} is missing")
    if ("task" in config) == ("data" in config):
        found = "has both sections task and data" if "task" in config else "section task is missing, and so is data"
        raise ValueError(f"config: {found}: a run has a task, or (data) a text")
    check_type("seed", config.get("seed", 0), "int")
    if not 0 <= config.get("seed", 0) < 2**32:
        raise ValueError(f"config: seed = {config['seed']} must lie in 0..2**32 - 1")
    return "task" if "task" in config else "data"


def _check_mesh(config: Config) -> None:
    """What has to fit together between the mesh, the model and the batches. An axis of -1 is known only when the devices are."""
    mesh, train, layers = config.mesh.sizes, config.train, config.model.backbone.num_layers
    parts, stages = mesh["data"] * mesh["fsdp"], mesh["stage"]
    memory = config.model.memory
    if stages != 1 and not (memory.layer_class.layer_local and memory.token_class.layer_local):
        raise ValueError(
            f"config: mesh.stage = {stages} lets devices work on different segments at a time, which needs layer-local memory, and memory "
            f"{type(memory).__name__} is not: the stack's output for one segment enters the first layer of the next. Use mesh.stage = 1, "
            "or memory 'parallel_rmt'"
        )
    if stages > 1 and layers % stages:
        raise ValueError(f"config: mesh.stage = {stages} does not divide backbone.num_layers = {layers}: every stage holds equally many")
    for i, stage in enumerate(train.stages):
        rows = train.batch_of(stage)
        if -1 not in (mesh["data"], mesh["fsdp"]) and rows % (parts * train.accumulate):
            raise ValueError(
                f"config: a batch of {rows} rows (train.stages[{i}]) does not divide over mesh.data * mesh.fsdp = {parts} and "
                f"train.accumulate = {train.accumulate}, and every row keeps its place: make it a multiple of {parts * train.accumulate}"
            )


def _check_task(config: Config) -> None:
    if config.evaluation.batches is None:
        raise ValueError(f"config: evaluation.batches = None must be int: it reads a whole split, and task {config.task.name!r} has no end")
    if config.evaluation.split != "test":
        raise ValueError(f"config: evaluation.split = {config.evaluation.split!r} is for texts; tasks are evaluated on 'test'")


def _check_babilong(config: Config) -> None:
    """All labels are encoded, and a row of every size is made: missing files, facts that do not fit and tokenizers that do not serve are
    known before anything runs."""
    last = config.tasks[-1].segment_length
    if last != config.task.segment_length:
        raise ValueError(
            f"config: the last stage has task.segment_length = {last}, and task.segment_length = {config.task.segment_length}, with which "
            "the run is evaluated: end with that one, or set it to the stage's"
        )
    config.task.check_answers()
    for i, source in enumerate(config.tasks):
        for size in source.sizes:
            for split in ("train", "validation"):
                try:
                    dataclasses.replace(source, segments=size).batch(config.seed, 0, 1, split)
                except ValueError as error:
                    raise type(error)(f"config: train.stages[{i}], {size} segments, split {split!r}: {error}") from error


def _check_text(config: Config) -> None:
    """What has to fit together around a text."""
    train = config.train
    missing = [split for split in ("train", "validation") if split not in config.task.corpus.splits]
    if missing:
        raise ValueError(f"config: data.splits = {config.task.corpus.splits} lacks {missing[0]!r}: training needs 'train' and 'validation'")
    for i, (stage, source) in enumerate(zip(train.stages, config.tasks, strict=True)):
        where = f"train.stages[{i}]"
        if stage.stop_at is not None:
            raise ValueError(f"config: {where}.stop_at = {stage.stop_at} is an exact match, and a text has no answers: use patience")
        for split in ("train", "validation"):
            length, targets = source.row_length(source.size), source.num_targets(split)
            if length > targets:
                raise ValueError(
                    f"config: a row of data.segments = {source.segments} segments of {source.segment_length} tokens is longer than the "
                    f"{targets:,} targets of split {split!r}: shorten it"
                )


def override(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a plain config with dotted keys changed ({"task.pairs": 500}). A key whose section does not exist is an error."""
    out = json.loads(json.dumps(plain(config)))
    for key, value in changes.items():
        *sections, leaf = key.split(".")
        node = out
        for section in sections:
            if section not in node and section in (*SECTIONS, "optimizer"):
                node[section] = {}
            if section in node and not isinstance(node[section], dict):
                raise ValueError(f"config: override {key} = {value!r}: {section} is not a section that can be entered by name")
            if section not in node:
                raise ValueError(f"config: override {key} = {value!r}: there is no section {section}{suggestion(section, node)}")
            node = node[section]
        node[leaf] = value
    return plain(out)
