"""From files to a cache of ids: documents, splits, counts, fingerprints; missing and bad files; real text against published counts."""

import subprocess
import sys
import tempfile

import numpy as np
import pytest

from armt_jax.data import CorpusConfig, DataError, documents, sources
from armt_jax.data.__main__ import main
from armt_jax.data.builders import BUILDERS, Enwik8, prepare, records
from armt_jax.data.corpus import whole_words
from armt_jax.data.documents import Span
from armt_jax.data.sources import locate
from armt_jax.data.tokenizers import TOKENIZERS, CharacterTokenizer, base, pieces
from tests.data.vocabularies import small_gpt2

ARTICLES = b" \n = First = \n \n text one . \n \n = = Part = = \n \n more = . \n = no heading = \n \n \n = Second = \n \n text two . \n"
PAGES = b"<head>\n  <page>\n    <title>A</title>\n  </page>\n  <page>\nB\n  </page>\n"


def cut(how, tmp_path, text):
    file = tmp_path / "file"
    file.write_bytes(text)
    return list(how((Span(file, 0, len(text)),)))


def texts(pieces) -> list[bytes]:
    """The documents."""
    last = max(piece.document for piece in pieces)
    return [b"".join(piece.text for piece in pieces if piece.document == i) for i in range(last + 1)]


@pytest.mark.parametrize("piece_bytes", [1 << 20, 16, 3])
def test_articles_begin_at_level_one_headings(tmp_path, monkeypatch, piece_bytes):
    pieces = cut(documents.wikitext_articles, tmp_path, ARTICLES)
    assert [text[:10] for text in texts(pieces)] == [b" \n = First", b" \n = Secon"]
    monkeypatch.setattr(documents, "PIECE_BYTES", piece_bytes)
    small = cut(documents.wikitext_articles, tmp_path, ARTICLES)
    assert b"".join(piece.text for piece in small) == ARTICLES
    assert all(len(piece.text) <= piece_bytes for piece in small)


@pytest.mark.parametrize("piece_bytes", [1 << 20, 12])
def test_pages_begin_at_page_marks(tmp_path, monkeypatch, piece_bytes):
    monkeypatch.setattr(documents, "PIECE_BYTES", piece_bytes)
    pieces = cut(documents.wikipedia_pages, tmp_path, PAGES)
    assert texts(pieces) == [b"<head>\n", b"  <page>\n    <title>A</title>\n  </page>\n", b"  <page>\nB\n  </page>\n"]


def test_files_are_documents_in_order(make_corpus):
    config = make_corpus(train=["one\n", "two", "three\n"], test="x")
    cache = config.open()
    assert bytes(cache.split("train").ids_N) == b"one\ntwothree\n"
    assert list(cache.split("train").starts) == [0, 4, 7]
    with pytest.raises(DataError, match="split 'validation' is not in the cache .* holds train, test: add it to data.splits"):
        cache.split("validation")


@pytest.mark.parametrize("tokenizer", ["bytes", "characters", "words", "sentencepiece"])
def test_counts(make_corpus, tokenizer):
    train = ["a b  ccé\n\n d", "one two three\n", "\n", "no end"] * 20
    config = make_corpus(tokenizer, train=train, test="zzz q\n", **({"vocab_size": 270} if tokenizer == "sentencepiece" else {}))
    cache = config.open()
    counts, whole = cache.split("train").counts, "".join(train)
    assert counts.bytes == len(whole.encode())
    assert counts.characters == len(whole)
    assert counts.words == sum(len(text.split()) for text in train)
    assert counts.lines == sum(len(text.splitlines()) for text in train)
    assert counts.documents == len(train) == len(cache.split("train").starts)
    assert counts.tokens == len(cache.split("train").ids_N)
    expected = [cache.tokenizer.encode(text) for text in train]
    assert np.array_equal(cache.split("train").ids_N, np.concatenate(expected))
    assert np.array_equal(cache.split("train").starts, np.cumsum([0] + [len(ids) for ids in expected[:-1]]))
    unknown = {"bytes": 0, "characters": 4, "words": 2, "sentencepiece": 0}  # zzz and q
    assert cache.split("test").counts.unknown == unknown[tokenizer]
    if tokenizer == "words":
        assert counts.tokens == counts.words + counts.lines
    if tokenizer == "characters":
        assert counts.tokens == counts.characters


