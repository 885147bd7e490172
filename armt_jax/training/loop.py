"""The training loop: stages, validation, checkpoints, resume, clean stops.

A run is a pure function of its config: batches and random keys follow from the step, decisions from the checkpointed `Standing`. So a run
that is killed and started again gives bit for bit what it would have given.
"""

import dataclasses
import functools
import math
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging

from armt_jax.checkpoint import Checkpoints, DamagedCheckpoint
from armt_jax.config import Config
from armt_jax.interop.pretrained import load_parameters
from armt_jax.model import ModelConfig
from armt_jax.nn.attention import VARIABLE, cudnn_is_meant
from armt_jax.parallel.mesh import make_mesh, process_rows, put_batch
from armt_jax.parallel.processes import agree, is_main, reached_stop
from armt_jax.settings import OptimizerConfig
from armt_jax.tasks import Batch, BatchSource
from armt_jax.tasks.workers import BatchMaker
from armt_jax.telemetry.flops import model_flop_utilisation, peak_flops
from armt_jax.telemetry.progress import Progress, format_metric
from armt_jax.telemetry.timing import StepTimer
from armt_jax.telemetry.watchdog import StallWatchdog
from armt_jax.telemetry.writers import MetricWriter
from armt_jax.training import carried
from armt_jax.training import step as steps
from armt_jax.training.checks import check_batches, check_ids, check_init, check_rows_go_on
from armt_jax.training.curriculum import Standing
from armt_jax.training.optimizer import make_optimizer, restart_schedule
from armt_jax.training.restore import restore_target
from armt_jax.training.step import StepMetrics, TrainState
from armt_jax.training.stops import Interrupted, NonFiniteLoss, Preempted, sigterm
from armt_jax.training.workdir import agreed, held, keep_tokenizer
from armt_jax.version import __version__

# What a text's loss is shown as, beside itself.
TEXT_FIGURES = ("perplexity", "bits_per_byte", "bits_per_character")


def train(config: Config, raw: Mapping[str, Any], workdir: str | Path, watchdog: StallWatchdog | None = None) -> Standing:
    """Trains until the last stage is over, continuing what `workdir` holds.

    Args:
        config: resolved. raw: the plain config it came from; it is stored in the workdir and must be the same when continuing.
        watchdog: hears of every step and validation batch.

    Raises:
        JobError: the processes were started with different configs.
        WorkdirError, CheckpointError: the folder or what is in it cannot be used. NonFiniteLoss: the loss became NaN or infinite.
        Preempted: SIGTERM; the state is saved. ValueError: a stage keeps the memory of rows that do not go on.
    """
    check_rows_go_on(config)
    workdir = Path(workdir).absolute()
    data = {f"data of stage {i + 1}": task.fingerprint for i, task in enumerate(config.tasks)}
    program = {"version of armt_jax": __version__, "version of jax": jax.__version__, VARIABLE: os.environ.get(VARIABLE, "")}
    agree("configs", agreed(raw) | data | program)
    cudnn_is_meant()  # raises for a value that says nothing
    with held(workdir, raw), sigterm() as stop:
        if is_main() and config.task.tokenizer is not None:
            keep_tokenizer(workdir, config.task.tokenizer)
        with Checkpoints(workdir / "checkpoints", keep_last=config.train.keep_last) as checkpoints:
            run = Run(config, raw, workdir, checkpoints, stop, watchdog or StallWatchdog())
            try:
                return run.to_the_end()
            finally:
                run.close()


