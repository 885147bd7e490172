"""JSON lines that survive a kill: one object per line, tolerant of the half line a `kill -9` leaves at the end.

JSON has no NaN and no infinity. Both are written as `null` (None when read), so any JSON reader can open the file.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def encode_line(row: Mapping[str, Any]) -> str:
    """One line of JSON, newline included. Scalars of NumPy and JAX become Python numbers; NaN and infinities null."""
    return json.dumps({str(key): _plain(value, str(key)) for key, value in row.items()}, allow_nan=False) + "\n"


def _plain(value: Any, key: str) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, key) for v in value]
    if not isinstance(value, float):
        value = scalar(value, key)
    return value if not isinstance(value, float) or math.isfinite(value) else None


def scalar(value: Any, key: str) -> int | float | bool:
    """The Python number in a number or in a zero-dimensional array of any library."""
    if isinstance(value, (bool, int, float)):
        return value
    if not hasattr(value, "item") or value.shape != ():
        found = f"shape {value.shape}" if hasattr(value, "shape") else f"type {type(value).__name__}"
        raise ValueError(f"value of {key!r} has {found}, it must be a scalar: reduce it, or log its parts by name")
    number = value.item()
    # bfloat16 and float8 scalars give Python floats already; anything else that is no number is refused here.
    if not isinstance(number, (bool, int, float)):
        raise TypeError(f"value of {key!r} is {number!r}, it must be a real number: convert it before logging")
    return number


def read_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """All rows of the file. Unreadable lines at the very end are dropped; one followed by readable lines is an error."""
    rows: list[dict[str, Any]] = []
    broken: int | None = None
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            row = _decode(line)
            if row is None:
                broken = broken or number
            elif broken is not None:
                raise ValueError(
                    f"{path}, line {broken} is not a JSON object, though readable lines follow it: only the end of the"
                    " file may be cut off (by a kill). Two processes may have written it at once; repair or move the file"
                )
            else:
                rows.append(row)
    return rows


def _decode(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None


def replace_lines(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes the whole file at once: a reader, or a crash, sees the old file or the new one and nothing between."""
    replace_text(path, "".join(encode_line(row) for row in rows))


@contextlib.contextmanager
def named_errors(path: str | os.PathLike) -> Iterator[None]:
    """A failed write says which file it was and what to do: the operating system's own error names none."""
    try:
        yield
    except OSError as error:
        reason = f"cannot write {os.fspath(path)} ({error.strerror}): see to that disk (space, quota) and start the same command again"
        raise OSError(error.errno, reason) from error


def replace_text(path: str | os.PathLike, text: str) -> None:
    """Atomic write through a temporary file in the same folder."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with named_errors(path), open(temporary, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def append_line(row: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Adds one row and waits until the disk has it. A half line left by an earlier kill is cut off first."""
    path = Path(path)
    line = encode_line(row)  # before touching the file: a row that cannot be written changes nothing
    path.parent.mkdir(parents=True, exist_ok=True)
    with named_errors(path), open(path, "a+b") as file:
        _repair_end(file)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def _repair_end(file: Any) -> None:
    """Leaves the file empty or ending in a newline: completes a whole last row, cuts off a half one."""
    if file.seek(0, os.SEEK_END) == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    content = file.read()
    start = content.rfind(b"\n") + 1
    if _decode(content[start:].decode("utf-8", errors="replace")) is not None:
        file.write(b"\n")  # append mode: always at the end
    else:
        file.truncate(start)
