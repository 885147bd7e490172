"""Keys of a config changed from outside, as the command line does."""

import pytest

from armt_jax.config import override, plain, resolve
from armt_jax.parallel.mesh import MeshConfig
from tests.config.small import SMALL, without


def test_override_changes_a_copy():
    new = override(SMALL, {"task.pairs": 4, "train.optimizer.clip": "norm", "seed": 9})
    assert new["task"]["pairs"] == 4 and new["seed"] == 9
    assert new["train"]["optimizer"] == {"learning_rate": 1e-2, "clip": "norm"}  # a key that was not there yet
    assert SMALL["task"]["pairs"] == 2 and "clip" not in SMALL["train"]["optimizer"] and SMALL["seed"] == 3
    assert override(SMALL, {}) == plain(SMALL)


def test_override_of_an_unknown_section():
    with pytest.raises(ValueError, match=r"tsak\.pairs = 4.*did you mean 'task'\?"):
        override(SMALL, {"tsak.pairs": 4})
    with pytest.raises(ValueError, match=r"train\.optimiser\.clip"):
        override(SMALL, {"train.optimiser.clip": "norm"})


def test_override_of_a_section_left_to_its_defaults():
    changed = override(without("mesh"), {"mesh.data": 2})
    assert resolve(changed).mesh == MeshConfig(data=2)
    no_optimizer = without("train") | {"train": {"stages": [{"steps": 1}]}}
    assert resolve(override(no_optimizer, {"train.optimizer.clip": "norm"})).train.optimizer.clip == "norm"


def test_override_below_a_value_says_what_is_wrong():
    with pytest.raises(ValueError) as error:
        override(SMALL, {"train.stages.0": 1})
    assert "train.stages.0" in str(error.value) and "did you mean 'stages'" not in str(error.value)
