"""Evaluation on BABILong: tasks x lengths, every sample a stream, every answer a line on disk at once.

Samples do not depend on the run: runs, seeds and memory systems answer the same questions. What is done is not done again, and a pass that
was killed goes on from the last place it saved (`evaluation.save_every_s`).

    DIR/samples.jsonl     a line an answer: task, length, index, story, output, three scores, tokens/s
    DIR/results.jsonl     a line for each task and length, of all sweeps of the checkpoint; also results.csv
    DIR/facts.md          answers by what became of the facts that they need (babilong_facts.py)
    DIR/schedules.jsonl   how each pass is read
    DIR/stream-*.state    where an unfinished pass stands
"""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from armt_jax.config import Config, override, resolve_point
from armt_jax.data import check_fingerprint
from armt_jax.data.babilong import BabilongBatches, BabilongSamples, Sample, score
from armt_jax.evaluation import babilong_facts, babilong_report, report
from armt_jax.evaluation.evaluate import Trained
from armt_jax.evaluation.shares import ALL, Share
from armt_jax.evaluation.streaming import Question, Reader, Streams, choose_schedule
from armt_jax.telemetry import jsonl
from armt_jax.telemetry.progress import Progress
from armt_jax.training.carried import remembers
from armt_jax.training.workdir import decisive

SCORES = ("strict", "official", "repaired")
# Of the passages and gaps of every evaluation.
SAMPLES_SEED = 0
_SHOW_EVERY_S = 10.0


@dataclasses.dataclass(frozen=True)
class Asked:
    """A sample as a document. length: of the sample at each question."""

    sample: Sample
    questions: tuple[Question, ...]

    def read(self, start: int, stop: int):
        return self.sample.read(start, stop)


@dataclasses.dataclass(frozen=True)
class Pass:
    """The samples of one task, read once: asked about at several lengths, or at one."""

    config: Config
    samples: BabilongSamples
    lengths: tuple[int, ...]

    def document(self, index: int) -> Asked:
        sample = self.samples.sample(index)
        return Asked(sample, tuple(Question(sample.context_end(length), sample.question_ids) for length in self.lengths))

    @property
    def indices(self) -> range:
        wanted, there = self.config.evaluation.samples, self.samples.count
        return range(wanted if there is None else min(wanted, there))

    def identity(self, trained: Trained, length: int) -> str:
        """Names answers: by all that they depend on, so not by how many samples there are, and how they are read."""
        settings, model, samples = self.config.evaluation, self.config.model, self.samples
        weights = [trained.step, decisive(trained.raw)]
        reads = [repr(model.backbone), repr(model.memory), model.recurrence.segment_length, model.dtype, self.config.task.question]
        asked = [samples.fingerprint, samples.task, samples.split, samples.compat, length, samples.facts_within]
        facts = [weights, reads, asked, settings.memory, settings.new_tokens]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=list).encode()).hexdigest()[:16]

    def facts(self, trained: Trained, length: int) -> dict[str, Any]:
        """What is known of a result before it is."""
        settings, task = self.config.evaluation, self.config.task
        return {
            "task": task.task, "length": length, "facts_within": self.samples.facts_within, "memory": settings.memory,
            "split": settings.split, "question": task.question, "max_facts": task.max_facts,
            "stories": "generated" if task.stories is None else "files", "seed": trained.config.seed,
        }  # fmt: skip


def passes(config: Config) -> list[Pass]:
    """One for each length; with `facts_within` one for all.

    Raises:
        ValueError: lengths that their facts do not fit, answers longer than `new_tokens`.
    """
    source, settings = config.task, config.evaluation
    longest = source.row_length(source.size) - 1
    lengths = (settings.lengths or longest,) if not isinstance(settings.lengths, tuple) else tuple(sorted(settings.lengths))
    within = settings.facts_within
    groups = [lengths] if within is not None else [(length,) for length in lengths]
    made = [Pass(config, source.samples(settings.split, max(group), SAMPLES_SEED, within), group) for group in groups]
    for each in made:  # every sample fits, or nothing is run
        for index in each.indices:
            sample = each.document(index).sample
            needed = len(sample.answer_ids) - 1  # the end token is not missed
            if needed > settings.new_tokens:
                raise ValueError(
                    f"evaluation.new_tokens={settings.new_tokens} is too few for the answer {sample.story.answer!r} ({source.task}, story "
                    f"{index}), which has {needed} tokens and would count as wrong: give at least {needed}"
                )
    return made