def test_a_prepared_corpus_is_found_again_and_changed_files_are_not_mistaken_for_it(make_corpus, monkeypatch):
    config = make_corpus("words", train="a b c\n", test="a\n")
    first = config.open()
    from armt_jax.data import corpus

    corpus._open.cache_clear()
    monkeypatch.setattr(corpus, "_tokenise", lambda *args: pytest.fail("tokenised again"))
    assert config.open().folder == first.folder
    monkeypatch.undo()
    sources.located.cache_clear()
    corpus._open.cache_clear()
    make_corpus("words", train="a b d\n", test="a\n")
    assert config.open().folder != first.folder
    assert config.open().fingerprint != first.fingerprint


def test_records_are_the_text_in_order_and_need_no_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "PIECE_BYTES", 100)
    text = b"".join(b"  <page>\nnumber %d\xff\n  </page>\n" % i for i in range(400))
    (tmp_path / "enwik8").write_bytes(text)
    builder = Enwik8(path=tmp_path, data_dir=tmp_path / "tfds")
    builder.download_and_prepare()
    found = {split: list(records(builder, split)) for split in ("train", "validation", "test")}
    assert b"".join(piece for split in found.values() for _, piece in split) == text
    numbers = [document for document, _ in found["train"]]
    assert numbers == sorted(numbers) and numbers[0] == 0
    assert found["train"] == list(map(tuple, locate("enwik8", tmp_path).pieces("train")))
    assert prepare(locate("enwik8", tmp_path), tmp_path / "tfds").data_path == builder.data_path
    assert set(BUILDERS) == set(sources.SOURCES)


def test_a_builder_leaves_nothing_behind(tmp_path, monkeypatch):
    (tmp_path / "enwik8").write_bytes(PAGES)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    Enwik8(path=tmp_path, data_dir=tmp_path / "tfds")
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_cache_of_an_older_format_is_made_anew(make_corpus, monkeypatch):
    from armt_jax.data import cache, corpus

    config = make_corpus(train="text")
    for module in (cache, corpus):
        monkeypatch.setattr(module, "FORMAT", 1)
    old = config.open()
    monkeypatch.undo()
    corpus._open.cache_clear()
    new = config.open()
    assert new.folder != old.folder and new.fingerprint == old.fingerprint
    assert bytes(new.split("train").ids_N) == b"text"


