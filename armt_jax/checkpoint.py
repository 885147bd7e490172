"""Checkpoints of one run: asynchronous, atomic, verified. The only file that imports orbax.

On disk, per step: `state`, the leaves as one flat mapping {name: array}, so that no container type has to survive the
trip; `record`, JSON: structure (name, dtype, shape) and checksum of every leaf, rank, the caller's meta, and a CRC of
it all. Orbax renames a finished step into place. What it does not notice and this file does: an empty step directory,
a flipped bit, another architecture.
"""

import dataclasses
import json
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding

from armt_jax import retention
from armt_jax.checksums import checksums, named_leaves
from armt_jax.damage import Damaged, brief, is_passing, together

PyTree = Any
FORMAT = 1
_SHOWN_DIFFERENCES = 5


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none that fits could be read."""


class DamagedCheckpoint(CheckpointError):
    """The one checkpoint that was asked for is damaged."""


class Restored(NamedTuple):
    step: int
    state: PyTree
    meta: dict


def _structure(leaves: dict[str, Any]) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()}


def _differences(saved: dict[str, str], wanted: dict[str, str]) -> list[str]:
    names = [name for name in wanted | saved if saved.get(name) != wanted.get(name)]
    return [f"{name}: saved {saved.get(name, 'nothing')}, wanted {wanted.get(name, 'nothing')}" for name in names]


def _crc(record: dict) -> int:
    return zlib.crc32(json.dumps({k: v for k, v in record.items() if k != "crc32"}, sort_keys=True).encode())


def _make_record(step: int, rank: float | None, leaves: dict[str, Any], meta: dict) -> dict:
    try:
        meta = json.loads(json.dumps(meta))  # also a copy, for the background thread
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"meta must be plain JSON (dict, list, str, number, bool, None): {error}; got {meta}"
        ) from error
    record = {"format": FORMAT, "step": step, "rank": rank, "meta": meta}
    record |= {"structure": _structure(leaves), "checksums": checksums(leaves)}
    return record | {"crc32": _crc(record)}


@dataclasses.dataclass
class _Retention(ocp.checkpoint_managers.PreservationPolicy):
    """Ranks are in our record, not in orbax's metrics: with one truncated metrics file it cannot open a directory."""

    steps_to_keep: Callable[[list[int]], set[int]]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        del context
        keep = self.steps_to_keep([info.step for info in checkpoints])
        return [info.step in keep for info in checkpoints]


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Never asked of JAX: the loop does (`processes.reached_stop`), and one count of questions is enough."""
        del step
        return False


def _with_sharding(name: str, leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else None
    if sharding is None and jax.process_count() > 1:
        raise ValueError(f"Leaf {name!r} of the target has no sharding: with several processes each leaf needs one")
    sharding = sharding or SingleDeviceSharding(jax.devices()[0])
    try:
        sharding.shard_shape(leaf.shape)
    except ValueError as error:  # else it would be taken for damage
        raise CheckpointError(f"{name} {list(leaf.shape)} of the target cannot lie on this mesh: {brief(error)}") from error
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


class Checkpoints:
    """Checkpoints of one run: async, atomic, newest complete one wins, best one kept.

    Every process of a job makes one and makes the same calls. One job writes to a directory; others read it with
    read_only (opening for writing removes leftovers of killed saves, and would take a save under way for one).
    """

    def __init__(
        self, directory: str | Path, *, keep_last: int = 2, async_save: bool = True, read_only: bool = False
    ) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last is {keep_last}, but the newest checkpoint must be kept: give 1 or more")
        remote = "://" in str(directory)
        self._directory = epath.Path(directory) if remote else epath.Path(directory).expanduser().absolute()
        self._keep_last = keep_last
        self._read_only = read_only
        self._pending: dict[int, float | None] = {}  # {step: rank} of the save whose end nobody has seen yet
        self._damaged: set[int] = set()  # as found by restore
        if not read_only:
            self._prepare_directory()
        options = ocp.CheckpointManagerOptions(
            create=False,
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=async_save,
            preservation_policy=_Retention(self._steps_to_keep),
        )
        self._manager = _Manager(self._directory, options=options)

    def _prepare_directory(self) -> None:
        directory, parent = self._directory, self._directory.parent
        if "://" not in str(directory) and not parent.is_dir():
            raise CheckpointError(
                f"Cannot keep checkpoints in {directory}: {parent} is no existing directory, create it"
            )
        probe = directory / f"write-probe-{jax.process_index()}"
        try:
            directory.mkdir(exist_ok=True)
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise CheckpointError(f"Cannot write to {directory}: {error}; give a writable directory") from error

    def _path(self, step: int) -> str:
        return str(self._directory / str(step))

    def save(self, step: int, state: PyTree, meta: dict, *, rank: float | None = None, wait: bool = False) -> None:
        """Saves in the background; the buffers of state may be donated as soon as this returns.

        rank: higher is better; None or not finite is never the best. Afterwards the newest keep_last and the best stay.
        A step that is there already stays as it is if it is identical. Otherwise, or if restore found it damaged, it is
        deleted and written again: meanwhile the run can fall back to the older ones only.
        """
        self._require_writable()
        if rank is not None and not math.isfinite(rank):
            logging.warning("Checkpoint %d has the rank %s, not a finite number: no candidate for the best", step, rank)
            rank = None
        step, rank = int(step), None if rank is None else float(rank)
        self.check_errors()
        leaves, _ = named_leaves(state)
        record = _make_record(step, rank, leaves, meta)  # waits for the checksums
        self.wait()
        if step in self.steps():
            if self._is_saved(step, record):
                return
            self._delete([step])
        self._damaged.discard(step)
        self._pending = {step: rank}
        filled = {name: leaf for name, leaf in leaves.items() if leaf.size}  # orbax refuses arrays of size 0
        items = ocp.args.Composite(state=ocp.args.StandardSave(filled), record=ocp.args.JsonSave(record))
        try:
            self._manager.save(step, args=items, force=True)  # force: when to save is the caller's decision
        except Exception as error:
            raise self._save_failed(error) from error
        if wait:
            self.wait()

    def _require_writable(self) -> None:
        if self._read_only:
            raise CheckpointError(f"{self._directory} was opened read_only: open it with read_only=False to change it")

    def check_errors(self) -> None:
        """Raises CheckpointError if a save in the background has failed; does not wait for one still under way."""
        # manager.check_for_errors() would steal the error from the thread that, seeing none, deletes old checkpoints
        if self._pending and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when the last save is complete on disk; raises CheckpointError if it failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._save_failed(error) from error
        self._pending = {}

    def _save_failed(self, error: Exception) -> CheckpointError:
        step, self._pending = max(self._pending, default=None), {}
        self._manager.reload()  # it has already struck out what it meant to delete
        last = self.latest_step()
        return CheckpointError(
            f"Saving checkpoint {step} into {self._directory} failed ({brief(error)}). If that disk is full or over "
            "its quota, free space and resume; "
            + (
                "there is no complete checkpoint yet"
                if last is None
                else f"the last complete checkpoint is step {last}"
            )
        )

    def _is_saved(self, step: int, record: dict) -> bool:
        try:
            same = together(lambda: self._read_record(step)) == record and step not in self._damaged
        except Damaged:
            return False
        if jax.process_count() == 1:
            return same
        # The record is process 0's, and its meta may name paths of that process's own; what follows all have to do together.
        return bool(multihost_utils.broadcast_one_to_all(np.asarray(same)))

    def _steps_to_keep(self, steps: list[int]) -> set[int]:
        ranks = self._ranks([step for step in steps if step not in self._pending and step not in self._damaged])
        return retention.steps_to_keep(steps, ranks | self._pending, self._damaged, max(self._pending), self._keep_last)

    def _delete(self, steps: list[int]) -> None:
        together(self._manager.reload)  # on all processes before one of them deletes
        for step in steps:
            self._manager.delete(step)

    def delete_after(self, step: int) -> None:
        """Removes the checkpoints newer than step: for a run that goes back there and on another way."""
        self._require_writable()
        self.wait()
        self._delete([newer for newer in self.steps() if newer > step])

    def steps(self) -> list[int]:
        """The steps complete on disk, oldest first. Whether their contents are sound, only restore finds out."""
        return sorted(ocp.utils.checkpoint_steps(self._directory)) if self._directory.is_dir() else []

    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the highest rank, the earliest of several; the latest step when none has a rank."""
        best = retention.best_step(self._ranks([step for step in self.steps() if step not in self._damaged], all_sound=True))
        return self.latest_step() if best is None else best

    def read_meta(self, step: int) -> dict:
        try:
            return together(lambda: self._read_record(step))["meta"]
        except Damaged as damage:
            raise self._is_damaged(step, damage) from damage

    def _ranks(self, steps: list[int], *, all_sound: bool = False) -> dict[int, float | None]:
        """Of those whose records can be read. all_sound: raises CheckpointError for one that cannot be read now, and might be the best."""
        ranks = {}
        for step in steps:
            try:
                ranks[step] = together(lambda step=step: self._read_record(step))["rank"]
            except Damaged as damage:
                if all_sound and damage.passing:
                    raise self._may_be_sound(step, damage) from damage
                logging.warning("Cannot rank the damaged checkpoint %s: %s", self._path(step), damage)
        return ranks

    def _read_record(self, step: int) -> dict:
        try:
            record = ocp.JsonCheckpointHandler().restore(self._directory / str(step) / "record")
            sound = record["crc32"] == _crc(record) and record["step"] == step
        except Exception as error:  # whatever a damaged file leads to
            raise Damaged(f"its record cannot be read ({brief(error)})", is_passing(error)) from error
        if not sound:
            raise Damaged("its record does not match its own CRC or step")
        if record["format"] != FORMAT:
            raise CheckpointError(
                f"{self._path(step)} has format {record['format']}, not {FORMAT}: use the code of its time"
            )
        return record

    def restore(self, target: PyTree | Callable[[dict], PyTree], *, step: int | Literal["last", "best"] = "last") -> Restored:
        """The checkpoint in the structure and on the shardings of target (ShapeDtypeStructs or arrays), as jax Arrays.

        A target may depend on the checkpoint: a function gets its meta and returns the target.

        "last" and "best" pass over damaged ones, with a warning, to the next newest or next best. A step given as a
        number must be sound. The checkpoint of another architecture is an error in any case: it is another run's. So is one that
        the file system does not let be read: it may be sound.
        """
        self.wait()
        tried = []
        for candidate in self._candidates(step):
            try:
                return Restored(candidate, *self._load(candidate, target))
            except Damaged as damage:
                if damage.passing:
                    raise self._may_be_sound(candidate, damage) from damage
                if step != candidate and jax.process_count() == 1 and candidate not in self.steps():
                    return self.restore(target, step=step)  # the run that writes here has deleted it meanwhile, and has others
                self._damaged.add(candidate)
                if candidate == step:
                    raise self._is_damaged(candidate, damage) from damage
                logging.warning("Skipping the damaged checkpoint %s: %s", self._path(candidate), damage)
                tried.append(f"step {candidate}: {damage}")
        raise CheckpointError(
            f"No checkpoint to restore ({step!r}) in {self._directory}: {'; '.join(tried) or 'there is none'}. "
            "Check the path, or start the run anew in an empty directory"
        )

    def _candidates(self, wanted: int | str) -> list[int]:
        newest_first = self.steps()[::-1]
        seen = np.uint32(_crc({"steps": newest_first}))
        if jax.process_count() > 1 and np.ptp(multihost_utils.process_allgather(seen)):
            raise CheckpointError(
                f"{self._directory} is not the same for all processes: put it on a shared file system"
            )
        if wanted == "last":
            return newest_first
        if wanted == "best":
            ranks = {step: rank for step, rank in self._ranks(newest_first, all_sound=True).items() if rank is not None}
            best_first = sorted(sorted(ranks), key=ranks.get, reverse=True)  # stable: the earliest of several
            return best_first + [step for step in newest_first if step not in ranks]
        if wanted not in newest_first:
            raise CheckpointError(
                f"No checkpoint {wanted!r} in {self._directory}: give one of {self.steps()}, 'last', 'best'"
            )
        return [wanted]

    def _load(self, step: int, target: PyTree | Callable[[dict], PyTree]) -> tuple[PyTree, dict]:
        record = together(lambda: self._read_record(step))
        target, treedef = named_leaves(target(record["meta"]) if callable(target) else target)
        if differences := _differences(record["structure"], _structure(target)):
            further = len(differences) - _SHOWN_DIFFERENCES
            raise CheckpointError(
                f"{self._path(step)} is the checkpoint of another architecture or optimizer. First differing leaves: "
                + "; ".join(differences[:_SHOWN_DIFFERENCES] + ([f"and {further} more"] if further > 0 else []))
                + ". Use the same --config as the run that wrote it, or another --workdir"
            )
        state = together(lambda: self._read_arrays(step, target))
        found, expected = checksums(state), record["checksums"]  # of the global arrays: the same on every process
        if wrong := [name for name in target if found[name] != expected[name]]:
            del state  # not kept alive by the traceback: an older one is about to be loaded
            raise Damaged(f"checksum mismatch in {len(wrong)} of {len(target)} leaves, the first is {wrong[0]}")
        return jax.tree.unflatten(treedef, [state[name] for name in target]), record["meta"]

    def _read_arrays(self, step: int, target: dict[str, Any]) -> dict[str, jax.Array]:
        wanted = {name: _with_sharding(name, leaf) for name, leaf in target.items()}
        filled = ocp.args.StandardRestore({name: leaf for name, leaf in wanted.items() if leaf.size})
        try:
            # Not manager.restore(): it ends at a barrier, where the others would wait for a process that found damage
            state = ocp.StandardCheckpointHandler().restore(self._directory / str(step) / "state", args=filled)
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise  # says nothing about the checkpoint
        except Exception as error:  # whatever a damaged file leads to
            raise Damaged(f"its arrays cannot be read ({brief(error)})", is_passing(error)) from error
        return state | {
            name: jnp.zeros(w.shape, w.dtype, device=w.sharding) for name, w in wanted.items() if not w.size
        }

    def _may_be_sound(self, step: int, damage: Damaged) -> CheckpointError:
        return CheckpointError(
            f"The checkpoint {self._path(step)} may be sound, but {damage}. Nothing was changed: see to the file system "
            "and start again. If it stays so, move that folder away, and the one before it is taken"
        )

    def _is_damaged(self, step: int, damage: Damaged) -> DamagedCheckpoint:
        remedy = f"give another of {self.steps()}, or 'last' for the newest sound one"
        return DamagedCheckpoint(f"The checkpoint {self._path(step)} is damaged: {damage}; {remedy}")

    def close(self) -> None:
        """Waits for the save under way; raises CheckpointError if it failed."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.close()
        except CheckpointError:
            if error is None:
                raise
            logging.exception("A checkpoint could not be saved, either")  # the first error goes on after this
