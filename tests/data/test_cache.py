"""The cache on disk: written whole or not at all, damage and other fingerprints refused."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from armt_jax.data.cache import DataIdentity, TokenCache, check_fingerprint, id_dtype, write_cache
from armt_jax.data.errors import DataError
from armt_jax.data.tokenizers import ByteTokenizer, CharacterTokenizer, WordTokenizer

DATA = DataIdentity("text", "f" * 64, "a note")
PIECES = [(0, b"first "), (0, b"document\n"), (1, b"second")]


def write(folder, tokenizer=None, pieces=PIECES, data=DATA):
    return write_cache(folder, tokenizer or ByteTokenizer(), data, {"train": lambda: pieces, "test": lambda: PIECES[2:]})


def test_what_is_written_is_read(tmp_path):
    written = write(tmp_path / "c")
    read = TokenCache(tmp_path / "c", fingerprint=written.fingerprint)
    assert bytes(read.split("train").ids_N) == b"first document\nsecond"
    assert list(read.split("train").starts) == [0, 15]
    assert read.data == DATA and "NOTE: a note" in read.report()
    assert isinstance(read.split("train").ids_N, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        read.split("train").ids_N[0] = 1
    assert os.listdir(tmp_path) == ["c"]


@pytest.mark.parametrize("vocabulary", [250, 300, 70_000])
def test_ids_are_stored_in_the_smallest_type_that_holds_them(tmp_path, vocabulary):
    alphabet = [chr(i) for i in range(0x100, 0x100 + vocabulary) if not 0xD800 <= i < 0xE000]
    tokenizer = CharacterTokenizer(alphabet)
    text = (alphabet[-1] + alphabet[0]).encode()
    ids_N = write(tmp_path / "c", tokenizer, [(0, text)]).split("train").ids_N
    assert list(ids_N) == [len(alphabet), 1]
    assert ids_N.dtype == id_dtype(len(alphabet) + 1)
    assert ids_N.dtype.itemsize == {250: 1, 300: 2, 70_000: 4}[vocabulary]


def test_other_fingerprints_are_refused_with_both_shown(tmp_path):
    one = write(tmp_path / "one")
    other = write(tmp_path / "other", data=DataIdentity("text", "e" * 64))
    third = write(tmp_path / "third", WordTokenizer(["<unk>", "<eos>"]))
    assert len({one.fingerprint, other.fingerprint, third.fingerprint}) == 3
    with pytest.raises(DataError) as e:
        TokenCache(tmp_path / "one", fingerprint=other.fingerprint)
    assert one.fingerprint in str(e.value) and other.fingerprint in str(e.value)
    check_fingerprint(one.fingerprint, one.fingerprint, "the checkpoint")
    with pytest.raises(DataError, match="the checkpoint was made from other data or with another tokenizer"):
        check_fingerprint(one.fingerprint, third.fingerprint, "the checkpoint")


def truncate(folder):
    os.truncate(folder / "train.ids", 10)


def lengthen(folder):
    with (folder / "train.ids").open("ab") as file:
        file.write(b"x")


def flip(folder):
    data = bytearray((folder / "train.ids").read_bytes())
    data[7] ^= 4
    (folder / "train.ids").write_bytes(data)


def move_document(folder):
    starts = np.fromfile(folder / "train.documents", "<i8")
    (starts + 1).tofile(folder / "train.documents")


def lose_ids(folder):
    (folder / "test.ids").unlink()


def break_meta(folder):
    text = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(text[: len(text) // 2])


def forget(folder):
    meta = json.loads((folder / "meta.json").read_text())
    del meta["splits"]
    (folder / "meta.json").write_text(json.dumps(meta))


def change_meta(*path, to=None):
    """Damage of one field of meta.json: it has another value, or (None) it is gone."""

    def damage(folder):
        entry = meta = json.loads((folder / "meta.json").read_text())
        for key in path[:-1]:
            entry = entry[key]
        if to is None:
            del entry[path[-1]]
        else:
            entry[path[-1]] = to
        (folder / "meta.json").write_text(json.dumps(meta))

    return pytest.param(damage, id=f"{'.'.join(path)} {'gone' if to is None else to}")


def replace_meta(text):
    return pytest.param(lambda folder: (folder / "meta.json").write_bytes(text), id=f"{text!r} as meta.json")


META_DAMAGE = [
    *(change_meta(field) for field in ("format", "fingerprint", "data", "tokenizer", "splits", "crc32")),
    *(change_meta("data", field) for field in ("name", "fingerprint", "note")),
    *(change_meta("tokenizer", field) for field in ("kind", "fingerprint", "vocab_size")),
    *(change_meta("splits", "train", *path) for path in (("counts",), ("crc32",), ("counts", "tokens"), ("counts", "words"))),
    change_meta("splits", "train"),
    change_meta("splits", "train", "counts", "words", to=9),
    change_meta("splits", "train", "counts", "tokens", to="many"),
    change_meta("splits", "train", "counts", "vowels", to=9),
    change_meta("splits", "train", "crc32", to=[1]),
    change_meta("splits", to=[1, 2]),
    change_meta("data", "note", to="another note"),
    change_meta("data", to="text"),
    change_meta("tokenizer", "kind", to="characters"),
    change_meta("fingerprint", to="text:1/bytes:2"),
    change_meta("crc32", to="many"),
    *map(replace_meta, (b"", b"[]", b"null", b"{}", b"\xff", b'{"format": 2}')),
]


@pytest.mark.parametrize("damage", [truncate, lengthen, flip, move_document, lose_ids, break_meta, forget, *META_DAMAGE])
def test_damage_is_noticed(tmp_path, damage):
    write(tmp_path / "c")
    damage(tmp_path / "c")
    with pytest.raises(DataError, match=r"token cache .*/c is damaged: .*Delete the folder, and it is made again"):
        TokenCache(tmp_path / "c")


def test_other_damage(tmp_path):
    write(tmp_path / "c", WordTokenizer(["<unk>", "<eos>", "first"]))
    (tmp_path / "c" / "vocabulary.txt").write_text("<unk>\n<eos>\nsecond\n")
    with pytest.raises(DataError, match="is damaged: its tokenizer has fingerprint"):
        TokenCache(tmp_path / "c")
    meta = json.loads((tmp_path / "c" / "meta.json").read_text())
    (tmp_path / "c" / "meta.json").write_text(json.dumps(meta | {"format": 99}))
    with pytest.raises(DataError, match="has format 99, and this version reads 2"):
        TokenCache(tmp_path / "c")
    del meta["crc32"]
    (tmp_path / "c" / "meta.json").write_text(json.dumps(meta | {"format": 1}))  # as they were before the checksum
    with pytest.raises(DataError, match="has format 1, and this version reads 2: delete the folder, and it is made again"):
        TokenCache(tmp_path / "c")
    (tmp_path / "c" / "meta.json").unlink()
    with pytest.raises(DataError, match="is no whole token cache: it has no meta.json"):
        TokenCache(tmp_path / "c")


def test_a_failure_on_the_way_leaves_nothing(tmp_path):
    def pieces():
        yield 0, b"good"
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="fire"):
        write_cache(tmp_path / "c", ByteTokenizer(), DATA, {"train": pieces})
    assert os.listdir(tmp_path) == []


def test_a_half_written_cache_is_never_taken_for_a_whole_one(tmp_path):
    write(tmp_path / "c")
    for name in os.listdir(tmp_path / "c"):
        shutil.copytree(tmp_path / "c", tmp_path / "half")
        (tmp_path / "half" / name).unlink()
        with pytest.raises(DataError):
            TokenCache(tmp_path / "half")
        shutil.rmtree(tmp_path / "half")


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_words_are_counted_as_the_word_tokenizer_reads_them(tmp_path, size):
    texts = ["one\u00a0two\u2003three\u3000four\x1cfive\x85six \n漢字 é\u2028", "last\u1680", "", "\u2009first \u202f "]
    data = [text.encode() for text in texts]
    parts = [(i, text[j : j + size]) for i, text in enumerate(data) for j in range(0, len(text), size)]
    counts = write(tmp_path / "c", pieces=parts).split("train").counts
    assert counts.words == sum(len(text.split()) for text in texts) == 10
    words = write(tmp_path / "w", WordTokenizer.train(data), parts).split("train").counts
    assert words == dataclasses.replace(counts, tokens=counts.words + counts.lines)


@pytest.mark.parametrize("size", [1, 2, 100])
def test_words_of_what_is_not_utf8_are_counted(tmp_path, size):
    text = b"a\xff\xa0b \xe2\x80 c\xc2"  # nothing but the spaces is white space
    parts = [(0, text[j : j + size]) for j in range(0, len(text), size)]
    assert write(tmp_path / "c", pieces=[*parts, (1, b"\x83")]).split("train").counts.words == 4


def test_invalid_text_names_the_document(tmp_path):
    with pytest.raises(DataError, match=r"split 'train', document 1 \(counted from 0\), counted from its start: byte 2 is not valid UTF-8"):
        write(tmp_path / "c", CharacterTokenizer("ab"), [(0, b"aa"), (1, b"ab\xff")])


def test_nothing_is_written_over(tmp_path):
    write(tmp_path / "c")
    with pytest.raises(DataError, match="exists already: a cache is never written over"):
        write(tmp_path / "c")


def test_a_split_without_tokens_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"split 'train' has no tokens \(0 bytes of text\)"):
        write(tmp_path / "c", pieces=[])
    assert not (tmp_path / "c").exists()


def test_a_tokenizer_that_breaks_its_promise_is_caught(tmp_path):
    class Wrong(ByteTokenizer):
        @property
        def vocab_size(self):
            return 100

    with pytest.raises(DataError, match="gave ids 10 to 117, outside its vocabulary of 100"):
        write(tmp_path / "c", Wrong())
