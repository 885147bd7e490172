"""Metrics of a run on disk: `metrics.jsonl` for programs and people, `tensorboard/` for TensorBoard.

TensorBoard files are written with tensorboardX, which needs no TensorFlow; it is imported only when a writer opens.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from armt_jax.telemetry import jsonl

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_DIR = "tensorboard"


class MetricWriter:
    """Writes scalars by step, in one process only, so that a run killed and restarted leaves no doubles.

    `enabled`: pass `jax.process_index() == 0`. A disabled writer takes the same calls, and touches neither files nor values.

    `resume_step`: the step of the checkpoint that the run continues from. Lines with a later step are dropped from
    metrics.jsonl (those steps will be run again), and so is a half-written last line; TensorBoard is told to hide what it
    has from those steps. None means a new run: metrics.jsonl left by an earlier one is kept as `metrics.old-N.jsonl`.

    `write` gives one JSON object a call: {"step": 200, "loss": 1.25, ...}. Values are numbers, zero-dimensional arrays
    (fetched from the device here) or strings (JSON only). NaN and infinities are `null` in the JSON, which has neither;
    TensorBoard gets them as they are. Every line is flushed: it survives a kill of the process.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        resume_step: int | None = None,
        enabled: bool = True,
        tensorboard: bool = True,
    ):
        self._file = None
        self._board = None
        if not enabled:
            return
        workdir = _local_path(workdir)
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            path = workdir / METRICS_FILE
            if resume_step is None:
                _set_aside(path)
            else:
                _drop_after(path, resume_step)
            self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed in close()
            if tensorboard:
                self._board = _open_tensorboard(workdir / TENSORBOARD_DIR, resume_step)
        except OSError as error:
            self.close()
            # OSError picks the subclass (PermissionError, ...) from errno.
            raise OSError(
                error.errno,
                f"cannot write metrics under workdir {str(workdir)!r} ({error.strerror}):"
                " it must be a folder this user may write to, on a disk with room. Choose another workdir",
                error.filename,
            ) from error

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs `values` for `step`. Several calls for one step give several lines."""
        if self._file is None:
            return
        if "step" in values:
            raise ValueError("values holds the key 'step', which is reserved for the step itself: rename that metric")
        step = int(step)
        values = {key: value if isinstance(value, str) else jsonl.scalar(value, key) for key, value in values.items()}
        with jsonl.named_errors(self._file.name):
            self._file.write(jsonl.encode_line({"step": step, **values}))
            self._file.flush()
            if self._board is not None:
                for key, value in values.items():
                    if not isinstance(value, str):
                        self._board.add_scalar(key, value, step)
                self._board.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._board is not None:
            self._board.close()
            self._board = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _local_path(workdir: str | os.PathLike) -> Path:
    text = os.fspath(workdir)
    if "://" in text:
        raise ValueError(
            f"workdir {text!r} is a URL, metrics can only be written to a file system:"
            " use a local or mounted folder for them and copy it afterwards"
        )
    return Path(text)


def _set_aside(path: Path) -> None:
    if not path.exists() or path.stat().st_size == 0:
        return
    number = 1
    while (target := path.with_name(f"{path.stem}.old-{number}{path.suffix}")).exists():
        number += 1
    os.replace(path, target)


def _drop_after(path: Path, resume_step: int) -> None:
    if not path.exists():
        return
    rows = jsonl.read_lines(path)
    jsonl.replace_lines(path, [row for row in rows if row.get("step", -math.inf) <= resume_step])


def _open_tensorboard(directory: Path, resume_step: int | None) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboardX is not installed, and TensorBoard output was asked for: pip install tensorboardX, or pass tensorboard=False"
        ) from error
    # TensorBoard hides events of this step and later that stand in earlier files of the folder.
    purge_step = 0 if resume_step is None else resume_step + 1
    return SummaryWriter(str(directory), purge_step=purge_step if directory.exists() else None)
