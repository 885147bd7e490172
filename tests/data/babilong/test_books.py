"""Which text belongs to which split: no passage in two of them."""

import itertools
from pathlib import Path

import pytest

from armt_jax.data.babilong.books import divide
from armt_jax.data.errors import DataError


def files(division) -> dict[str, list[str]]:
    return {split: [part.file.path.name for part in parts] for split, parts in division.parts.items()}


def texts(config) -> dict[str, list[str]]:
    """Sentences of every split, decoded."""
    background = config.open()
    return {
        split: [background.codec.tokenizer.decode(ids) for ids in _sentences(background.split(split))]
        for split in ("train", "validation", "test")
    }


def _sentences(passages):
    ends = [*passages.starts[1:], passages.tokens]
    return [passages.read(int(start), int(end)) for start, end in zip(passages.starts, ends)]


def assert_disjoint(found: dict[str, list[str]]) -> None:
    assert all(found.values())
    for one, other in itertools.combinations(found.values(), 2):
        assert not set(one) & set(other)


@pytest.mark.parametrize("name", ["books", "pg19"])
def test_folders_of_splits_are_taken_as_they_are(background, name):
    division = divide(name, background.path, "")
    assert files(division) == {"train": ["Anna.txt", "Boris.txt", "Carol.txt"], "validation": ["Vera.txt"], "test": ["Tom.txt", "Uma.txt"]}
    assert_disjoint(texts(background))


def test_validation_is_taken_from_train(write_books, make_book):
    config = write_books({f"train/{i}.txt": make_book(f"B{i}") for i in range(5)} | {"test/t.txt": make_book("T")})
    assert files(divide("books", config.path, "")) == {
        "train": ["0.txt", "1.txt", "2.txt", "3.txt"], "validation": ["4.txt"], "test": ["t.txt"],
    }  # fmt: skip
    one = write_books({"train.txt": make_book("A"), "test.txt": make_book("T")}, folder="one")
    found = texts(one)
    assert_disjoint(found)
    assert len(found["train"]) == pytest.approx(9 * len(found["validation"]), abs=9)


def test_a_flat_folder_is_dealt_out_by_books(write_books, make_book):
    config = write_books({f"{i:02}.txt": make_book(f"B{i}") for i in range(25)})
    found = files(divide("books", config.path, ""))
    assert found["train"] == [f"{i:02}.txt" for i in range(21)]
    assert (found["validation"], found["test"]) == (["21.txt", "22.txt"], ["23.txt", "24.txt"])
    assert_disjoint(texts(config))


@pytest.mark.parametrize("books", [1, 2])
def test_few_books_are_cut(write_books, make_book, books):
    config = write_books({f"{i}.txt": make_book(f"B{i}", 200) for i in range(books)})
    found = texts(config)
    assert_disjoint(found)
    # In the order of the book, and nothing is lost.
    assert [len(found[split]) for split in ("train", "validation", "test")] == pytest.approx([160 * books, 20 * books, 20 * books], abs=4)
    assert sum(map(len, found.values())) == 200 * books
    assert found["train"][0].startswith(" B0 goes on for the 0th") and "199th" in found["test"][-1]


def test_a_file_is_a_book(write_books, make_book):
    config = write_books({"a.txt": make_book("A", 100)})
    assert divide("books", f"{config.path}/a.txt", "").parts == divide("books", config.path, "").parts


def test_the_same_text_in_two_splits_is_refused(write_books, make_book):
    config = write_books({"train/a.txt": make_book("A"), "train/b.txt": make_book("B"), "test/copy.txt": make_book("A")})
    with pytest.raises(
        DataError, match=r"copy.txt of split 'test' and .*a.txt of split 'train' hold the same text: .*take one of them away"
    ):
        config.open()


def test_a_sentence_of_a_later_split_is_left_out(write_books, make_book, caplog):
    """Another edition of a book of the test, with a preface of its own, and a quotation of it; validation and test keep what they have."""
    caplog.set_level("INFO")
    edition = "A preface that only this edition has.\n\nIt is two sentences long.\n\n" + make_book("T").replace("\n\n", "\n")
    quotation = make_book("A") + "\n\nV goes on for the 3th time and on and on and on, as ever.\n\nT goes on for the 5th time, as ever."
    books = {"train/a.txt": quotation, "train/edition.txt": edition, "validation/v.txt": make_book("V") + " " + make_book("T", 2)}
    found = texts(write_books(books | {"test/t.txt": make_book("T")}))
    assert_disjoint(found)
    assert len(found["test"]) == 60 and len(found["validation"]) == 60
    assert found["train"][60:] == [" A preface that only this edition has.", " It is two sentences long."]
    assert "split 'train' has 62 sentences; 62 more are left out, as they are in validation or test, too" in caplog.text
    assert "split 'validation' has 60 sentences; 2 more are left out, as they are in test, too" in caplog.text


def test_nothing_is_left_of_a_split(write_books, make_book):
    books = {"train/a.txt": make_book("A") + "\n", "validation/v.txt": make_book("V"), "test/a.txt": make_book("A")}
    config = write_books(books)
    with pytest.raises(DataError, match="split 'train' of .* has 0 sentences of .*more text .60 more are left out, as they are in"):
        config.open()
    assert not list(Path(config.cache_dir).glob("sentences/*"))


def test_articles_of_wikitext(write_books):
    article = "\n = {0} = \n \n The {0} is a thing that many people have seen . It is large and it is very old , they say . \n"
    texts_ = {f"wiki.{name}.tokens": "".join(article.format(f"{name} {i}") for i in range(4)) for name in ("train", "valid", "test")}
    config = write_books(texts_, name="wikitext2")
    found = texts(config)
    assert len(found["test"]) == 2 * 4 + 4  # headings of ten bytes and more are long enough for this tokenizer
    assert " It is large and it is very old , they say ." in found["test"]
    assert "not the published file" in config.open().report()


def test_missing_text(write_books, make_book, tmp_path):
    with pytest.raises(DataError, match="background 'novels' is unknown: use one of 'books', 'pg19'"):
        divide("novels", tmp_path, "")
    with pytest.raises(DataError, match="path is not set: background 'books' wants a folder of books"):
        divide("books", None, "")
    with pytest.raises(DataError, match="/none does not exist"):
        divide("books", tmp_path / "none", "")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"/empty holds no \*.txt: it must be a folder of books, one file a book"):
        divide("books", tmp_path / "empty", "")
    config = write_books({"train/a.txt": make_book("A")})
    with pytest.raises(DataError, match="but not for 'test': add .*/test"):
        config.open()
    config = write_books({"a.txt": make_book("A"), "b.txt": b""}, folder="flat")
    with pytest.raises(DataError, match="b.txt is empty: every book must hold text"):
        config.open()
