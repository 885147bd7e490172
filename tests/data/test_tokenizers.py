"""Every tokenizer: text comes back, pieces give the ids of the whole, fingerprints tell tokenizers apart, bad files are refused."""

import json
import random

import numpy as np
import pytest

from armt_jax.data.errors import DataError, InvalidText
from armt_jax.data.tokenizers import (
    TOKENIZERS,
    ByteTokenizer,
    CharacterTokenizer,
    GPT2Tokenizer,
    PieceTokenizer,
    WordTokenizer,
    base,
    gpt2,
    pieces,
)
from tests.data.vocabularies import small_gpt2

TRICKY = (
    "It's the cat's  hat,\n\n\n  isn't it?\tYes 12 345\r\nnaïve café 漢字 🙂\u00a0no\u2003break 'll're\n = Title = \n \n"
    "x" * 90 + " \n\n \n a  b\n" + "漢" * 70 + " é" * 40 + "\n"
)


def prose(words: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    vocabulary = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(200)]
    return "".join(rng.choice(vocabulary) + rng.choice([" "] * 12 + [", ", ".\n", "  "]) for _ in range(words))


@pytest.fixture(scope="module")
def tokenizers():
    text = (prose(3000) + TRICKY).encode()
    lines = text.split(b"\n")
    return {
        "bytes": ByteTokenizer(),
        "characters": CharacterTokenizer.train([text]),
        "words": WordTokenizer.train([text]),
        "sentencepiece": PieceTokenizer.train(lines, 400, len(text)),
        "gpt2": small_gpt2(),
    }


@pytest.fixture(params=list(TOKENIZERS))
def tokenizer(request, tokenizers):
    return tokenizers[request.param]


def test_ids_fit_the_vocabulary_and_text_comes_back(tokenizer):
    text = prose(200, seed=1) + TRICKY
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
    assert np.array_equal(ids, tokenizer.encode(text.encode()))
    if tokenizer.lossless:
        assert tokenizer.decode_bytes(ids) == text.encode()
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("").shape == (0,)


def test_only_words_lose_white_space(tokenizer):
    assert tokenizer.lossless == (tokenizer.kind != "words")