def run(
    trained: Trained, points: Sequence[Mapping[str, Any]], directory: Path, label: str, share: Share = ALL
) -> list[dict[str, Any]]:
    """Every point's passes, as far as they are not done; then tables and plots of all; returns a row for each task and length.

    Raises:
        ValueError: a share of the points is asked for.
    """
    if share is not ALL:
        raise ValueError("--share, --merge: an evaluation on BABILong is not shared yet; run it in one process")
    directory.mkdir(parents=True, exist_ok=True)
    # Every point is resolved before the first is run: a typo in the last one must not cost an hour.
    planned = []
    for point in points:
        config = point_config(trained, point)
        planned += [(each, point) for each in passes(config)]
    _require_places(trained, [each for each, _ in planned], label)
    path = directory / "results.jsonl"
    known, rows = {row["id"]: row for row in (report.read_results(path) if path.exists() else [])}, {}
    for each, point in planned:
        for row in run_pass(trained, each, directory):
            # Where all was answered before, how it was read is in the earlier row.
            row = known.get(row["id"], {}) | {"label": label, **row, "overrides": json.dumps(dict(point), default=list)}
            if row != known.get(row["id"]):
                report.append_result(row, path)
            rows[row["id"]] = row
    # Read again: another evaluation of the run may have added its own meanwhile.
    shown = _in_order(_all_results(report.read_results(path), list(rows.values()), trained.step))
    babilong_report.write(shown, directory)
    _write_facts({row["id"] for row in shown}, directory)
    return _in_order(rows.values())


def _write_facts(ids: set[str], directory: Path) -> None:
    lines = {(line["id"], line["index"]): line for line in jsonl.read_lines(directory / "samples.jsonl") if line["id"] in ids}
    cases = "".join(f"- {name}: {meaning}\n" for name, meaning in babilong_facts.CASES.items())
    heading = f"Right answers (strict) by what became of the facts that they need, when the text was cut into segments:\n\n{cases}\n"
    jsonl.replace_text(directory / "facts.md", heading + babilong_facts.table(list(lines.values())))


def _require_places(trained: Trained, planned: Sequence[Pass], label: str) -> None:
    """Raises ValueError where two results of a sweep would stand in one place of the table."""
    seen = set()
    for each in planned:
        for length in each.lengths:
            place = babilong_report.place({"label": label, **each.facts(trained, length)})
            if place in seen:
                task, kind, _, _ = place
                raise ValueError(
                    f"two points of the sweep are of {task}, {length:,} tokens, {kind!r}, and a table has one figure for them: make two "
                    "sweeps of it, and give each its own --out"
                )
            seen.add(place)


def _all_results(held: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """Those found, and those that the folder holds of earlier sweeps of the same checkpoint; of one place in the table the last."""
    own = [row for row in held if row["step"] == step]
    if len(own) < len(held):
        logging.warning("%d results of other checkpoints leave results.jsonl (their answers stay in samples.jsonl)", len(held) - len(own))
    return list({babilong_report.place(row): row for row in (*own, *found)}.values())


def _in_order(rows) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["task"], row["length"], row["facts_within"] or 0))


def show(trained: Trained, rows: Sequence[Mapping[str, Any]], directory: Path) -> str:
    """What a terminal shows of the rows."""
    trained_to = rows[0]["trained_to"]
    head = f"{trained.workdir.name}, checkpoint of step {trained.step}, trained to {trained_to:,} tokens; exact match in percent"
    found = babilong_report.table(babilong_report.beside(rows))
    return f"{head}\n{found}\nresults: {directory}/table.md, heatmap.png, results.csv, results.jsonl, samples.jsonl"


def point_config(trained: Trained, point: Mapping[str, Any]) -> Config:
    # Questions can be made up about qa1 alone; an evaluation makes none up.
    told = {} if point.get("task.task") in (None, trained.config.task.task) else {"task.questions": 1, "task.peeks": 0}
    config = resolve_point(override(trained.raw, told | dict(point)))
    if not isinstance(config.task, BabilongBatches):
        raise ValueError(f"config: override {dict(point)} makes another task of a run on {BabilongBatches.name!r}")
    now, then = config.task.opened().fingerprint, trained.config.task.opened().fingerprint
    check_fingerprint(now, then, f"the text of the point {dict(point)}")
    return config


def run_pass(trained: Trained, work: Pass, directory: Path) -> list[dict[str, Any]]:
    """The row of each length, after reading what is not answered yet."""
    ids = [work.identity(trained, length) for length in work.lengths]
    path = directory / "samples.jsonl"
    done = {(line["id"], line["index"]): line for line in jsonl.read_lines(path)} if path.exists() else {}
    todo = [index for index in work.indices if any((name, index) not in done for name in ids)]
    how = {}
    if todo:
        how = _read(trained, work, ids, todo, done, directory)
    return [_row(trained, work, length, [done[name, i] for i in work.indices], name, how) for length, name in zip(work.lengths, ids)]


