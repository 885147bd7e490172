"""Documents of any length, read as streams by rows that go on independently; questions are asked on the way, and the memory goes on as if
they had not been.

A row reads whole segments. Where a question is due, the rest of its segment (less than one) and the question are read on top of the
memory, an answer is decoded greedily, and the memory stays what it was. A row that is through with its document takes the next one at
once. What is held is the memory state of the rows and the tokens of one call of the model, whatever the lengths.

Every call reads the same number of segments in every row, one of few numbers, without padding: so a row's arithmetic does not depend on
what stands beside it.
"""

import dataclasses
import functools
import io
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from armt_jax.generation import generate
from armt_jax.model import ModelConfig
from armt_jax.nn.placement import on_mesh
from armt_jax.parallel.mesh import BATCH_AXES, batch_sharding, replicated
from armt_jax.recurrence.schedules import GridState
from armt_jax.telemetry import jsonl
from armt_jax.training import step as steps
from armt_jax.training.carried import carried_shardings

QUESTIONS = ("running", "apart")
# A call reads so many segments: each number is compiled once.
_GROWTH = 4
# Timing the schedules pays where more calls than this are ahead.
_WORTH_TIMING = 20
_MAGIC = b"armt-stream-1\n"


class Question(NamedTuple):
    """Asked behind the first `end` tokens."""

    end: int
    ids: np.ndarray


class Document(Protocol):
    """What a row reads. questions: in the order of their ends."""

    questions: tuple[Question, ...]

    def read(self, start: int, stop: int) -> np.ndarray:
        """int32 ids [start, stop)."""


class Answer(NamedTuple):
    """key, number: of the document, and of its question. ids: generated. tokens_per_s: of all rows, since the document was begun."""

    key: int
    number: int
    ids: np.ndarray
    tokens_per_s: float


@dataclasses.dataclass
class Row:
    """What one row is at. position: segments read. asked: questions answered. began: (time, tokens of all rows by then)."""

    key: int
    document: Document
    position: int = 0
    asked: int = 0
    began: tuple[float, int] = (0.0, 0)


class Compiled(NamedTuple):
    """The model's parts under one schedule, for a number of rows; every one takes the parameters first."""

    empty: Callable
    renew: Callable
    ingest: Callable
    commit: Callable


@functools.lru_cache(maxsize=32)
def _compile(model: ModelConfig, rows: int, mesh, state_at) -> Compiled:
    graphdef, _ = steps.abstract_model(model)

    @on_mesh(mesh)
    def ingest(params, state, tokens):
        return nnx.merge(graphdef, params).ingest(tokens, state)

    def renewed(params, state: GridState, fresh_B) -> GridState:
        empty = nnx.merge(graphdef, params).init_state(rows)

        def pick(axis):
            return lambda new, old: jnp.where(fresh_B.reshape((1,) * axis + (-1,) + (1,) * (old.ndim - axis - 1)), new, old)

        return GridState(jax.tree.map(pick(1), empty.layers, state.layers), jax.tree.map(pick(0), empty.tokens, state.tokens))

    return Compiled(
        empty=jax.jit(lambda params: nnx.merge(graphdef, params).init_state(rows), out_shardings=state_at),
        renew=jax.jit(renewed, out_shardings=state_at, donate_argnums=1),
        ingest=jax.jit(ingest, out_shardings=state_at, donate_argnums=1),
        commit=jax.jit(lambda params, state, tokens, valid: nnx.merge(graphdef, params).ingest(tokens, state, valid_BxN=valid)),
    )


@jax.jit
def _pick(state: GridState, rows_B: jax.Array) -> GridState:
    take = lambda axis: lambda leaf: jnp.take(leaf, rows_B, axis=axis)
    return GridState(jax.tree.map(take(1), state.layers), jax.tree.map(take(0), state.tokens))