@pytest.mark.parametrize("chunk", [16, 61, 200])
def test_parts_give_the_ids_of_the_whole(tokenizer, monkeypatch, chunk):
    text = (TRICKY + prose(300, seed=2) + TRICKY).encode()
    whole = tokenizer.encode(text)
    monkeypatch.setattr(base, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(gpt2, "_PIECE_BYTES", chunk // 2)
    monkeypatch.setattr(pieces, "_PIECE_BYTES", chunk // 2)
    for part in (1, 7, 1000, len(text)):
        parts = list(tokenizer.encode_parts(text[i : i + part] for i in range(0, len(text), part)))
        assert np.array_equal(np.concatenate(parts), whole)
        assert len(parts) > 3


def test_a_stretch_without_gaps_is_cut_between_characters_and_nothing_is_lost(tokenizer, monkeypatch):
    monkeypatch.setattr(base, "CHUNK_BYTES", 32)
    monkeypatch.setattr(base, "LONGEST_UNCUT", 100)
    text = "b漢" * 500
    ids = np.concatenate(list(tokenizer.encode_parts([text.encode()])))
    if tokenizer.lossless:
        assert tokenizer.decode(ids) == text
    else:
        assert set(ids[:-1]) == {tokenizer.unknown_id}


def test_saved_and_loaded_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = type(tokenizer).load(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert np.array_equal(loaded.encode(TRICKY), tokenizer.encode(TRICKY))


def test_fingerprints_differ(tokenizers):
    others = [CharacterTokenizer(pair) for pair in ("ab", "ac")] + [WordTokenizer(w.split()) for w in ("<eos> <unk> a", "<unk> <eos> a")]
    prints = [t.fingerprint for t in (*tokenizers.values(), *others)]
    assert len(set(prints)) == len(prints)


def test_ids_outside_the_vocabulary_are_refused(tokenizer):
    with pytest.raises(DataError, match=f"id {tokenizer.vocab_size} is outside the vocabulary"):
        tokenizer.decode([tokenizer.vocab_size])
    with pytest.raises(DataError, match="id -1 is outside"):
        tokenizer.decode([-1])


def test_invalid_utf8_is_refused_at_its_place(tokenizer, monkeypatch):
    monkeypatch.setattr(base, "CHUNK_BYTES", 40)
    text = b"good text here " * 9
    broken = text + b"\xff" + text
    if tokenizer.kind == "bytes":
        assert tokenizer.decode_bytes(tokenizer.encode(broken)) == broken
        return
    with pytest.raises(InvalidText, match=f"byte {len(text)} is not valid UTF-8.*'bytes' tokenizer") as e:
        tokenizer.encode(broken)
    assert e.value.offset == len(text)


def test_words_follow_the_wikitext_conventions():
    tokenizer = WordTokenizer.train([b" = T = \n \n b b a <unk>\n", b"b c\n"])
    # <eos>, then by falling count; equal counts in order of appearance.
    assert [tokenizer.decode([i]) for i in range(7)] == ["\n", "b", "=", "T", "a", "<unk>", "c"]
    assert list(tokenizer.encode(" b\n\nzz a")) == [1, 0, 0, 5, 4, 0]
    assert list(tokenizer.encode("b\n")) == [1, 0]
    assert tokenizer.decode(tokenizer.encode("b a\n\nc\n")) == "b a\n\nc\n"


def test_a_word_vocabulary_can_be_cut_to_the_most_frequent():
    text = [b"a a a b b c <unk>\n"]
    assert WordTokenizer.train(text, 3).vocab_size == 3
    assert list(WordTokenizer.train(text, 3).encode("a b\n")) == [1, 2, 0]
    assert list(WordTokenizer.train(text, 4).encode("a b c")) == [1, 2, 3, 0]
    with pytest.raises(DataError, match="vocab_size=2 must leave room"):
        WordTokenizer.train(text, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("<eos>\na\n", r"lacks <unk>, which words outside the vocabulary are read as: add a line <unk>"),
        ("<unk>\na\n", "lacks <eos>, which line ends are read as"),
        ("<unk>\n<eos>\na\na\n", "lists 'a' 2 times"),
        ("<unk>\n<eos>\na b\n", "holds 'a b' in line 3, which is no word"),
        ("<unk>\n<eos>\n\n", "holds '' in line 3, which is no word"),
        ("<eos>\r\n<unk>\r\na\r\n", r"holds '<eos>\\r' in line 1, which is no word: .*a line end of Windows"),
        ("<unk>\n<eos>\n a\n", "holds ' a' in line 3, which is no word"),
        ("<unk> \n<eos>\n", "holds '<unk> ' in line 1, which is no word"),
        ("<unk>\n<eos>\na\u00a0\n", r"holds 'a\\xa0' in line 3, which is no word"),
    ],
)
def test_bad_word_vocabularies(tmp_path, words, message):
    file = tmp_path / "vocabulary.txt"
    file.write_bytes(words.encode())
    with pytest.raises(DataError, match=message) as e:
        WordTokenizer.load(file)
    assert str(file) in str(e.value)


def test_words_that_encoding_cuts_are_in_no_vocabulary(monkeypatch):
    monkeypatch.setattr(base, "CHUNK_BYTES", 16)
    monkeypatch.setattr(base, "LONGEST_UNCUT", 40)
    text = ("x" * 41 + " " + "é" * 21 + " " + "y" * 40 + " <unk> short\n").encode()
    tokenizer = WordTokenizer.train([text])
    assert tokenizer.content().decode().split("\n") == ["<eos>", "y" * 40, "<unk>", "short"]
    assert not {"x" * 41, "é" * 21} & set(tokenizer.decode(tokenizer.encode(text)).split())


def test_characters_outside_the_vocabulary_are_unknown():
    tokenizer = CharacterTokenizer.train(["abé".encode()])
    assert list(tokenizer.encode("ézb")) == [3, 0, 2]
    assert tokenizer.decode([3, 0, 2]) == "é\ufffdb"


def test_bad_character_files(tmp_path):
    with pytest.raises(DataError, match="is missing"):
        CharacterTokenizer.load(tmp_path / "none.txt")
    (tmp_path / "bad.txt").write_text("U+0041\nhello\n")
    with pytest.raises(DataError, match="bad.txt is no list of code points"):
        CharacterTokenizer.load(tmp_path / "bad.txt")
    with pytest.raises(DataError, match="rising code point order"):
        CharacterTokenizer("ba")


def test_gpt2_merges_and_contractions():
    tokenizer = small_gpt2()
    ids = tokenizer.encode("the the\n\n the xxxx")
    assert [tokenizer.decode([i]) for i in ids] == ["the", " the", "\n\n", " the", " ", "xxxx"]
    assert tokenizer.decode_bytes(range(256)) == bytes(gpt2.byte_symbols())


def test_bad_gpt2_files(tmp_path):
    good = small_gpt2()
    with pytest.raises(DataError, match=r"holds no vocab.json or encoder.json"):
        GPT2Tokenizer.load(tmp_path)
    good.save(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(DataError, match=r"holds no merges.txt or vocab.bpe"):
        GPT2Tokenizer.load(tmp_path)
    good.save(tmp_path)
    (tmp_path / "merges.txt").write_text("a b c\n")
    with pytest.raises(DataError, match="'a b c': every line must be two tokens"):
        GPT2Tokenizer.load(tmp_path)
    (tmp_path / "merges.txt").write_text("q zzz\n")
    with pytest.raises(DataError, match="do not fit together"):
        GPT2Tokenizer.load(tmp_path)
    good.save(tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        GPT2Tokenizer.load(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary | {"the": 999}))
    with pytest.raises(DataError, match="must number them 0 to 263"):
        GPT2Tokenizer.load(tmp_path)
    del vocabulary["a"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    with pytest.raises(DataError, match=r"has no token for byte 0x61 \(1 of 256"):
        GPT2Tokenizer.load(tmp_path)


def test_sentencepiece_training_is_deterministic_and_keeps_every_byte():
    text = prose(2000, seed=3).encode()
    models = [PieceTokenizer.train(text.split(b"\n"), 330, len(text)) for _ in range(2)]
    assert models[0].content() == models[1].content()
    assert models[0].vocab_size == 330
    strange = "\n\n never seen: 漢\u0001🙂  \t\n "
    assert models[0].decode(models[0].encode(strange)) == strange


@pytest.mark.parametrize("line_end", ["", "\n", "\n\n"], ids=["one line", "lines", "every other line blank"])
def test_sentencepiece_trains_on_a_part_of_a_large_text_spread_over_it(monkeypatch, line_end):
    monkeypatch.setattr(pieces, "TRAINING_BYTES", 22_000)
    text = "".join(f"{i:08d} {line_end}" for i in range(20_000)).encode()  # longer than what is trained on by far, also as one line
    sampled = list(pieces._sample(text.split(b"\n"), len(text)))
    assert 11_000 < sum(map(len, sampled)) <= 22_000 + 1000
    numbers = [int(piece[:8]) for piece in sampled if len(piece) >= 8 and piece[:8].isdigit()]
    assert numbers == sorted(numbers)
    assert np.histogram(numbers, 4, (0, 20_000))[0].min() >= 0.8 * len(numbers) / 4


def test_sentencepiece_trains_on_all_of_a_small_text():
    assert list(pieces._sample([b"one\n", b"", "é".encode() * 2500, b"two"], 5008)) == ["one", "é" * 1000, "é" * 1000, "é" * 500, "two"]


def test_sentencepiece_errors(tmp_path):
    with pytest.raises(DataError, match="cannot train vocab_size=5000 on 12 bytes"):
        PieceTokenizer.train([b"hello hello\n"], 5000, 12)
    with pytest.raises(DataError, match="is missing: give the path of a SentencePiece .model file"):
        PieceTokenizer.load(tmp_path / "no.model")
    (tmp_path / "bad.model").write_bytes(b"hello")
    with pytest.raises(DataError, match="bad.model of 5 bytes is no SentencePiece model"):
        PieceTokenizer.load(tmp_path / "bad.model")


def test_published_gpt2(real_data):
    tokenizer = GPT2Tokenizer.load(real_data / "gpt2-bpe")
    assert tokenizer.vocab_size == 50257
    assert list(tokenizer.encode("Hello world")) == [15496, 995]
    assert tokenizer.decode([50256]) == "<|endoftext|>"
    text = (real_data / "books" / "test" / "10146.txt").read_bytes()[:100_000]
    assert tokenizer.decode_bytes(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", ["gpt2", "pg19train_bpe_4000.model", "sentencepiece_cc_all.32000.100extra-sentencepiece.model"])
def test_published_tokenizers_give_the_same_ids_in_parts(real_data, monkeypatch, name):
    tokenizer = GPT2Tokenizer.load(real_data / "gpt2-bpe") if name == "gpt2" else PieceTokenizer.load(real_data / "sentencepiece" / name)
    book = (real_data / "books" / "test" / "10321.txt").read_bytes()[:200_000]
    page = (real_data / "enwik8" / "enwik8.first4150000").read_bytes()[1_000_000:1_200_000]
    for text in (book, page):
        with monkeypatch.context() as m:
            m.setattr(pieces, "_PIECE_BYTES", 1 << 30)
            whole = tokenizer.encode(text)
        with monkeypatch.context() as m:
            m.setattr(base, "CHUNK_BYTES", 3000)
            m.setattr(gpt2, "_PIECE_BYTES", 700)
            m.setattr(pieces, "_PIECE_BYTES", 700)
            assert np.array_equal(tokenizer.encode(text), whole)