def _read(trained: Trained, work: Pass, ids, todo: list[int], done: dict, directory: Path) -> dict[str, Any]:
    """Answers what is to do, into samples.jsonl and `done`; returns how it was read."""
    config, settings, codec = work.config, work.config.evaluation, work.config.task.codec
    memory = settings.memory == "on" and remembers(config.model)
    reader = _reader(trained, config, min(settings.batch_size, len(todo)))
    streams = Streams(reader, work.document, todo, segments_at_once=settings.segments_at_once, memory=memory)
    # Of all lengths: a save that was made with others stands elsewhere, and its questions have other numbers.
    of_pass = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]
    saved = directory / f"stream-{of_pass}.state"
    how: dict[str, Any] = {"rows": reader.rows}
    if memory:
        how["timed"] = _set_schedule(reader, work, streams.calls[-1], of_pass, _begun_under(work, ids, done), directory)
    how["schedule"] = reader.schedule
    streams.resume(saved, of_pass, lambda index, asked: all((name, index) in done for name in ids[:asked]))
    total = len(work.indices) * max(work.lengths)
    before = total - sum(max(work.lengths) - row_start(streams, index, reader.segment_length) for index in todo)
    name = f"{work.samples.task}, {report.format_size(max(work.lengths))}: token"
    progress, start = Progress(total, name, initial=before), time.monotonic()
    shown = stored = start
    for answer in streams:
        now = time.monotonic()
        if answer is not None:
            length, key = work.lengths[answer.number], (ids[answer.number], answer.key)
            if key not in done:  # one that was asked again after a kill has a line already
                done[key] = _line(work, length, answer, codec, reader, key[0])
                jsonl.append_line(done[key], directory / "samples.jsonl")
        elif settings.save_every_s and now - stored >= settings.save_every_s:
            streams.save(saved, of_pass)
            stored = time.monotonic()
        if now - shown >= _SHOW_EVERY_S:
            progress.update(min(before + streams.tokens_read, total), tokens_per_s=streams.tokens_read / (now - start))
            shown = now
    seconds = time.monotonic() - start
    progress.update(total, tokens_per_s=streams.tokens_read / seconds)
    progress.close()
    saved.unlink(missing_ok=True)
    return how | {"tokens_per_s": streams.tokens_read / seconds, "seconds": seconds}


def _begun_under(work: Pass, ids: Sequence[str], done: dict) -> str | None:
    """The schedule of the answers that there are of a length which lacks others; None: there are none."""
    begun = None
    for name in ids:
        there = [done[name, index]["schedule"] for index in work.indices if (name, index) in done]
        if 0 < len(there) < len(work.indices):
            begun = there[-1]
    return begun


def _set_schedule(reader: Reader, work: Pass, segments: int, of_pass: str, begun: str | None, directory: Path) -> dict[str, float]:
    """Sets the reader's schedule, and returns the speeds that it was chosen by. "auto" goes on with the one that a pass was begun under:
    timed anew after a kill, another could be the faster one, and schedules round differently.

    segments: of a call. begun: as the answers say, where nothing else is written down.
    """
    wanted, path = work.config.evaluation.schedule, directory / "schedules.jsonl"
    written = {line["id"]: line for line in jsonl.read_lines(path)} if path.exists() else {}
    before = written.get(of_pass, {"schedule": begun, "timed": {}})
    timed = before["timed"]
    if wanted == "auto" and before["schedule"] is not None:
        reader.use(before["schedule"])
    else:
        timed = choose_schedule(reader, work.config.model, wanted, segments, max(work.lengths) // reader.segment_length)
    now = {"id": of_pass, "schedule": reader.schedule, "timed": timed}
    if written.get(of_pass) != now:
        jsonl.append_line(now, path)
    return timed


def row_start(streams: Streams, index: int, segment_length: int) -> int:
    """Tokens of a document that need not be read again."""
    return next((row.position * segment_length for row in streams.rows if row is not None and row.key == index), 0)


def _reader(trained: Trained, config: Config, rows: int) -> Reader:
    task, settings = config.task, config.evaluation
    return Reader(
        config.model, trained.params, trained.mesh, rows=rows, schedule="sequential", new_tokens=settings.new_tokens,
        end_id=task.codec.end_id, question=task.question,
    )  # fmt: skip


def _line(work: Pass, length: int, answer, codec, reader: Reader, name: str) -> dict[str, Any]:
    sample, task = work.samples.sample(answer.key), work.samples.task
    story, end = sample.story, sample.context_end(length)
    output = codec.decode_answer(answer.ids)
    return {
        "task": task, "length": length, "index": answer.key, "question": story.question, "answer": story.answer, "output": output,
        **dataclasses.asdict(score(task, story.question, story.answer, output)), "facts": len(story.facts),
        "case": babilong_facts.case(sample, reader.segment_length, end, work.config.task.question),
        "facts_within": work.samples.facts_within, "schedule": reader.schedule, "tokens_per_s": round(answer.tokens_per_s, 1), "id": name,
    }  # fmt: skip


def _row(trained: Trained, work: Pass, length: int, lines: list[dict], name: str, how: dict[str, Any]) -> dict[str, Any]:
    mean = functools.partial(_mean, lines)
    return {
        **work.facts(trained, length), "exact_match": mean("strict"), "official": mean("official"), "repaired": mean("repaired"),
        "samples": len(lines), "step": trained.step, "trained_to": _trained_to(trained), **how, "id": name,
    }  # fmt: skip


def _trained_to(trained: Trained) -> int:
    """Tokens of the longest row of any stage: segments may grow from stage to stage."""
    return max(stage.row_length(max(stage.sizes)) for stage in trained.config.tasks)


def _mean(lines: Sequence[Mapping[str, Any]], score_name: str) -> float:
    return sum(line[score_name] for line in lines) / len(lines)
