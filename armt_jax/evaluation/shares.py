"""A sweep spread over workers that know nothing of each other: each takes every N-th point, and writes a file of its own.

The folder's results are all files together. Whoever finds every point of the sweep done writes the report, so no worker waits.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from armt_jax.evaluation import report
from armt_jax.parallel.processes import gather_text, is_main
from armt_jax.telemetry import jsonl

T = TypeVar("T")

EARLIER = "results.earlier.jsonl"


@dataclasses.dataclass(frozen=True)
class Share:
    """Points index, index + count, ... of a sweep. The default is all of them; MERGE takes none, and wants all to be there."""

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise ValueError(f"--share={self.index}/{self.count} must be I/N with I from 0 to N-1")

    @classmethod
    def parse(cls, text: str) -> "Share":
        if not re.fullmatch(r"\d+/\d+", text):
            raise ValueError(f"--share={text} must be I/N, like 0/8 for the first of eight workers")
        return cls(*map(int, text.split("/")))

    def of(self, items: Sequence[T]) -> Sequence[T]:
        return items[self.index :: self.count]

    @property
    def file(self) -> str:
        return "results.jsonl" if self.count == 1 else f"results.share-{self.index}-of-{self.count}.jsonl"


class Merge(Share):
    def of(self, items: Sequence[T]) -> Sequence[T]:
        return items[:0]


ALL, MERGE = Share(), Merge()


class Results:
    """The results in a folder by identity, whichever share they were evaluated in.

    results.jsonl ends as those of the last evaluation alone. What it held of other points or another checkpoint goes on in
    results.earlier.jsonl, so that nothing is lost, or evaluated again when it is asked for again.
    """

    def __init__(self, directory: Path, share: Share):
        self.directory, self.share = directory, share
        if is_main():
            directory.mkdir(parents=True, exist_ok=True)
        self.done = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        """As process 0 sees them: all processes of a job must leave out the same points."""
        rows = []
        if is_main():
            paths = [self.directory / EARLIER, self.directory / "results.jsonl", *sorted(self.directory.glob("results.share-*-of-*.jsonl"))]
            rows = [row for path in paths if path.exists() for row in report.read_results(path)]
        return {row["id"]: row for row in json.loads(gather_text(json.dumps(rows))[0])}

    def add(self, row: Mapping[str, Any]) -> None:
        self.done[row["id"]] = dict(row)
        if is_main():
            report.append_result(row, self.directory / self.share.file)

    def complete(self, names: Sequence[str]) -> list[dict[str, Any]] | None:
        """The rows of these identities in order, with all others set aside; None while other shares have not finished theirs.

        Raises:
            ValueError: MERGE, and some are missing.
        """
        self.done |= self._read()
        missing = [i for i, name in enumerate(names) if name not in self.done]
        if missing and isinstance(self.share, Merge):
            raise ValueError(
                f"{len(missing)} of the {len(names)} points of the sweep are not in {self.directory} (numbers {missing[:8]} from 0, of "
                "this sweep and checkpoint): start their shares again, or evaluate them here by leaving --merge out"
            )
        if missing:
            return None
        if is_main():
            self._set_aside(names)
        return [self.done[name] for name in names]

    def _set_aside(self, names: Sequence[str]) -> None:
        """Copies the rows of results.jsonl that are none of these to the earlier ones."""
        held, earlier = (report.read_results(p) if p.exists() else [] for p in (self.directory / "results.jsonl", self.directory / EARLIER))
        others = [row for row in held if row["id"] not in names]
        if others:
            rows = {row["id"]: row for row in (*earlier, *others)}
            jsonl.replace_lines(self.directory / EARLIER, rows.values())
