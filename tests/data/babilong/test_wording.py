"""A tokenizer that is trained on books knows the words of the stories."""

import random

import pytest

from armt_jax.data.babi import GENERATED, generate
from armt_jax.data.babilong import BackgroundConfig, background, wording


def words_of_the_worlds(stories: int = 150) -> set[str]:
    """Those of many stories; qa7 says "three" once in hundreds."""
    told = (generate(task, 1, index, "test") for task in GENERATED for index in range(stories))
    return {"three"} | {word for story in told for text in (*story.facts, story.question, story.answer) for word in wording.words(text)}


def invented_text(characters: int) -> str:
    """Sentences of invented words, frequent and rare ones as in a language; none is a word of the stories."""
    rng = random.Random(1)
    letters = "eeeetttaaaooiinnsshhrrdlucmwfgypbvkjqxz"
    known = ["".join(rng.choices(letters, k=rng.randint(4, 9))) for _ in range(1500)]
    shares = [1 / rank for rank in range(1, len(known) + 1)]
    sentences, size = [], 0
    while size < characters:
        chosen = rng.choices(known, shares, k=12)
        sentences.append(f"{' '.join(chosen[:5])}, {' '.join(chosen[5:])}.".capitalize())
        size += len(sentences[-1]) + 1
    return "\n".join(sentences)


def test_the_sentences_have_every_word():
    lines = wording.worded()
    assert {word for line in lines for word in wording.words(line)} == words_of_the_worlds()
    assert len(lines) < 60 and all(line.startswith(" ") for line in lines)


def test_they_are_a_few_hundredths_of_the_text_and_every_nth_line_has_all():
    lines = wording.training_lines(50_000_000)
    assert 0.98 * wording.SHARE < sum(map(len, lines)) / 50_000_000 <= wording.SHARE < 0.05
    assert {*lines[::5]} == {line.encode() for line in wording.worded()}
    assert wording.training_lines(10) == [line.encode() for line in wording.worded()]


def test_words_of_the_stories_are_pieces(tmp_path):
    (tmp_path / "books").mkdir()
    text = invented_text(250_000)
    (tmp_path / "books" / "one.txt").write_text(text)
    words = words_of_the_worlds()
    assert not words & set(wording.words(text))
    config = BackgroundConfig(str(tmp_path / "books"), tokenizer="sentencepiece", vocab_size=1500, cache_dir=str(tmp_path / "cache"))
    codec = config.open().codec
    whole = {word for word in words if len(codec.tokenizer.encode(f" {word}")) == 1}
    assert {word for word in words - whole if len(word) > 2} == set()
    assert len(codec.fact("Sandra journeyed to the hallway.")) == 6


@pytest.mark.parametrize(("tokenizer", "fields", "same"), [("sentencepiece", {"vocab_size": 320}, False), ("characters", {}, True)])
def test_other_sentences_are_another_tokenizer(write_books, make_book, monkeypatch, tokenizer, fields, same):
    texts = {f"{split}/{name}.txt": make_book(name, 400) for split, name in (("train", "Anna"), ("test", "Carol"))}
    config = write_books(texts, tokenizer, **fields)
    first = config.open().cache.folder
    background._open.cache_clear()
    monkeypatch.setattr(background, "wording_fingerprint", lambda: "other sentences")
    assert (config.open().cache.folder == first) == same
    background._open.cache_clear()