class Run:
    """One start of a training run: what the loop holds between steps."""

    def __init__(
        self, config: Config, raw: Mapping[str, Any], workdir: Path, checkpoints: Checkpoints, stop: threading.Event,
        watchdog: StallWatchdog,
    ):  # fmt: skip
        self.config, self.raw, self.checkpoints, self.stop, self.watchdog = config, raw, checkpoints, stop, watchdog
        self.mesh = make_mesh(config.mesh)
        check_batches(config, self.mesh)
        # Metrics of dispatched steps, and of finished ones that no log line has shown yet (part of every checkpoint).
        self.pending: list[tuple[int, StepMetrics]] = []
        self.window: list[tuple[int, StepMetrics]] = []
        self.standing, self.state = self._first_state()
        resumed = self.standing.step
        self.writer = MetricWriter(workdir, resume_step=resumed, enabled=is_main(), tensorboard=config.train.tensorboard)
        self.progress = Progress(self._last_step(), "step", initial=resumed, enabled=is_main())
        self.timer = StepTimer()
        self.maker = BatchMaker(config.train.data_workers)
        self.batches = self._batches()
        # Held by the run, not by the class: what they compiled goes when the run does.
        self.train_step, self.evaluation_step = functools.cache(self._train_step), functools.cache(self._evaluation_step)
        self.flops_per_step: dict[Any, int] = {}  # of a compiled step and the shape of its batch
        self._announce(resumed)

    def close(self):
        self.state = None  # the next run of this process needs the room
        self.batches.close()
        self.maker.close()
        self.progress.close()
        self.writer.close()

    def _last_step(self) -> int:
        """The step the run ends at, if no further stage ends early."""
        ahead = sum(stage.steps for stage in self.config.train.stages[self.standing.stage :])
        return self.standing.step - self.standing.stage_step + ahead

    # -- what depends on the stage ---------------------------------------------------------------------------------------

    @property
    def stage(self):
        return self.config.train.stages[self.standing.stage]

    @property
    def task(self) -> BatchSource:
        return self.config.tasks[self.standing.stage]

    @property
    def model(self) -> ModelConfig:
        return self.config.models[self.standing.stage]

    @property
    def batch_size(self) -> int:
        return self.config.train.batch_of(self.stage)

    @property
    def is_text(self) -> bool:
        """No answers to match: the loss is the figure."""
        return self.task.num_answers == 0

    @property
    def carries(self) -> bool:
        return self.config.carries_memory(self.standing.stage)

    def empty_memory(self, carries: bool) -> carried.Carried | None:
        """What the memory state starts from where batches carry it along."""
        return carried.fresh(self.model, self.batch_size, self.mesh) if carries else None

    def _batches(self) -> Iterator[Batch]:
        """This process's rows of the stage's batches, from where the run stands."""
        return self.maker.batches(
            self.task, seed=self.config.seed, split="train", batch_size=self.batch_size, rows=process_rows(self.batch_size, self.mesh),
            steps=range(self.standing.step, self.standing.step - self.standing.stage_step + self.stage.steps),
        )  # fmt: skip

    def optimizer_config(self, stage) -> tuple[OptimizerConfig, int]:
        """The stage's optimizer, and the length that its schedule needs to know."""
        optimizer = self.config.train.optimizer_of(stage)
        # A constant rate is the same for every length: stages then share one compiled step.
        return optimizer, max(1, optimizer.warmup_steps) if optimizer.schedule == "constant" else stage.steps

    def optimizer(self):
        return make_optimizer(*self.optimizer_config(self.stage))

    def _train_step(self, model: ModelConfig, optimizer: OptimizerConfig, length: int, num_answers: int, carries: bool):
        made = make_optimizer(optimizer, length)
        accumulate = self.config.train.accumulate
        return steps.make_train_step(model, made, self.mesh, num_answers=num_answers, accumulate=accumulate, carries=carries)

    def _evaluation_step(self, model: ModelConfig, num_answers: int, carries: bool):
        return steps.make_evaluation_step(model, self.mesh, num_answers=num_answers, carries=carries)

    # -- states ----------------------------------------------------------------------------------------------------------

    def _first_state(self) -> tuple[Standing, TrainState]:
        latest = self.checkpoints.latest_step()
        if latest is None:
            self.standing = Standing()
            params = self._first_params()
            opt_state = steps.create_opt_state(self.optimizer(), params, self.mesh)
            return self.standing, TrainState(params, opt_state, self.empty_memory(self.carries))
        restored = self.checkpoints.restore(restore_target(self.config, self.raw, self.mesh))
        # Newer ones, if any, are damaged: they would stand in the way of saving again.
        self.checkpoints.delete_after(restored.step)
        self.window = [(step, StepMetrics(*values)) for step, values in restored.meta["window"]]
        return Standing(**restored.meta["standing"]), restored.state

    def _first_params(self):
        model, seed, pretrained = self.config.model, self.config.seed, check_init(self.config)
        if pretrained is None:
            return steps.create_params(model, seed, self.mesh)
        return load_parameters(pretrained, model, steps.abstract_params(model, self.mesh), seed)

    def _enter_next_stage(self):
        """The next stage starts from the best parameters of this one. Of what it replaces nothing is held meanwhile: a model that only
        just fits would not pass."""
        best = self.standing.best_step
        if best not in (-1, self.standing.step):
            self.state = None
            target = restore_target(self.config, self.raw, self.mesh)
            try:
                self.state = self.checkpoints.restore(target, step=best).state
            except DamagedCheckpoint as error:
                self.progress.note(f"{error}. The next stage starts from the last step of this one, {self.standing.step}, instead")
                self.state = self.checkpoints.restore(target, step=self.standing.step).state
        params, opt_state, self.state = self.state.params, self.state.opt_state, None
        self.standing = self.standing.next_stage()
        self.batches.close()
        self.batches = self._batches()
        self.progress.set_total(self._last_step())
        if self.config.train.keep_optimizer:
            opt_state = restart_schedule(opt_state)
        else:
            del opt_state
            opt_state = steps.create_opt_state(self.optimizer(), params, self.mesh)
        self.state = TrainState(params, opt_state, self.empty_memory(self.carries))

    def save(self, *, wait: bool = False):
        self.settle()
        window = [(step, [float(x) for x in values]) for step, values in self.window]
        meta = {
            "standing": self.standing.to_json(), "seed": self.config.seed, "window": window, "data": self.task.fingerprint,
            "config": self.raw,
        }  # fmt: skip
        with self.timer.paused():
            self.checkpoints.save(self.standing.step, self.state, meta, rank=self.standing.rank, wait=wait)

    # -- the loop --------------------------------------------------------------------------------------------------------

    def to_the_end(self) -> Standing:
        last = len(self.config.train.stages) - 1
        while True:
            if not self.standing.due:
                if self.standing.finished:
                    if self.standing.stage == last:
                        break
                    self._enter_next_stage()
                self.one_step()
            self.after_step()
        self.checkpoints.wait()
        return self.standing

    def one_step(self):
        optimizer, length = self.optimizer_config(self.stage)
        with self.timer.data_wait():  # without `put_batch`, which waits for the steps under way wherever their queue is full
            host = next(self.batches)
        check_ids(host, self.model.backbone.vocab_size)
        batch = put_batch(host, self.mesh)
        self.state = self.state._replace(carried=self._starting_memory())
        made_of = self.model, optimizer, length, self.task.num_answers, self.carries
        step = self.train_step(*made_of)
        key = jax.random.fold_in(jax.random.key(self.config.seed), self.standing.step)
        if (program := (made_of, batch.tokens_BxN.shape)) not in self.flops_per_step:
            with self.timer.paused():  # the first call compiles: no time of it, and no tokens
                self.flops_per_step[program] = self._model_flops(batch)
                self.state, metrics = jax.block_until_ready(step(self.state, batch, key))
        else:
            self.state, metrics = step(self.state, batch, key)
            self.timer.tick(tokens=batch.tokens_BxN.size, flops=self.flops_per_step[program])
        self.standing = self.standing.stepped(self.stage)
        self.pending.append((self.standing.step, metrics))
        self.watchdog.beat()

    def _starting_memory(self) -> carried.Carried | None:
        """What this step's batch starts from. Inside of a row a text says itself where its memory is emptied."""
        share = self.stage.keep_memory
        if not self.carries or share is None:
            return self.state.carried
        return carried.renew_rows(self.state.carried, share, self.config.seed, self.standing.step, self.batch_size, self.mesh)

    def after_step(self):
        train, standing = self.config.train, self.standing
        validate = standing.stage_step % train.validate_every == 0 or standing.finished
        if not standing.due and (standing.step % train.log_every == 0 or validate):
            self.log()
        if validate:
            try:
                self.standing = standing.validated(self.stage, *self.validate())
            except Interrupted:
                self.standing = dataclasses.replace(standing, due=True)
                self._leave()
        is_best = self.standing.best_step == self.standing.step
        if is_best or self.standing.finished or standing.step % train.checkpoint_every == 0:
            self.save()
        self.checkpoints.check_errors()
        if self._asked_to_stop():
            self._leave()

    def _asked_to_stop(self) -> bool:
        return reached_stop() or self.stop.is_set()

    def _until_asked(self, batches: Iterator) -> Iterator:
        """The batches. Raises Interrupted where SIGTERM came; all processes ask at the same batches."""
        for batch in batches:
            if self._asked_to_stop():
                raise Interrupted
            yield batch

    def _leave(self):
        self.save(wait=True)
        self.progress.note(f"SIGTERM: saved step {self.standing.step}; the same command continues from there")
        raise Preempted

    # -- metrics ---------------------------------------------------------------------------------------------------------

    def settle(self):
        """Fetches the metrics of the dispatched steps into the window. Raises NonFiniteLoss for the first bad one."""
        pending = jax.device_get(self.pending)
        for step, m in pending:
            norms = {"gradient": m.gradient_norm, "update": m.update_norm}
            bad = [name for name, norm in norms.items() if not math.isfinite(norm)]
            if m.bad_segment >= 0 or bad:
                raise self._diverged(step, f"loss of segment {int(m.bad_segment)}" if m.bad_segment >= 0 else bad[0])
        self.window += pending
        self.pending = []

    def _diverged(self, step: int, what: str) -> NonFiniteLoss:
        self.checkpoints.wait()  # a save under way is a good one
        latest = self.checkpoints.latest_step()
        kept = "no checkpoint was saved yet" if latest is None else f"the last checkpoint is step {latest}"
        return NonFiniteLoss(
            f"step {step} (stage {self.standing.stage + 1}): the {what} is not finite; nothing was saved since, {kept}. "
            "The same command diverges again: lower train.optimizer.learning_rate, clip gradients, or set memory.key_norm = 'l2', in "
            f"another --workdir{self._other_attention(what)}"
        )

    def _other_attention(self, what: str) -> str:
        """A gradient alone that is not finite can be the attention kernel's doing."""
        if what != "gradient" or self.model.dtype == "float32" or not cudnn_is_meant():
            return ""
        return f"; or go on here with {VARIABLE}=xla, without cuDNN's attention"

    def log(self):
        self.settle()
        window, self.window = self.window, []
        if not window:
            return
        total = {name: sum(float(getattr(m, name)) for _, m in window) for name in ("loss", "weight", "right", "answers")}
        # A window of compilation alone has no rates.
        speed = {name: value for name, value in self.timer.flush().items() if not math.isnan(value)}
        flops = speed.pop("flops_per_step", 0)
        values = {
            "stage": self.standing.stage + 1, "size": self.task.size, **self.figures(steps.Totals(**total), "train"),
            "gradient_norm": float(window[-1][1].gradient_norm), **speed,
        }  # fmt: skip
        if flops and (used := model_flop_utilisation(flops, speed["seconds_per_step"], list(self.mesh.devices.flat))) is not None:
            values["mfu"] = used
        self.writer.write(self.standing.step, values)
        shown = {k: values[k] for k in ("loss", "exact_match", *TEXT_FIGURES, "tokens_per_s", "mfu") if k in values}
        stage = f"{self.standing.stage + 1}/{len(self.config.train.stages)}"
        self.progress.update(self.standing.step, stage=stage, **shown)

    def figures(self, total: steps.Totals, split: str) -> dict[str, float]:
        """The mean loss; of a task the share of exact matches, of a text perplexity and what else it is measured in."""
        loss = total.loss / max(total.weight, 1e-9)
        if self.is_text:
            return {"loss": loss, **(self.task.figures(total.loss, total.weight, split) if total.weight else {})}
        return {"loss": loss, "exact_match": total.right / max(total.answers, 1.0)}

    def validate(self) -> tuple[float | None, float]:
        """Exact match (None: a text) and loss on the same batches of the validation split every time, at the task's largest size."""
        task = self.task.largest()
        evaluate = self.evaluation_step(self.model, task.num_answers, task.carries_state)
        with self.timer.paused():
            batches = steps.read_batches(
                task, self.mesh, seed=self.config.seed, split="validation", batch_size=self.batch_size,
                batches=self.config.train.validation_batches, maker=self.maker,
            )  # fmt: skip
            memory = self.empty_memory(task.carries_state)
            batches = self._until_asked(self.watchdog.each(batches))
            total = steps.measure(evaluate, self.state.params, memory, batches, self.mesh)
        found = self.figures(total, "validation")
        if not math.isfinite(found["loss"]):
            raise self._diverged(self.standing.step, "validation loss")
        stage = self.standing.stage + 1
        values = {"stage": stage, "size": self.task.size} | {f"validation_{name}": value for name, value in found.items()}
        self.writer.write(self.standing.step, values)
        shown = " | ".join(format_metric(name, value) for name, value in found.items()) if self.is_text else f"{found['exact_match']:.3f}"
        self.progress.note(f"step {self.standing.step} | stage {stage} ({self.task.size_name} {self.task.size}) | validation {shown}")
        return found.get("exact_match"), found["loss"]

    def _model_flops(self, batch) -> int:
        """Of a training step; 0 where no peak is known to compare with."""
        if peak_flops(self.mesh.devices.flat[0]) is None:
            return 0
        return steps.model_flops(self.model, self.task.num_answers, self.state, batch)

    def _announce(self, resumed: int):
        count = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        mesh = " x ".join(f"{name} {size}" for name, size in self.mesh.shape.items() if size > 1) or "1 device"
        device = self.mesh.devices.flat[0].device_kind
        begun = f"continuing from step {resumed}" if resumed else "from scratch"
        memory = type(self.config.model.memory).__name__
        text = f"{memory}, {count:,} parameters, {jax.process_count()} process(es), {mesh} ({device}), {begun}"
        logging.info(text)
        self.progress.note(text)
