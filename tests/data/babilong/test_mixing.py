"""Samples: exact lengths, facts in order between sentences, the stream equal to the whole, the same in every order and process."""

import concurrent.futures
import dataclasses
import multiprocessing
import re

import numpy as np
import pytest

from armt_jax.data.babilong import BabilongSamples
from armt_jax.data.babilong.mixing import lay_out
from armt_jax.data.errors import DataError

LENGTHS = (250, 251, 400, 1000, 4096, 30_000)  # the test text has 5,000 or so: the last one passes over it several times


@pytest.fixture
def samples(background, stories):
    return BabilongSamples("qa1", "test", 1000, background, stories)


def text_of(ids) -> str:
    return bytes(np.asarray(ids, np.uint8)).decode()


def without_facts(sample) -> np.ndarray:
    """The background of a sample."""
    keep = np.ones(sample.context_length, bool)
    for position, ids in zip(sample.fact_positions_F, sample.facts_ids):
        keep[position : position + len(ids)] = False
    return sample.context()[keep]


@pytest.mark.parametrize("length", LENGTHS)
def test_lengths_are_exact(samples, length):
    for index in range(20):
        sample = dataclasses.replace(samples, length=length).sample(index)
        assert sample.context().dtype == np.int32
        assert len(sample.context()) + len(sample.question_ids) == length == sample.length


@pytest.mark.parametrize("length", LENGTHS)
def test_facts_stand_in_order_between_whole_sentences_of_one_passage(samples, length):
    for index in range(20):
        sample = dataclasses.replace(samples, length=length).sample(index)
        context = sample.context()
        for position, fact in zip(sample.fact_positions_F, sample.story.facts):
            assert text_of(context[position : position + len(fact) + 1]) == " " + fact
            assert position == 0 or text_of(context[:position]).endswith(".")
        assert np.all(np.diff(sample.fact_positions_F) > 0)
        text = without_facts(sample)
        passages = sample.passages
        assert sample.layout.start in passages.starts
        assert np.array_equal(text, passages.read(sample.layout.start, sample.layout.start + len(text)))
        assert set(sample.layout.offsets_F + sample.layout.start) <= set(passages.place(np.arange(1000)).tolist())


def spelled_out(sample) -> np.ndarray:
    """The context, made the plain way: a list of sentences, the last one cut, and facts in the gaps of the list."""
    passages, sentences = sample.passages, []
    left, number = sample.context_length - sum(map(len, sample.facts_ids)), passages.sentences_before(sample.layout.start)
    places = [0]
    while left > 0:
        start, stop = map(int, passages.place([number, number + 1]))
        sentences.append(passages.read(start, stop)[:left])
        left, number = left - len(sentences[-1]), number + 1
        places.append(places[-1] + len(sentences[-1]))
    gaps = [[] for _ in places]
    for offset, ids in zip(sample.layout.offsets_F, sample.facts_ids):
        gaps[places.index(offset)].append(ids)
    parts = [part for facts, sentence in zip(gaps, [*sentences, np.zeros(0, np.int32)]) for part in [*facts, sentence]]
    return np.concatenate(parts)


@pytest.mark.parametrize("compat", ["default", "published"])
@pytest.mark.parametrize("length", [250, 1000, 30_000])
def test_a_sample_is_what_a_list_of_sentences_gives(samples, length, compat):
    samples = dataclasses.replace(samples, length=length, compat=compat)
    for seed in range(5):
        for index in range(10):
            sample = dataclasses.replace(samples, seed=seed).sample(index)
            assert np.array_equal(sample.context(), spelled_out(sample))


