"""The rule that cuts text into sentences."""

import pytest

from armt_jax.data.babilong import sentences as module
from armt_jax.data.babilong.sentences import sentences
from armt_jax.data.errors import InvalidText


def cut(text: str, part: int = 1 << 20) -> list[str]:
    data = text.encode()
    return [sentence.text for sentence in sentences(data[i : i + part] for i in range(0, len(data), part))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One went. Two came! Who? None…  Five.", ["One went.", "Two came!", "Who?", "None…", "Five."]),
        ("A line\nwrapped\there. And\r\nmore.", ["A line wrapped here.", "And more."]),
        ("TITLE\n\nBy a man\n \t\nThe text.", ["TITLE", "By a man", "The text."]),
        ("Mr. Hall saw Dr. Watt. He left.", ["Mr. Hall saw Dr. Watt.", "He left."]),
        ("J. K. Smith met T.M. Newson. É. Zola too.", ["J. K. Smith met T.M. Newson.", "É. Zola too."]),
        ("It was I. He knew.", ["It was I.", "He knew."]),
        ('"Oh!" said he. "Go!" Mary went.', ['"Oh!" said he.', '"Go!"', "Mary went."]),
        ("“Stop.” (He did.) _Why?_ Nobody knew.", ["“Stop.”", "(He did.)", "_Why?_", "Nobody knew."]),
        ("Well... he came at 5.30 p.m. and left.", ["Well... he came at 5.30 p.m. and left."]),
        ("He wrote i.e. That is. 12 men came. 漢字。", ["He wrote i.e. That is.", "12 men came.", "漢字。"]),
        (" = Title = \n \n Text , as tokenised . The next one . \n", ["= Title =", "Text , as tokenised .", "The next one ."]),
        ("no end at all", ["no end at all"]),
        ("", []),
        (" \n\n \n", []),
    ],
)  # fmt: skip
def test_the_rule(text, expected):
    assert cut(text) == expected


@pytest.mark.parametrize("part", [1, 2, 3, 7, 64])
def test_parts_give_the_sentences_of_the_whole(part):
    text = "Café one. Two\n\nthree\n \n\n four? Mr.\nFive!\r\n\r\nSix 漢字 seven.\n\n\n\n" * 3
    assert list(sentences(text.encode()[i : i + part] for i in range(0, len(text.encode()), part))) == list(sentences([text.encode()]))


def test_places_rise_and_lie_in_the_text():
    text = ("Café one. Two   is   here. Three.\n\n" * 20).encode()
    places = [sentence.place for sentence in sentences([text])]
    assert places == sorted(set(places)) and places[0] == 0
    # Never after the sentence itself, which decides what lies before a cut.
    assert [text[place:].lstrip()[:3] for place in places[::3]] == [b"Caf"] * 20


def test_a_paragraph_without_end_is_cut_at_spaces(monkeypatch):
    monkeypatch.setattr(module, "LONGEST_PARAGRAPH", 50)
    found = cut("word " * 100, part=16)
    assert len(found) > 5 and " ".join(found).split() == ["word"] * 100
    assert "".join(cut("漢" * 100, part=16)) == "漢" * 100


def test_bad_bytes_are_refused_at_their_place():
    with pytest.raises(InvalidText, match="byte 16 is not valid UTF-8"):
        list(sentences([b"Good.\n\nVery ", b"good\xff.\n\n"]))