class Reader:
    """The compiled model, for a number of rows. It keeps no state.

    question: "running": a question goes on where the text ends; "apart": the text's last segment is committed as short as it is, and the
    question opens a fresh one.
    """

    def __init__(self, model: ModelConfig, params: Any, mesh, *, rows: int, schedule: str, new_tokens: int, end_id: int, question: str):
        if question not in QUESTIONS:
            raise ValueError(f"question = {question!r} must be one of {QUESTIONS}")
        self.rows, self.new_tokens, self.end_id, self.question = rows, new_tokens, end_id, question
        self.segment_length = model.recurrence.segment_length
        self.params = params
        plain = dataclasses.replace(model.recurrence, schedule="sequential", gradient="store", bptt_segments=None, align="left")
        self._config = dataclasses.replace(model, recurrence=plain)
        self.model = nnx.merge(steps.abstract_model(self._config)[0], params)
        parts = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
        self._mesh, divides = mesh, rows % parts == 0  # else every device computes all rows
        self._tokens_at = batch_sharding(mesh) if divides else replicated(mesh)
        self._state_at = carried_shardings(mesh).state if divides else replicated(mesh)
        self.use(schedule)

    def use(self, schedule: str) -> None:
        """Reads under this schedule from now on."""
        self.schedule = schedule
        recurrence = dataclasses.replace(self._config.recurrence, schedule=schedule)
        self._run = _compile(dataclasses.replace(self._config, recurrence=recurrence), self.rows, self._mesh, self._state_at)

    def empty(self) -> GridState:
        return self._run.empty(self.params)

    def renew(self, state: GridState, fresh_B: np.ndarray) -> GridState:
        """The memory emptied in the rows marked. (The old state's buffers are used up, here and in `ingest`.)"""
        return self._run.renew(self.params, state, fresh_B)

    def ingest(self, state: GridState, tokens_BxN: np.ndarray) -> GridState:
        """Reads whole segments."""
        return self._run.ingest(self.params, state, jax.device_put(tokens_BxN, self._tokens_at))

    def ask(self, state: GridState, rows: Sequence[int], rests: Sequence[np.ndarray], questions: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Answers of some rows, whose text goes on with `rests` (less than a segment). `state` is left as it is."""
        if self.question == "apart":
            state = self._committed(state, rows, rests)
            prompts = list(questions)
        else:
            prompts = [np.concatenate(pair) for pair in zip(rests, questions, strict=True)]
        out: list[np.ndarray | None] = [None] * len(rows)
        for length in sorted({len(prompt) for prompt in prompts}):
            where = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
            # As many rows as ever, so that all lengths share what `generate` compiles.
            filled = (where * self.rows)[: self.rows]
            picked = _pick(state, np.array([rows[i] for i in filled]))
            tokens = np.stack([prompts[i] for i in filled]).astype(np.int32)
            found = generate(self.model, tokens, picked, max_new_tokens=self.new_tokens, end_token=self.end_id).tokens_BxG
            for i, ids in zip(where, np.asarray(found), strict=False):
                out[i] = ids
        return out

    def _committed(self, state: GridState, rows: Sequence[int], rests: Sequence[np.ndarray]) -> GridState:
        """With short last segments in memory. A row without one is left as it is."""
        shape = (self.rows, self.segment_length)
        tokens, valid = np.zeros(shape, np.int32), np.zeros(shape, bool)
        for row, rest in zip(rows, rests, strict=True):
            tokens[row, : len(rest)], valid[row, : len(rest)] = rest, True
        return self._run.commit(self.params, state, tokens, valid)

    def tokens_per_s(self, schedule: str, segments: int) -> float:
        """A timing of this schedule, without its compilation."""
        self.use(schedule)
        tokens = np.zeros((self.rows, segments * self.segment_length), np.int32)
        state, seconds = jax.block_until_ready(self.ingest(self.empty(), tokens)), []
        for _ in range(2):
            start = time.perf_counter()
            state = jax.block_until_ready(self.ingest(state, tokens))
            seconds.append(time.perf_counter() - start)
        return tokens.size / min(seconds)


def schedules_for(model: ModelConfig) -> tuple[str, ...]:
    """Those that this model can run under."""
    local = model.memory.layer_class.layer_local and model.memory.token_class.layer_local
    return ("sequential", "diagonal") if local else ("sequential",)


def choose_schedule(reader: Reader, model: ModelConfig, wanted: str, segments: int, segments_ahead: int) -> dict[str, float]:
    """Sets the reader's schedule: the one wanted, or for "auto" the faster one.

    Args:
        segments: of a call. segments_ahead: of the longest document; with few the sequential one is taken untimed.

    Returns:
        Tokens per second of those that were timed.
    """
    possible = schedules_for(model)
    if wanted != "auto":
        if wanted not in possible:
            raise ValueError(f"evaluation.schedule = {wanted!r} needs layer-local memory, which this model lacks: use 'auto'")
        reader.use(wanted)
        return {}
    if len(possible) == 1 or segments_ahead < _WORTH_TIMING * segments:
        reader.use("sequential")
        return {}
    found = {name: round(reader.tokens_per_s(name, segments), 1) for name in possible}
    reader.use(max(found, key=found.get))
    return found


class Streams:
    """Reads documents, `reader.rows` of them at a time, and yields their answers.

    Args:
        open_document: from a key. todo: keys in order. segments_at_once: read by one call, at most.
        memory: False asks every question of an empty memory, and reads nothing but the question's own segment.
        clock: for tests.
    """

    def __init__(
        self, reader: Reader, open_document: Callable[[int], Document], todo: Sequence[int], *, segments_at_once: int = 64,
        memory: bool = True, clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self.reader, self.open_document, self.memory, self.clock = reader, open_document, memory, clock
        self.todo = list(todo)
        self.rows: list[Row | None] = [None] * reader.rows
        self.state = reader.empty()
        self.calls = [1]
        while self.calls[-1] * _GROWTH <= segments_at_once:
            self.calls.append(self.calls[-1] * _GROWTH)
        self.tokens_read = 0

    def __iter__(self) -> Iterator[Answer | None]:
        """Answers, and None after every call of the model: a place to save."""
        while True:
            self._fill()
            active = [row for row in self.rows if row is not None]
            if not active:
                return
            due = [i for i, row in enumerate(self.rows) if row is not None and self._ahead(row) == 0]
            if due:
                yield from self._answer(due)
                continue
            self._read(min(self._ahead(row) for row in active))
            yield None

    def _ahead(self, row: Row) -> int:
        """Whole segments before the row's next question."""
        if not self.memory:
            return 0
        return row.document.questions[row.asked].end // self.reader.segment_length - row.position

    def _fill(self) -> None:
        fresh = np.zeros(len(self.rows), bool)
        for i, row in enumerate(self.rows):
            if row is None and self.todo:
                key = self.todo.pop(0)
                self.rows[i] = Row(key, self.open_document(key), began=(self.clock(), self.tokens_read))
                fresh[i] = True
        if fresh.any():
            self.state = self.reader.renew(self.state, fresh)

    def _read(self, segments: int) -> None:
        T = self.reader.segment_length
        segments = max(n for n in self.calls if n <= segments)
        tokens = np.zeros((len(self.rows), segments * T), np.int32)
        for i, row in enumerate(self.rows):
            if row is not None:
                tokens[i] = row.document.read(row.position * T, (row.position + segments) * T)
                row.position += segments
                self.tokens_read += segments * T
        jax.block_until_ready(self.state)  # one call ahead at most: calls that wait hold their tokens
        self.state = self.reader.ingest(self.state, tokens)

    def _answer(self, due: list[int]) -> Iterator[Answer]:
        T, rests, asked = self.reader.segment_length, [], []
        for i in due:
            row = self.rows[i]
            end, ids = row.document.questions[row.asked]
            # Without memory nothing passes into the segment of a question that has its own.
            begin = end - end % T if self.memory or self.reader.question == "running" else end
            rests.append(row.document.read(begin, end))
            asked.append(ids)
        for i, ids in zip(due, self.reader.ask(self.state, due, rests, asked), strict=True):
            row = self.rows[i]
            seconds, tokens = self.clock() - row.began[0], self.tokens_read - row.began[1]
            yield Answer(row.key, row.asked, ids, tokens / seconds if seconds > 0 else 0.0)
            row.asked += 1
            if row.asked == len(row.document.questions):
                self.rows[i] = None

    # -- saving ----------------------------------------------------------------------------------------------------------

    def save(self, path: Path, identity: str) -> None:
        """Where every row stands, and its memory: one file, replaced when whole, with a checksum."""
        places = [None if row is None else [row.key, row.position, row.asked] for row in self.rows]
        meta = {"identity": identity, "schedule": self.reader.schedule, "rows": places}
        leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(jax.device_get(self.state)))}
        body = io.BytesIO()
        np.savez(body, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **leaves)
        content = body.getvalue()
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with jsonl.named_errors(path), temporary.open("wb") as file:
                file.write(_MAGIC + zlib.crc32(content).to_bytes(4, "big") + content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def resume(self, path: Path, identity: str, answered: Callable[[int, int], bool] = lambda key, asked: True) -> bool:
        """Goes on from a save of the same evaluation under the same schedule. Rows whose documents are no longer to do start anew, and so
        do those of which not all of the first questions that were asked are `answered(key, how many)`; False: there is no such save.

        With fewer rows than were saved, the documents of those beyond start from their beginning.
        """
        saved = _load(path)
        if saved is None or saved[0]["identity"] != identity:
            return False
        meta, leaves = saved
        if meta["schedule"] != self.reader.schedule:
            logging.warning(
                "%s was read under the schedule %r, and %r is wanted: the samples it stood in are read from their beginning", path,
                meta["schedule"], self.reader.schedule,
            )  # fmt: skip
            return False
        if len(leaves) != len(jax.tree.leaves(self.state)):
            return False
        there = [(i, place) for i, place in enumerate(meta["rows"]) if place is not None and place[0] in self.todo]
        kept = [(i, place) for i, place in there if answered(place[0], place[2])][: len(self.rows)]
        if not kept:
            return False
        old = jax.tree.unflatten(jax.tree.structure(self.state), leaves)
        new = jax.tree.map(np.array, jax.device_get(self.state))
        for row, (place, (key, position, asked)) in enumerate(kept):
            _copy_row(new, row, old, place)
            self.todo.remove(key)
            self.rows[row] = Row(key, self.open_document(key), position, asked, (self.clock(), 0))
        self.state = jax.device_put(new, jax.tree.map(lambda leaf: leaf.sharding, self.state))
        return True


def _copy_row(new: GridState, row: int, old: GridState, place: int) -> None:
    for to, origin in zip(jax.tree.leaves(new.layers), jax.tree.leaves(old.layers), strict=True):
        to[:, row] = origin[:, place]
    for to, origin in zip(jax.tree.leaves(new.tokens), jax.tree.leaves(old.tokens), strict=True):
        to[row] = origin[place]


def _load(path: Path) -> tuple[dict[str, Any], list[np.ndarray]] | None:
    if not path.exists():
        return None
    content = path.read_bytes()
    head, body = content[: len(_MAGIC)], content[len(_MAGIC) + 4 :]
    if head != _MAGIC or zlib.crc32(body).to_bytes(4, "big") != content[len(_MAGIC) : len(_MAGIC) + 4]:
        logging.warning("%s is damaged (wrong checksum): the samples it stood in are read from their beginning", path)
        return None
    with np.load(io.BytesIO(body)) as held:
        meta = json.loads(held["meta"].tobytes().decode())
        return meta, [held[str(i)] for i in range(len(held.files) - 1)]
