"""The loop on a training step that adds 1 to every number of the state, so that a state tells by itself which steps it went through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from armt_jax.config import override, resolve
from armt_jax.parallel.mesh import make_mesh
from armt_jax.training import step as steps
from armt_jax.training.loop import Run, train
from armt_jax.training.step import StepMetrics
from tests.training.runs import CONFIG


class Counting:
    """What happened in runs whose training step adds 1 to every number of the state."""

    def __init__(self, monkeypatch, start):
        self.validations = {}  # step: exact match
        self.bad = {}  # step: what its metrics say instead
        self.entered = []  # (step, state) at the start of each later stage
        self.done = []  # steps, as they are done
        self.crash_at = None
        # Initial states without compiling: one for all runs, as their configs do not differ in it.
        monkeypatch.setattr(steps, "create_params", lambda *_: jax.tree.map(jnp.copy, start))
        monkeypatch.setattr(steps, "create_opt_state", lambda optimizer, params, _: optimizer.init(params))
        monkeypatch.setattr(steps, "make_train_step", lambda *_, **__: self.train_step)
        enter, after_step = Run._enter_next_stage, Run.after_step

        def recorded(run):
            enter(run)
            self.entered.append((run.standing.step, jax.tree.map(np.asarray, run.state)))

        def crashing(run):
            self.done.append(run.standing.step)
            after_step(run)
            if run.standing.step == self.crash_at:
                raise KeyboardInterrupt

        monkeypatch.setattr(Run, "_enter_next_stage", recorded)
        monkeypatch.setattr(Run, "after_step", crashing)
        monkeypatch.setattr(Run, "validate", lambda run: (self.validations.get(run.standing.step, 0.0), 1.0))

    def train_step(self, state, batch, key):
        values = dict.fromkeys(StepMetrics._fields, 1.0) | {"bad_segment": -1} | self.bad.get(len(self.done) + 1, {})
        state = jax.tree.map(lambda leaf: leaf if leaf.dtype == bool else leaf + 1, state)
        return state, StepMetrics(**{name: jnp.float32(value) for name, value in values.items()})

    def run(self, workdir, **changes):
        self.config = override(CONFIG, {key.replace("__", "."): value for key, value in changes.items()})
        return train(resolve(self.config), self.config, workdir)


@pytest.fixture(scope="session")
def start():
    """The initial parameters."""
    config = resolve(CONFIG)
    return steps.create_params(config.model, config.seed, make_mesh(config.mesh))


@pytest.fixture
def counting(monkeypatch, start):
    return Counting(monkeypatch, start)