def test_question_and_answer_can_be_read_back(samples):
    sample = samples.sample(7)
    assert text_of(sample.question_ids) == " Where is Mary?"
    codec = samples.background.open().codec
    assert codec.decode_answer(sample.answer_ids) == sample.story.answer
    assert sample.answer_ids[-1] == codec.end_id == 256 and codec.vocab_size == 257


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 5000])
@pytest.mark.parametrize("compat", ["default", "published"])
def test_the_stream_is_the_whole(samples, size, compat):
    samples = dataclasses.replace(samples, length=1500, compat=compat)
    for index in (0, 4, 9):
        sample = samples.sample(index)
        chunks = list(sample.chunks(size))
        assert np.array_equal(np.concatenate(chunks), sample.context())
        assert len(chunks) == sample.num_chunks(size)
        assert {len(chunk) for chunk in chunks[:-1]} <= {size}
        for first in {0, 1, len(chunks) // 2, len(chunks) - 1}:
            resumed = list(samples.sample(index).chunks(size, first))
            assert len(resumed) == len(chunks) - first
            assert all(map(np.array_equal, resumed, chunks[first:]))
        assert list(sample.chunks(size, len(chunks))) == []


def test_any_stretch_can_be_read(samples):
    sample = samples.sample(4)
    whole, rng = sample.context(), np.random.default_rng(0)
    for start, stop in rng.integers(sample.context_length + 1, size=(300, 2)):
        if start <= stop:
            assert np.array_equal(sample.read(start, stop), whole[start:stop])
    with pytest.raises(DataError, match=r"\[0, 99999\) is outside the context of 985 tokens"):
        sample.read(0, 99999)


def test_a_stream_of_fifty_million_tokens_is_never_held(samples):
    import tracemalloc

    sample = dataclasses.replace(samples, length=50_000_000).sample(4)
    tracemalloc.start()
    for first in (0, 40_000, sample.num_chunks(1024) - 2):
        stream = sample.chunks(1024, first)
        next(stream), next(stream)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 18
    assert sum(map(len, sample.chunks(1 << 16))) == 50_000_000 - len(sample.question_ids)


def fingerprint_of_sample(samples, index):
    sample = samples.sample(index)
    return index, sample.context().tobytes() + sample.question_ids.tobytes() + sample.answer_ids.tobytes()


def test_samples_do_not_depend_on_order_or_process(background, stories):
    samples = BabilongSamples("qa1", "train", 700, background, stories, seed=3)
    expected = dict(fingerprint_of_sample(samples, i) for i in range(12))
    order = [7, 0, 11, 3, 3, 10, 1, 2, 9, 8, 4, 5, 6]
    assert dict(fingerprint_of_sample(samples, i) for i in order) == expected
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(_in_another_process, background, 5).result() == expected[5]


def _in_another_process(background, index):
    # The class of the stories is not importable there: the same story by other means.
    from armt_jax.data.babi.story import Story
    from armt_jax.data.babilong.stories import StorySource

    rooms = ("office", "garden", "kitchen", "hallway")

    class Again(StorySource):
        def fingerprint(self, task, split): ...
        def count(self, task, split, compat): ...
        def story(self, task, split, index, seed, compat):
            told = [rooms[(index + i) % 4] for i in range(1 + index % 5)]
            facts = tuple(f"{who} moved to the {room}." for who, room in zip(("Mary", "John", "Mary", "John", "Mary"), told))
            return Story(task, facts, "Where is Mary?", told[(len(told) - 1) // 2 * 2], (0,))

    return fingerprint_of_sample(BabilongSamples("qa1", "train", 700, background, Again(), seed=3), index)[1]


def test_everything_in_the_key_matters(samples):
    others = [
        dataclasses.replace(samples, seed=1), dataclasses.replace(samples, task="qa2"), dataclasses.replace(samples, length=1001),
        dataclasses.replace(samples, split="train"), dataclasses.replace(samples, facts_within=500),
    ]  # fmt: skip
    layouts = {(other.sample(4).layout.start, *other.sample(4).layout.offsets_F) for other in [samples, *others]}
    assert len(layouts) == 6
    assert len({samples.sample(i).layout.start for i in range(20)}) > 10


@pytest.mark.parametrize("compat", ["default", "published"])
def test_gaps_are_uniform(background, compat):
    passages, rng, tokens = background.open(compat).split("test"), np.random.default_rng(0), 700
    spread = []
    for _ in range(400):
        layout = lay_out(rng, passages, 5, tokens, compat)
        first = passages.sentences_before(layout.start)
        begun = passages.sentences_before(layout.start + tokens) - first
        whole = begun - (passages.place(first + begun) != layout.start + tokens)
        gaps = (whole if compat == "default" else begun) + 1
        numbers_F = [passages.sentences_before(int(layout.start + offset)) - first for offset in layout.offsets_F]
        spread.extend((numbers_F + rng.random(5)) / gaps)
    counts = np.histogram(spread, 10, (0, 1))[0]
    assert counts.sum() == 2000
    assert np.all(np.abs(counts - 200) < 55)  # four standard deviations


def test_one_pass_gives_every_shorter_length(samples):
    longest = dataclasses.replace(samples, length=20_000, facts_within=300)
    for index in range(15):
        sample = longest.sample(index)
        for length in (300, 301, 1000, 4096, 20_000):
            shorter = dataclasses.replace(longest, length=length).sample(index)
            assert np.array_equal(sample.read(0, sample.context_end(length)), shorter.context())
        alone = dataclasses.replace(samples, length=300).sample(index)
        assert np.array_equal(sample.read(0, sample.context_end(300)), alone.context())
        with pytest.raises(DataError, match="length=299 is no shorter form of this sample, whose facts stand among the first 285 tokens"):
            sample.context_end(299)
        with pytest.raises(DataError, match="ask at a length from 300 to 20000"):
            sample.context_end(20_001)
    with pytest.raises(DataError, match="length=999 is no shorter form"):
        samples.sample(0).context_end(999)


def test_facts_longer_than_the_length_are_an_error(samples):
    with pytest.raises(DataError, match=r"qa1, split 'test', story 4: its 5 facts have 132 tokens, and length 100 has room for 85 besides"):
        dataclasses.replace(samples, length=100).sample(4)
    needed = 132 + 15
    assert dataclasses.replace(samples, length=needed).sample(4).fact_positions_F[0] == 0
    with pytest.raises(DataError, match=f"ask for a length of at least {needed}, or leave stories with so many facts out"):
        dataclasses.replace(samples, length=needed - 1).sample(4)
    with pytest.raises(DataError, match="its 5 facts have 132 tokens, and length 100"):
        dataclasses.replace(samples, facts_within=100).sample(4)


def test_quirks_of_the_published_code(samples):
    published = dataclasses.replace(samples, length=600, compat="published")
    behind_the_cut = 0
    for index in range(20):
        for seed in range(10):
            sample = dataclasses.replace(published, seed=seed).sample(index)
            # The question does not count.
            assert len(sample.context()) == sample.length == 600
            assert text_of(sample.question_ids) == "Where is Mary? G"  # the first id of "GEN"
            assert text_of(sample.answer_ids[:-1]) == sample.story.answer
            # Nothing stands between facts and sentences.
            joined = text_of(sample.context())
            assert re.search(r"\. [MJTU]", joined) is None
            last = sample.fact_positions_F[-1]
            behind_the_cut += last > 0 and not joined[:last].endswith(".")
    assert behind_the_cut > 0
    # Facts longer than the length: no background, a longer sample.
    sample = dataclasses.replace(published, length=100).sample(4)
    assert text_of(sample.context()) == "".join(sample.story.facts)
    assert len(sample.context()) == sample.length == 127
    sample = dataclasses.replace(published, length=127).sample(4)
    assert len(sample.context()) == 127


def test_published_passes_give_shorter_lengths_too(samples):
    longest = dataclasses.replace(samples, length=2000, facts_within=300, compat="published").sample(4)
    shorter = dataclasses.replace(samples, length=700, facts_within=300, compat="published").sample(4)
    assert np.array_equal(longest.read(0, longest.context_end(700)), shorter.context())


def test_train_and_test_share_no_sentence(samples):
    def said(split):
        found = set()
        for index in range(20):
            sample = dataclasses.replace(samples, split=split, length=3000).sample(index)
            found.update(text_of(without_facts(sample)).split(",")[0:-1])
        return {line.strip() for line in found if " goes on for the " in line}

    train, validation, test = map(said, ("train", "validation", "test"))
    assert len(test) > 100 and not test & train and not test & validation and not train & validation


def test_all_samples_of_a_split(samples, background, endless_stories):
    assert [sample.index for sample in samples] == list(range(20))
    endless = BabilongSamples("qa1", "train", 500, background, endless_stories)
    assert endless.count is None and endless.sample(12345).index == 12345
    with pytest.raises(DataError, match="generated without end: ask for sample"):
        iter(endless)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "qa21"}, "task 'qa21' is not one of bAbI"),
        ({"split": "valid"}, "split='valid' is unknown"),
        ({"length": 0}, "length=0 is out of range"),
        ({"seed": -1}, "seed=-1 is out of range"),
        ({"compat": "old"}, "compat='old' is unknown: use 'default' or 'published'"),
        ({"facts_within": 1001}, "facts_within=1001 is more than length=1000"),
    ],
)
def test_bad_fields(samples, fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(samples, **fields)
