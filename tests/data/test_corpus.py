"""From files to a cache of ids: documents, splits, counts, fingerprints; missing and bad files; real text against published counts."""

import hashlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from armt_jax.data import CorpusConfig, DataError, documents, sources
from armt_jax.data.__main__ import main
from armt_jax.data.builders import BUILDERS, Enwik8, prepare, records
from armt_jax.data.corpus import whole_words
from armt_jax.data.documents import Span
from armt_jax.data.sources import Archive, locate

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
    parts = list(whole_words(pieces, str))
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


def test_enwik8_prefix_is_split_in_proportion_and_says_so(tmp_path, monkeypatch):
    data = bytes(range(256)) * 4
    (tmp_path / "enwik8.first1024").write_bytes(data)
    config = CorpusConfig("enwik8", str(tmp_path), cache_dir=str(tmp_path / "cache"))
    cache = config.open()
    assert [cache.split(s).counts.tokens for s in ("train", "validation", "test")] == [921, 51, 52]
    assert bytes(cache.split("validation").ids_N) == data[921:972]
    assert "prefix of enwik8: the first 1,024 of 100,000,000 bytes" in cache.report()
    monkeypatch.setattr(sources, "ENWIK8_BYTES", 1024)
    assert "not the published file" in locate("enwik8", tmp_path).note
    monkeypatch.setattr(sources, "ENWIK8_SHA256", hashlib.sha256(data).hexdigest())
    assert locate("enwik8", tmp_path).note == ""
    monkeypatch.setattr(sources, "ENWIK8_BYTES", 1000)
    with pytest.raises(DataError, match="has 1,024 bytes, more than the 1,000 of enwik8"):
        locate("enwik8", tmp_path)


def write_wikitext(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "valid", "test"):
        (folder / f"wiki.{part}.tokens").write_bytes(ARTICLES)


def test_download_is_checked_and_mirrors_are_tried(tmp_path, monkeypatch):
    write_wikitext(tmp_path / "wikitext-2")
    archive = tmp_path / "wikitext-2-v1.zip"
    members = [f"wikitext-2/wiki.{part}.tokens" for part in ("train", "valid", "test")]
    with zipfile.ZipFile(archive, "w") as file:
        for member in members:
            file.write(tmp_path / member, member)
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    urls = ((tmp_path / "gone.zip").as_uri(), archive.as_uri())
    monkeypatch.setitem(sources.ARCHIVES, "wikitext2", Archive(urls, "0" * 64, tuple(members)))
    with pytest.raises(DataError) as e:
        locate("wikitext2", None, download_dir=tmp_path / "got")
    for part in (sha256, "0" * 64, "gone.zip", "set data.path", "wiki.train.tokens, wiki.valid.tokens, wiki.test.tokens"):
        assert part in str(e.value)
    assert not list((tmp_path / "got").rglob("*.tokens"))
    monkeypatch.setitem(sources.ARCHIVES, "wikitext2", Archive(urls, sha256, tuple(members)))
    source = locate("wikitext2", None, download_dir=tmp_path / "got")
    assert source.fingerprint == locate("wikitext2", tmp_path / "wikitext-2").fingerprint
    assert "not the published file" in source.note
    archive.unlink()
    assert locate("wikitext2", None, download_dir=tmp_path / "got").fingerprint == source.fingerprint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wikitext103", r"wiki.train.tokens, .*wiki.valid.tokens, .*wiki.test.tokens: missing. wikitext103 wants a folder with"),
        ("wikitext2", r"smerity.com/wikitext-2-v1.zip"),
        ("enwik8", r"holds 0 files that could be enwik8.*enwik8 wants the file enwik8 of 100,000,000 bytes, or a prefix"),
        ("pg19", r"train/\*.txt, .*gsutil -m cp -r gs://deepmind-gutenberg/train"),
        ("text", r"text wants a folder with train/\*.txt \(or train.txt\) and validation/\*.txt"),
        ("wikitext-103", r"corpus 'wikitext-103' is unknown: did you mean 'wikitext103'"),
    ],
)
def test_missing_files_are_named(tmp_path, name, message):
    with pytest.raises(DataError, match=message):
        locate(name, tmp_path)


def test_missing_places_and_splits(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist. enwik8 wants the file"):
        locate("enwik8", tmp_path / "nowhere")
    with pytest.raises(DataError, match="data.path is not set. pg19 wants a folder"):
        locate("pg19", None, download_dir=tmp_path)
    with pytest.raises(DataError, match="split 'valid' is unknown"):
        locate("text", tmp_path, ("valid",))
    write_wikitext(tmp_path)
    (tmp_path / "wiki.valid.tokens").unlink()
    with pytest.raises(DataError, match=r"/wiki.valid.tokens: missing.*To use only some of the splits, name them in data.splits"):
        locate("wikitext2", tmp_path)
    assert set(locate("wikitext2", tmp_path, ("test", "train")).spans) == {"train", "test"}


def test_empty_files_are_refused(tmp_path, make_corpus):
    config = make_corpus(train=["text", ""], test="x")
    with pytest.raises(DataError, match="train/0001.txt is empty: it must hold text"):
        config.open()


@pytest.mark.parametrize("tokenizer", ["characters", "words", "sentencepiece"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_invalid_utf8_names_file_and_place(make_corpus, tokenizer, split):
    good, bad = "good text\n" * 50, b"good line\n" * 30 + b"\xc3(" + b"good line\n" * 30
    texts = {"train": [good, good], "test": [good]}
    texts[split][-1] = bad
    config = make_corpus(tokenizer, **texts, **({"vocab_size": 264} if tokenizer == "sentencepiece" else {}))
    with pytest.raises(DataError, match=rf"{split}/000\d.txt: byte 300 is not valid UTF-8.*'bytes' tokenizer"):
        config.open()


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
    assert cache.split("test").counts.words == sum(len(file.read_bytes().split()) for file in files)
