"""Streams against documents read whole: the same answers, whatever stands beside them, and after a save."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from armt_jax.evaluation.streaming import Question, Reader, Streams, choose_schedule
from armt_jax.generation import generate
from armt_jax.memory.presets import MEMORIES
from armt_jax.model import MemoryTransformer, ModelConfig, RecurrenceConfig
from armt_jax.nn.backbones import GPT2, TransformerXL
from armt_jax.parallel.mesh import MeshConfig, make_mesh

T, VOCAB, END, NEW = 8, 40, 39, 3
FIELDS = {
    "armt": dict(num_memory_tokens=2, d_mem=8, key_norm="l2", value_std=None),
    "rmt": dict(num_memory_tokens=3),
    "transformer_xl": dict(cache_length=10),
    "none": dict(),
}
LENGTHS = (61, 24, 61, 5)


@dataclasses.dataclass
class Text:
    ids: np.ndarray
    questions: tuple[Question, ...]
    asked_for: list = dataclasses.field(default_factory=list)

    def read(self, start, stop):
        assert 0 <= start <= stop <= len(self.ids)
        self.asked_for.append(stop - start)
        return self.ids[start:stop]


def document(key, ends=None):
    rng = np.random.default_rng(key)
    length = LENGTHS[key % 4]
    ids = rng.integers(0, VOCAB - 1, length).astype(np.int32)
    # What differs between documents is the text. The longer question runs over the end of its segment.
    question = np.arange(3 + (key % 4 == 1) * 7, dtype=np.int32)
    return Text(ids, tuple(Question(end, question) for end in ends or (length,)))


@functools.cache
def model_of(memory, dtype="float32"):
    backbone = (TransformerXL if memory == "transformer_xl" else GPT2)(
        vocab_size=VOCAB, num_layers=2, width=16, num_heads=2, max_positions=32, kernel_std=None, embedding_std=1.0, tie_embeddings=False,
    )  # fmt: skip
    config = ModelConfig(backbone, MEMORIES[memory](**FIELDS[memory]), RecurrenceConfig(segment_length=T), dtype)
    return MemoryTransformer(config, rngs=nnx.Rngs(1))


@functools.cache
def reader(memory, rows, question="running", schedule="sequential", dtype="float32"):
    """A reader keeps no state, so tests may share its compiled parts."""
    model, mesh = model_of(memory, dtype), make_mesh(MeshConfig(data=1))
    return Reader(
        model.config, nnx.split(model)[1], mesh, rows=rows, schedule=schedule, new_tokens=NEW, end_id=END, question=question
    )  # fmt: skip


def answers(streams):
    return {(a.key, a.number): a.ids.tolist() for a in streams if a is not None}


def whole(model, text, number=0):
    end, question = text.questions[number]
    prompt = jnp.asarray(np.concatenate([text.ids[:end], question]))[None]
    return np.asarray(generate(model, prompt, max_new_tokens=NEW, end_token=END).tokens_BxG)[0].tolist()


KEYS = range(10)


@pytest.mark.parametrize("memory", FIELDS)
def test_a_stream_answers_as_the_whole_document_does(memory):
    found = answers(Streams(reader(memory, 4), document, KEYS, segments_at_once=4))
    assert found == {(key, 0): whole(model_of(memory), document(key)) for key in KEYS}
    # The check is worth something: other documents have other answers, and without memory all do.
    assert len({str(ids) for ids in found.values()}) > 3
    if memory in ("armt", "none"):
        forgotten = answers(Streams(reader(memory, 4), document, KEYS, segments_at_once=4, memory=False))
        assert (forgotten == found) == (memory == "none")


def test_streams_in_bfloat16(tmp_path):
    """The same answers as the whole document has, however many rows; the memory stays in float32, and a save keeps it."""
    four, keys = reader("armt", 4, dtype="bfloat16"), KEYS[:4]
    found = answers(Streams(four, document, keys, segments_at_once=4))
    assert found == {(key, 0): whole(model_of("armt", "bfloat16"), document(key)) for key in keys}
    streams = Streams(four, document, keys, segments_at_once=1)
    for answer in streams:
        if answer is None:
            break
    streams.save(tmp_path / "stream.state", "this")
    again = Streams(four, document, keys, segments_at_once=1)
    assert again.resume(tmp_path / "stream.state", "this") and any(row.position for row in again.rows)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(again.state))
    assert answers(again) == found


def test_answers_do_not_depend_on_the_rows_beside():
    found = [
        answers(Streams(reader("armt", rows), document, KEYS, segments_at_once=at_once)) for rows, at_once in ((1, 16), (3, 1), (4, 4))
    ]
    assert found[0] == found[1] == found[2] and len(found[0]) == len(KEYS)


def test_a_question_apart_opens_a_segment():
    model = model_of("armt")
    found = answers(Streams(reader("armt", 4, question="apart"), document, KEYS[:2], segments_at_once=4))
    for key in KEYS[:2]:
        text = document(key)
        state = model.ingest(jnp.asarray(text.ids)[None])  # a short last segment is committed as it is
        want = generate(model, jnp.asarray(text.questions[0].ids)[None], state, max_new_tokens=NEW, end_token=END).tokens_BxG
        assert found[key, 0] == np.asarray(want)[0].tolist(), key


def test_questions_on_the_way_leave_the_memory_alone():
    ends, keys = (5, 24, 61), (0, 2, 4)
    found = answers(Streams(reader("rmt", 4), lambda key: document(key, ends), keys, segments_at_once=4))
    assert found == {(key, i): whole(model_of("rmt"), document(key, ends), i) for key in keys for i in range(len(ends))}


def test_diagonal_answers_as_sequential():
    schedules = ("sequential", "diagonal")
    one, other = (answers(Streams(reader("armt", 4, schedule=name), document, KEYS, segments_at_once=4)) for name in schedules)
    assert one == other


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_a_save_is_gone_on_from(tmp_path, rows):
    """Saved after calls of the model with 3 rows; gone on with as many, fewer and more."""
    three, some, path = reader("armt", 3), reader("armt", rows), tmp_path / "stream.state"
    full = answers(Streams(three, document, KEYS, segments_at_once=1))
    for stop in (2, 11, 20):
        streams, found = Streams(three, document, KEYS, segments_at_once=1), {}
        for calls, answer in enumerate(streams):
            if answer is not None:
                found[answer.key, answer.number] = answer.ids.tolist()
            elif calls >= stop:
                streams.save(path, "this")
                break
        left = [key for key in KEYS if (key, 0) not in found]
        again = Streams(some, document, left, segments_at_once=1)
        assert again.resume(path, "this")
        begun = [row for row in again.rows if row is not None]
        assert begun and any(row.position for row in begun)
        more = answers(again)
        assert not more.keys() & found.keys() and found | more == full


def test_only_a_sound_save_of_the_same_evaluation_counts(tmp_path):
    path, four = tmp_path / "stream.state", reader("rmt", 4)
    assert not Streams(four, document, KEYS).resume(path, "this")
    streams = Streams(four, document, KEYS, segments_at_once=1)
    for answer in streams:
        if answer is None:
            break
    streams.save(path, "this")
    assert [file.name for file in tmp_path.iterdir()] == ["stream.state"]
    assert not Streams(four, document, KEYS).resume(path, "that")
    assert not Streams(reader("armt", 4), document, KEYS).resume(path, "this")
    sound = path.read_bytes()
    for damaged in (sound[:-9], sound[:99], b"", sound[:200] + bytes([sound[200] ^ 1]) + sound[201:]):
        path.write_bytes(damaged)
        assert not Streams(four, document, KEYS).resume(path, "this")
    path.write_bytes(sound)
    assert Streams(four, document, KEYS).resume(path, "this")


def test_a_save_under_another_schedule_does_not_decide(tmp_path):
    sequential, diagonal = (reader("armt", 4, schedule=name) for name in ("sequential", "diagonal"))
    path = tmp_path / "stream.state"
    for answer in (streams := Streams(sequential, document, KEYS, segments_at_once=1)):
        if answer is None:
            streams.save(path, "this")
            break
    assert not Streams(diagonal, document, KEYS).resume(path, "this") and diagonal.schedule == "diagonal"
    assert Streams(sequential, document, KEYS).resume(path, "this")


def test_what_is_held_does_not_grow():
    """The state has one size, and no read is longer than a call: of a document a thousand times as long, too."""
    four = reader("armt", 4)
    sizes, reads = set(), []
    for length in (16, 16_000):
        text = Text(np.arange(length, dtype=np.int32) % VOCAB, (Question(length, np.arange(3, dtype=np.int32)),))
        streams = Streams(four, lambda key, text=text: text, [0, 1], segments_at_once=64)
        for _ in streams:
            sizes.add(sum(leaf.nbytes for leaf in jax.tree.leaves(streams.state)))
        reads.append(max(text.asked_for))
        assert sum(text.asked_for) == 2 * length  # every token once
    assert len(sizes) == 1 and reads == [T, 64 * T]


def test_the_schedule_is_chosen_by_measuring(monkeypatch):
    speeds = {"sequential": 1.0, "diagonal": 2.0}
    monkeypatch.setattr(Reader, "tokens_per_s", lambda self, name, segments: speeds[name])
    armt, rmt = model_of("armt"), model_of("rmt")
    one = reader("armt", 1)
    assert choose_schedule(one, armt.config, "auto", 4, 1000) == speeds and one.schedule == "diagonal"
    speeds["sequential"] = 3.0
    assert choose_schedule(one, armt.config, "auto", 4, 1000) == speeds and one.schedule == "sequential"
    assert choose_schedule(one, armt.config, "auto", 4, 20) == {} and one.schedule == "sequential"
    assert choose_schedule(one, armt.config, "diagonal", 4, 1000) == {} and one.schedule == "diagonal"
    other = reader("rmt", 1)
    assert choose_schedule(other, rmt.config, "auto", 4, 1000) == {} and other.schedule == "sequential"
    with pytest.raises(ValueError, match="layer-local"):
        choose_schedule(other, rmt.config, "diagonal", 4, 1000)


def test_a_timing_is_one():
    made = reader("armt", 1)
    assert made.tokens_per_s("sequential", 4) > 0


def test_a_question_is_running_or_apart():
    with pytest.raises(ValueError, match="running"):
        reader("armt", 1, question="behind")
