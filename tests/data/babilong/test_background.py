"""The ring of sentences: read from disk, made whole or not at all."""

import numpy as np
import pytest

from armt_jax.data.babilong import BackgroundConfig
from armt_jax.data.babilong import background as module
from armt_jax.data.errors import DataError


def test_the_ring_goes_on_at_its_start(background):
    passages = background.open().split("test")
    whole = passages.read(0, passages.tokens)
    assert whole.dtype == np.int32
    assert bytes(whole.astype(np.uint8)).startswith(b" Tom goes on for the 0th time, as ever. Tom goes on for the 1th")
    rounds = passages.read(5, 5 + 3 * passages.tokens)
    assert np.array_equal(rounds, np.tile(np.roll(whole, -5), 3))
    assert np.array_equal(passages.read(passages.tokens - 3, passages.tokens + 3), np.concatenate([whole[-3:], whole[:3]]))
    assert passages.read(7, 7).size == 0


def test_places_of_sentences(background):
    passages = background.open().split("test")
    assert passages.num_sentences == 120
    numbers = np.arange(-1, 300)[1:]
    places = passages.place(numbers)
    assert np.all(np.diff(places) > 0) and places[120] == passages.tokens
    for number in (0, 1, 50, 119, 120, 250):
        assert passages.sentences_before(int(places[number])) == number
        assert passages.sentences_before(int(places[number]) + 1) == number + 1


def test_short_sentences_are_left_out(write_books):
    text = "CHAPTER I\n\nThis one is long enough. No. And this is another one. Ten bytes\n\n" * 3
    config = write_books({"train/a.txt": text.swapcase(), "valid/c.txt": text.upper(), "test/b.txt": text + "More."})
    passages = config.open().split("test")
    assert passages.read(0, passages.tokens).astype(np.uint8).tobytes() == (
        b" CHAPTER I This one is long enough. And this is another one. Ten bytes" * 3
    )
    longer = BackgroundConfig(config.path, tokenizer="bytes", min_tokens=24, cache_dir=config.cache_dir).open()
    assert longer.split("test").num_sentences == 6
    assert longer.fingerprint != config.open().fingerprint


def test_a_book_of_one_sentence_is_refused(write_books, make_book):
    texts = {"train/a.txt": make_book("A"), "train/b.txt": "Only one sentence is in here.", "test/c.txt": make_book("C")}
    config = write_books({"train/0.txt": make_book("0")} | texts, min_tokens=5)
    with pytest.raises(
        DataError, match=r"b.txt has 1 sentence of at least 5 tokens for split .* a book must give at least 2: take it away"
    ):
        config.open()
    config = write_books({"a.txt": "One sentence. And two."}, folder="short")
    with pytest.raises(DataError, match=r"a.txt, bytes 0 to 17 has 2 sentences|a.txt, bytes .* has [01] sentences? of at least 10 tokens"):
        config.open()


def test_bad_text_is_refused_with_file_and_place(write_books, make_book):
    config = write_books({"train/a.txt": make_book("A").encode() + b"\n\nbad \xff", "test/b.txt": make_book("B")})
    with pytest.raises(DataError, match=rf"a.txt: byte {len(make_book('A')) + 6} is not valid UTF-8"):
        config.open()


def test_an_interrupted_build_leaves_nothing(background, tmp_path, monkeypatch):
    def interrupted(*args):
        yield 0, b" One good sentence."
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_numbered", interrupted)
        with pytest.raises(KeyboardInterrupt):
            background.open()
    assert list((tmp_path / "cache" / "sentences").iterdir()) == []
    # As after kill -9: what is half there is taken away, never read.
    whole = background.open().cache.folder
    module._open.cache_clear()
    whole.rename(whole.with_name(f"{whole.name}.partial-1"))
    assert background.open().split("test").num_sentences == 120
    assert [folder.name for folder in whole.parent.iterdir()] == [whole.name]


def test_a_damaged_cache_is_refused(background):
    folder = background.open().cache.folder
    module._open.cache_clear()
    data = bytearray((folder / "test.ids").read_bytes())
    data[100] ^= 1
    (folder / "test.ids").write_bytes(data)
    with pytest.raises(DataError, match="is damaged: test.ids has checksum"):
        background.open()


def test_text_is_tokenised_once_and_changed_text_again(background, monkeypatch, tmp_path):
    first = background.open()
    module._open.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_prepare", lambda *args: pytest.fail("tokenised again"))
        assert background.open().fingerprint == first.fingerprint
    module._open.cache_clear()
    with (tmp_path / "books" / "train" / "Anna.txt").open("a") as file:
        file.write("\n\nAnother sentence comes at the end.")
    assert background.open().fingerprint != first.fingerprint
    assert background.open("published").cache.folder != background.open().cache.folder


def test_tokenizers_made_from_the_training_text(write_books, make_book):
    texts = {f"{split}/{name}.txt": make_book(name, 400) for split, name in (("train", "Anna"), ("train", "Boris"), ("test", "Carol"))}
    config = write_books(texts, "sentencepiece", vocab_size=320)
    background = config.open()
    assert background.codec.tokenizer.vocab_size == 320 and background.codec.vocab_size == 321
    passages = background.split("test")
    assert background.codec.tokenizer.decode(passages.read(0, 200)).startswith(" Carol goes on for the 0th time, as ever. Carol goes")
    assert write_books(texts, "characters").open().split("test").num_sentences == 400


def test_bad_fields():
    with pytest.raises(DataError, match="tokenizer='words' joins full stops to words"):
        BackgroundConfig("x", tokenizer="words")
    with pytest.raises(DataError, match="tokenizer='gpt2' needs tokenizer_path"):
        BackgroundConfig("x")
    with pytest.raises(DataError, match="tokenizer='bpe' is unknown"):
        BackgroundConfig("x", tokenizer="bpe")
    with pytest.raises(DataError, match="path is not set: background 'books' wants a folder of books"):
        BackgroundConfig(tokenizer="bytes")
    with pytest.raises(DataError, match="background 'novels' is unknown"):
        BackgroundConfig("x", "novels", tokenizer="bytes")
    with pytest.raises(ValueError, match="min_tokens=0 is out of range"):
        BackgroundConfig("x", tokenizer="bytes", min_tokens=0)
    with pytest.raises(DataError, match="compat='old' is unknown"):
        BackgroundConfig("x", tokenizer="bytes").open("old")
