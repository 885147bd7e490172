"""Damage is noticed, and an older checkpoint is taken."""

import errno
import gc
import logging
import random
from pathlib import Path

import orbax.checkpoint as ocp
import pytest

from armt_jax.checkpoint import CheckpointError, Checkpoints
from tests.checkpoint.states import abstract, assert_same, large_state, small_state

# an array read that fails leaves an unfinished coroutine of orbax behind, which complains when it is collected
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def array_files(step_directory: Path) -> list[Path]:
    return sorted(
        (f for f in (step_directory / "state").rglob("*") if f.parent.name == "d"), key=lambda f: -f.stat().st_size
    )


def raw_restore(step_directory: Path, target):
    with ocp.CheckpointManager(step_directory.parent, options=ocp.CheckpointManagerOptions(create=False)) as manager:
        return manager.restore(
            int(step_directory.name), args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
        ).state


def flip_a_bit_that_orbax_does_not_notice(step_directory: Path, expected):
    file = array_files(step_directory)[0]
    good = file.read_bytes()
    assert len(good) > 40_000
    draw = random.Random(0)
    for _ in range(50):
        bad = bytearray(good)
        bad[draw.randrange(len(good) // 4, 3 * len(good) // 4)] ^= 1 << draw.randrange(8)
        file.write_bytes(bad)
        try:
            found = raw_restore(step_directory, expected)
        except Exception:  # noqa: BLE001, S112  this one orbax notices
            continue
        if int((found["w"] != expected["w"]).sum()) == 1:
            return
    raise AssertionError("no position found whose flipped bit orbax restores silently")


def truncate_arrays(step_directory: Path, expected):
    file = array_files(step_directory)[0]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(step_directory: Path, expected):
    for file in sorted(step_directory.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()


def change_record(step_directory: Path, expected):  # a valid JSON that would pass for another architecture
    file = step_directory / "record" / "metadata"
    text = file.read_text()
    assert "int32[128, 128]" in text
    file.write_text(text.replace("int32[128, 128]", "int32[128, 129]"))


def truncate_record(step_directory: Path, expected):
    file = step_directory / "record" / "metadata"
    file.write_bytes(file.read_bytes()[:50])


def remove_a_file(step_directory: Path, expected):
    (step_directory / "state" / "manifest.ocdbt").unlink()


DAMAGES = [
    flip_a_bit_that_orbax_does_not_notice,
    truncate_arrays,
    empty,
    change_record,
    truncate_record,
    remove_a_file,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, damage, caplog):
    directory = tmp_path / "c"
    with Checkpoints(directory) as store:
        for step in (1, 2):
            store.save(step, large_state(step), {"step": step}, rank=step)
    damage(directory / "2", large_state(2))
    with Checkpoints(directory) as store, caplog.at_level(logging.WARNING):
        for wanted in ("last", "best"):
            caplog.clear()
            restored = store.restore(abstract(large_state(0)), step=wanted)
            assert restored.step == 1 and restored.meta == {"step": 1}
            assert_same(restored.state, large_state(1))
            assert any(str(directory / "2") in m and "damaged" in m for m in caplog.messages), caplog.messages
        assert store.best_step() == 1
        with pytest.raises(CheckpointError, match=r"c/2 is damaged: .* or 'last' for the newest sound one"):
            store.restore(large_state(0), step=2)
        store.save(2, large_state(2), {"step": 2}, rank=2)  # the replay reaches the step again and repairs it
        assert_same(store.restore(large_state(0)).state, large_state(2))
    gc.collect()


def test_nothing_sound_left_names_everything_tried(tmp_path):
    directory = tmp_path / "c"
    with Checkpoints(directory) as store:
        with pytest.raises(CheckpointError, match=r"No checkpoint to restore \('last'\) in .*c: there is none"):
            store.restore(small_state(0))
        store.save(1, small_state(1), {})
    (directory / "2").mkdir()
    truncate_record(directory / "1", None)
    with Checkpoints(directory) as store, pytest.raises(CheckpointError, match="step 2: .*; step 1: .*"):
        store.restore(small_state(0))


def test_a_damaged_one_takes_nobodys_place(tmp_path):
    directory = tmp_path / "c"
    with Checkpoints(directory, keep_last=2) as store:
        for step in (1, 2, 9):
            store.save(step, large_state(step), {}, rank=step)
    truncate_arrays(directory / "9", None)
    with Checkpoints(directory, keep_last=2) as store:
        assert store.restore(large_state(0)).step == 2
        store.save(3, large_state(3), {}, rank=0, wait=True)
        assert store.steps() == [2, 3, 9]  # by number and rank alone 9 would have pushed 2 out
        store.save(10, large_state(10), {}, wait=True)
        store.save(11, large_state(11), {}, wait=True)
        assert store.steps() == [2, 10, 11]
    gc.collect()


def test_leftovers_of_a_killed_save_are_ignored_and_removed(tmp_path):
    directory = tmp_path / "c"
    with Checkpoints(directory) as store:
        store.save(1, small_state(1), {})
    leftover = directory / "2.orbax-checkpoint-tmp"
    (leftover / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    (leftover / "state.orbax-checkpoint-tmp" / "half").write_bytes(b"x" * 100)
    with Checkpoints(directory, read_only=True) as store:
        assert store.steps() == [1] and store.restore(small_state(0)).step == 1
    assert leftover.exists()  # a reader must not touch what may be a save under way
    with Checkpoints(directory) as store:
        assert store.steps() == [1] and store.restore(small_state(0)).step == 1
        store.save(3, small_state(3), {}, wait=True)
        assert store.steps() == [1, 3] and not leftover.exists()


def test_a_file_system_that_does_not_answer_is_not_damage(tmp_path, monkeypatch):
    """Else a run would delete its newest checkpoint because a server was away for a moment."""
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, small_state(step), {}, wait=True)
    read = ocp.StandardCheckpointHandler.restore

    def refuses(handler, directory, *args, **kwargs):
        if directory.parent.name == "2":
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(handler, directory, *args, **kwargs)

    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        with monkeypatch.context() as away:
            away.setattr(ocp.StandardCheckpointHandler, "restore", refuses)
            with pytest.raises(CheckpointError, match="checkpoints/2 may be sound.*Stale file handle.*start again"):
                checkpoints.restore(abstract(small_state(0)))
        assert checkpoints.restore(abstract(small_state(0))).step == 2


def test_the_best_checkpoint_is_not_another_one_while_its_record_cannot_be_read(tmp_path, monkeypatch):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step, rank in ((1, 0.9), (2, 0.5)):
            checkpoints.save(step, small_state(step), {}, rank=rank, wait=True)
    read = ocp.JsonCheckpointHandler.restore

    def refuses(handler, directory, *args, **kwargs):
        if directory.parent.name == "1":
            raise OSError(errno.EIO, "Input/output error")
        return read(handler, directory, *args, **kwargs)

    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        with monkeypatch.context() as away:
            away.setattr(ocp.JsonCheckpointHandler, "restore", refuses)
            for ask in (lambda: checkpoints.restore(abstract(small_state(0)), step="best"), checkpoints.best_step):
                with pytest.raises(CheckpointError, match="checkpoints/1 may be sound.*Input/output error"):
                    ask()
        assert checkpoints.restore(abstract(small_state(0)), step="best").step == 1 == checkpoints.best_step()


def test_a_checkpoint_deleted_while_it_is_read_gives_way_to_the_next_best(tmp_path, monkeypatch, caplog):
    with Checkpoints(tmp_path / "checkpoints") as writer:
        for step in (1, 2):
            writer.save(step, small_state(step), {}, rank=float(step), wait=True)
        read = ocp.StandardCheckpointHandler.restore

        def too_late(handler, directory, *args, **kwargs):
            if directory.parent.name == "2":
                writer._manager.delete(2)
            return read(handler, directory, *args, **kwargs)

        monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", too_late)
        with Checkpoints(tmp_path / "checkpoints", read_only=True) as reader:
            assert reader.restore(abstract(small_state(0)), step="best").step == 1
        assert "damaged" not in caplog.text
