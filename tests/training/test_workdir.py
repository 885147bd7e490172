"""The folder of a run: locked while a process uses it, and tied to one config."""

import json
import os
import signal
import subprocess
import sys

import pytest

from armt_jax.training.workdir import FREE, WorkdirError, claim, flatten, locked, read_config

CONFIG = {
    "seed": 0,
    "memory": {"name": "armt", "d_mem": 4},
    "train": {"log_every": 5, "keep_last": 2, "tensorboard": True, "batch_size": 4, "stages": ({"steps": 8}, {"steps": 4})},
    "evaluation": {"batches": 1},
    "mesh": {"data": 1},
}


def with_(**sections):
    """CONFIG with these keys of its sections changed."""
    changed = {name: {**CONFIG[name], **part} if isinstance(part, dict) else part for name, part in sections.items()}
    return CONFIG | changed


# -- the lock ----------------------------------------------------------------------------------------------------------------


def test_a_workdir_in_use_is_refused_with_its_name_and_owner(tmp_path):
    with locked(tmp_path / "run"):
        with pytest.raises(WorkdirError) as error:
            with locked(tmp_path / "run"):
                pass
    assert str(tmp_path / "run") in str(error.value) and f"process {os.getpid()}" in str(error.value)


def test_the_lock_is_given_back_also_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), locked(tmp_path / "a" / "run"):
            raise KeyError
    with locked(tmp_path / "a" / "other"), locked(tmp_path / "a" / "run"):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path):
    script = (
        "import pathlib, sys\n"
        "from armt_jax.training.workdir import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(WorkdirError, match=f"process {holder.pid}"):
            with locked(tmp_path):
                pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with locked(tmp_path):
        pass


def test_a_workdir_that_cannot_be_made_is_refused_with_its_name(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match=str(tmp_path / "file" / "run")):
        with locked(tmp_path / "file" / "run"):
            pass


# -- the config --------------------------------------------------------------------------------------------------------------


def test_the_config_is_written_and_read_back(tmp_path):
    claim(tmp_path, CONFIG)
    assert read_config(tmp_path) == json.loads(json.dumps(CONFIG))
    claim(tmp_path, CONFIG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (with_(memory={"d_mem": 8}), ["memory.d_mem: 4 there, 8 now"]),
        (with_(seed=1), ["seed: 0 there, 1 now"]),
        (with_(train={"batch_size": 8}, memory={"name": "rmt"}), ["batch_size: 4 there, 8 now", "memory.name: 'armt' there, 'rmt' now"]),
        (with_(train={"stages": ({"steps": 8}, {"steps": 5})}), ["(train.stages[1].steps: 4 there, 5 now)"]),
        (with_(train={"accumulate": 2}), ["train.accumulate: None there, 2 now"]),
        ({name: part for name, part in CONFIG.items() if name != "memory"}, ["memory.d_mem: 4 there, None now"]),
    ],
)
def test_another_config_is_refused_naming_keys_and_both_values(tmp_path, now, said):
    claim(tmp_path, CONFIG)
    with pytest.raises(WorkdirError) as error:
        claim(tmp_path, now)
    assert all(part in str(error.value) for part in [str(tmp_path), *said]), error.value
    assert read_config(tmp_path) == json.loads(json.dumps(CONFIG)), "the refused config was written"


def test_what_changes_no_result_may_change(tmp_path):
    moved = {"data.path", "data.tokenizer_path", "data.cache_dir", "task.stories"}
    moved |= {f"task.background.{name}" for name in ("path", "tokenizer_path", "cache_dir")}
    of_train = {"log_every": 1, "keep_last": 9, "tensorboard": False, "data_workers": 2}
    assert set(FREE) == {f"train.{name}" for name in of_train} | {"evaluation", "mesh"} | moved
    now = with_(train=of_train, evaluation={"batches": 5}, mesh={"data": 2, "fsdp": 4})
    claim(tmp_path, CONFIG)
    claim(tmp_path, now)
    assert read_config(tmp_path) == json.loads(json.dumps(now))


def test_a_free_name_frees_nothing_that_begins_like_it(tmp_path):
    claim(tmp_path, CONFIG | {"meshes": 1})
    with pytest.raises(WorkdirError, match="meshes: 1 there, 2 now"):
        claim(tmp_path, CONFIG | {"meshes": 2})


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(WorkdirError, match=f"{tmp_path} is not a run's workdir: it has no config.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"seed": 0,')
    with pytest.raises(WorkdirError, match="not readable JSON"):
        read_config(tmp_path)


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}