def test_importing_and_preparing_needs_no_tensorflow_and_starts_no_backend(tmp_path):
    (tmp_path / "train.txt").write_text("some text\n")
    code = f"""
import sys, armt_jax.data
assert not any(name in sys.modules for name in ("tensorflow", "torch", "tensorflow_datasets", "sentencepiece", "tokenizers"))
armt_jax.data.CorpusConfig("text", {str(tmp_path)!r}, splits=("train",), cache_dir={str(tmp_path / "cache")!r}).open()
assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_vocabularies_are_made_of_whole_words_and_of_everything(size):
    documents_ = ["one two\nthree", "漢字漢字漢字", " four  five \n\n", "six"]
    pieces = [(i, text.encode()[j : j + size]) for i, text in enumerate(documents_) for j in range(0, len(text.encode()), size)]
    parts = list(whole_words(pieces, lambda document, error: pytest.fail(str(error))))
    assert b"".join(parts).decode() == "".join(documents_)
    assert [word for part in parts for word in part.decode().split()] == [word for text in documents_ for word in text.split()]


def test_two_processes_prepare_a_corpus_once(make_corpus, tmp_path):
    make_corpus(train=["some words\n"] * 50, test="x")
    command = [
        sys.executable,
        "-m",
        "armt_jax.data",
        "--name=text",
        f"--path={tmp_path / 'text'}",
        "--tokenizer=words",
        "--splits=train,test",
    ]
    both = [subprocess.Popen([*command, f"--cache_dir={tmp_path / 'cache'}"], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    reports = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert all("train      150 tokens, 550 bytes, 100 words, 50 lines, 50 documents" in report for report in reports)
    assert len([folder for folder in (tmp_path / "cache" / "ids").iterdir() if folder.is_dir()]) == 1


def test_the_command_exits_with_the_error(tmp_path, capsys):
    with pytest.raises(SystemExit, match="error: .*wiki.train.tokens"):
        main(["--name=wikitext2", f"--path={tmp_path}"])


def fields_of(tokenizer, tmp_path) -> dict:
    """What a corpus of a few letters needs under this tokenizer."""
    if tokenizer == "sentencepiece":
        return {"vocab_size": 264}
    if tokenizer == "gpt2":
        (tmp_path / "gpt2").mkdir()
        small_gpt2().save(tmp_path / "gpt2")
        return {"tokenizer_path": str(tmp_path / "gpt2")}
    return {}


@pytest.mark.parametrize("tokenizer", ["characters", "words", "sentencepiece", "gpt2"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_invalid_utf8_names_file_and_place(make_corpus, tmp_path, tokenizer, split):
    good, bad = "good text\n" * 50, b"good line\n" * 30 + b"\xc3(" + b"good line\n" * 30
    texts = {"train": [good, good], "test": [good]}
    texts[split][-1] = bad
    config = make_corpus(tokenizer, **texts, **fields_of(tokenizer, tmp_path))
    with pytest.raises(DataError, match=rf"{split}/000\d.txt: byte 300 is not valid UTF-8.*'bytes' tokenizer"):
        config.open()


@pytest.mark.parametrize("tokenizer", ["characters", "words", "gpt2"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_invalid_utf8_in_a_page_is_counted_from_the_start_of_the_file(tmp_path, monkeypatch, tokenizer, split):
    monkeypatch.setattr(documents, "PIECE_BYTES", 100)
    text = bytearray(b"<head>\n" + b"".join(b"  <page>\nnumber %03d\n  </page>\n" % i for i in range(100)))
    # Pages have 30 bytes. Before the first of each split is another document: the head, or the end of a page that the cut parts.
    page, document = {"train": (33, 34), "validation": (93, 4), "test": (99, 5)}[split]
    place = 7 + 30 * page + 12
    text[place] = 0xFF
    (tmp_path / "enwik8").write_bytes(text)
    config = CorpusConfig("enwik8", str(tmp_path), tokenizer, cache_dir=str(tmp_path / "cache"), **fields_of(tokenizer, tmp_path))
    with pytest.raises(DataError, match=rf"enwik8 \({split} document {document}, counted from 0\): byte {place} is not valid UTF-8"):
        config.open()


@pytest.mark.parametrize("tokenizer", ["characters", "gpt2"])
@pytest.mark.parametrize(("splits", "cut"), [(("train", "validation", "test"), 900), (("train", "test"), 950)])
@pytest.mark.parametrize("character", ["é", "漢", "🙂"])
def test_a_character_that_a_cut_parts_is_told(tmp_path, tokenizer, splits, cut, character):
    letter = character.encode()
    for before in range(1, len(letter)):
        text = b"x" * (cut - before) + letter
        (tmp_path / f"enwik8.{before}").write_bytes(text + b"y" * (1000 - len(text)))
        config = CorpusConfig(
            "enwik8", str(tmp_path / f"enwik8.{before}"), tokenizer, splits=splits, cache_dir=str(tmp_path / "cache"),
            tokenizer_path=str(tmp_path / tokenizer),
        )  # fmt: skip
        (tmp_path / tokenizer).mkdir(exist_ok=True)
        (CharacterTokenizer("xy") if tokenizer == "characters" else small_gpt2()).save(tmp_path / tokenizer)
        place = cut - before if cut == 900 else cut
        with pytest.raises(DataError) as e:
            config.open()
        assert f"byte {place} is not valid UTF-8 in {splits[0] if cut == 900 else 'test'!r}, because the cut" in str(e.value)
        assert f"between two splits, at byte {cut}, parts a character: take a few bytes off the end" in str(e.value)
        assert "'bytes' tokenizer" in str(e.value)


@pytest.mark.parametrize("tokenizer", ["bytes", "words"])
@pytest.mark.parametrize("gap", [b" ", b"x"], ids=["spaces", "no spaces"])
def test_a_line_of_50_mb(make_corpus, tmp_path, tokenizer, gap):
    fields = {}
    if tokenizer == "words":
        (tmp_path / "vocabulary.txt").write_text("<unk>\n<eos>\n")
        fields = {"tokenizer_path": str(tmp_path / "vocabulary.txt")}
    text = (b"x" * 9_999 + gap) * 5_000
    counts = make_corpus(tokenizer, train=text, **fields).open().split("train").counts
    assert (counts.bytes, counts.lines) == (50_000_000, 1)
    # Without a gap, a word is cut after a mebibyte, and every part counts as unknown.
    words = 5_000 if gap == b" " else -(-50_000_000 // (1 << 20))
    assert counts.tokens == (50_000_000 if tokenizer == "bytes" else words + 1)


@pytest.mark.parametrize("tokenizer", list(TOKENIZERS))
@pytest.mark.parametrize("gap", [b" ", b"x"], ids=["spaces", "no spaces"])
def test_a_line_longer_than_every_limit(make_corpus, tmp_path, monkeypatch, tokenizer, gap):
    for module, limit, size in ((documents, "PIECE_BYTES", 1000), (base, "CHUNK_BYTES", 500), (base, "LONGEST_UNCUT", 1000)):
        monkeypatch.setattr(module, limit, size)
    monkeypatch.setattr(pieces, "TRAINING_BYTES", 20_000)
    text = (b"x" * 99 + gap) * 1_000
    fields = {"vocab_size": 260} if tokenizer == "sentencepiece" else fields_of(tokenizer, tmp_path)  # the library finds no more pieces
    cache = make_corpus(tokenizer, train=text, **fields).open()
    ids_N, _, counts = cache.split("train")
    assert (counts.bytes, counts.characters, counts.lines, counts.words) == (100_000, 100_000, 1, 1_000 if gap == b" " else 1)
    if tokenizer == "words":
        # Trained: the word of 99 letters, or none, since the only one is cut when it is read.
        assert (cache.tokenizer.vocab_size, counts.tokens, counts.unknown) == ((3, 1_001, 0) if gap == b" " else (2, 101, 100))
    else:
        assert counts.unknown == 0
        assert cache.tokenizer.decode_bytes(ids_N) == text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokenizer": "bpe"}, "tokenizer='bpe' is unknown"),
        ({"tokenizer": "gpt2"}, "needs tokenizer_path: a folder with vocab.json"),
        ({"tokenizer": "bytes", "tokenizer_path": "x"}, "'bytes' has no files"),
        ({"splits": ("train", "dev")}, "must be a tuple of some of"),
        ({"splits": ["train"]}, "must be a tuple of some of"),
        ({"vocab_size": 100}, "vocab_size=100 is only for words and sentencepiece made from the corpus"),
        ({"tokenizer": "words", "vocab_size": 1}, "vocab_size=1 is too small"),
        ({"tokenizer": "words", "splits": ("test",)}, "is made from the training split, which splits=.* lacks"),
        ({"tokenizer": "sentencepiece"}, "needs tokenizer_path .a model., or vocab_size to train one"),
    ],
)
def test_config_is_checked(fields, message):
    with pytest.raises(DataError, match=message):
        CorpusConfig("enwik8", **fields)


# -- real text -------------------------------------------------------------------------------------------------------------


def real(real_data, tmp_path, name, folder, tokenizer, **fields):
    return CorpusConfig(name, str(real_data / folder), tokenizer, cache_dir=str(tmp_path / "cache"), **fields).open()


def test_wikitext2_has_its_published_counts(real_data, tmp_path):
    cache = real(real_data, tmp_path, "wikitext2", "wikitext-2", "words")
    assert cache.tokenizer.vocab_size == 33_278
    assert [cache.split(s).counts.tokens for s in ("train", "validation", "test")] == [2_088_628, 217_646, 245_569]
    assert [cache.split(s).counts.documents for s in ("train", "validation", "test")] == [600, 60, 60]
    assert cache.data.note == ""
    train = cache.split("train")
    heads = [cache.tokenizer.decode(train.ids_N[start : start + 3]) for start in train.starts]
    assert all(head.startswith("\n= ") for head in heads)


def test_wikitext103_test_with_the_vocabulary_of_a_file(real_data, tmp_path):
    (tmp_path / "vocabulary.txt").write_text("<eos>\n<unk>\nthe\n")
    fields = {"splits": ("validation", "test"), "tokenizer_path": str(tmp_path / "vocabulary.txt")}
    cache = real(real_data, tmp_path, "wikitext103", "wikitext-103", "words", **fields)
    assert [cache.split(s).counts.tokens for s in ("validation", "test")] == [217_646, 245_569]
    with pytest.raises(DataError, match="wiki.train.tokens: missing"):
        real(real_data, tmp_path, "wikitext103", "wikitext-103", "words")


def test_enwik8_prefix(real_data, tmp_path):
    cache = real(real_data, tmp_path, "enwik8", "enwik8", "bytes")
    assert sum(cache.split(s).counts.bytes for s in ("train", "validation", "test")) == 4_150_000
    # Pages, and what each split has before its first one.
    assert sum(cache.split(s).counts.documents for s in ("train", "validation", "test")) == 490 + 3
    assert bytes(cache.split("train").ids_N[cache.split("train").starts[1] :][:10]) == b"  <page>\n "
    whole = (real_data / "enwik8" / "enwik8.first4150000").read_bytes()
    assert bytes(cache.split("test").ids_N) == whole[3_942_500:]


def test_books(real_data, tmp_path):
    fields = {"splits": ("train", "test"), "tokenizer_path": str(real_data / "sentencepiece" / "pg19train_bpe_4000.model")}
    cache = real(real_data, tmp_path, "text", "books", "sentencepiece", **fields)
    files = sorted((real_data / "books" / "test").glob("*.txt"))
    assert cache.split("test").counts.documents == len(files) == 4
    assert cache.split("test").counts.bytes == sum(file.stat().st_size for file in files)
    assert cache.split("test").counts.words == sum(len(file.read_text("utf-8").split()) for file in files)
