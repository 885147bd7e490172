"""Which text is the background of which split, so that no passage is in two of them.

* A folder with train/ and test/ (or train.txt and test.txt; validation/ or valid/ likewise), WikiText and PG-19 are divided already.
  Where there is no validation part, it is taken from train by the rule below, a tenth.
* Any other folder of *.txt, or one file, is divided here: a tenth of it is for the test, a tenth for validation, the rest for training.
  From as many books as splits on, whole books are dealt out in the order of their names, the last ones to the test; fewer books are cut,
  each at 8/10 and 9/10 of its bytes, and a sentence belongs where it begins.
* Two splits with the same file, or with copies of it, are refused. (Single sentences of two splits: background.py.)
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from armt_jax.data.documents import PIECE_BYTES, Piece, Span, whole_file
from armt_jax.data.errors import DataError
from armt_jax.data.sources import SPLITS, locate

NAMES = ("books", "pg19", "wikitext2", "wikitext103")
_SHARES = {"train": 8, "validation": 1, "test": 1}
_FOLDERS = {"train": ("train",), "validation": ("validation", "valid"), "test": ("test",)}


@dataclasses.dataclass(frozen=True)
class Part:
    """What a split has of a file: the sentences that begin in [start, stop) of it."""

    file: Span
    start: int
    stop: int

    def __str__(self) -> str:
        whole = self.start == 0 and self.stop == self.file.stop
        return str(self.file.path) if whole else f"{self.file.path}, bytes {self.start:,} to {self.stop:,}"


@dataclasses.dataclass(frozen=True)
class Division:
    """Text, divided.

    parts: of each split, in order. cut: gives the documents of a file. fingerprint: of every byte and where it belongs. note: for readers
        of results.
    """

    name: str
    parts: dict[str, tuple[Part, ...]]
    cut: Callable[[tuple[Span, ...]], Iterator[Piece]]
    fingerprint: str
    note: str


def require_named(name: str, path: str | Path | None) -> None:
    """Raises DataError unless there is such a background, and a path where it needs one."""
    if name not in NAMES:
        raise DataError(f"background {name!r} is unknown: use one of {', '.join(map(repr, NAMES))}")
    if path is None and not name.startswith("wikitext"):
        raise DataError(f"path is not set: background {name!r} wants a folder of books, one *.txt a book")


def divide(name: str, path: str | Path | None, download_dir: str | Path) -> Division:
    """Finds the text and divides it.

    Args:
        name: "books" (any folder of *.txt, or one file), "pg19", "wikitext2" or "wikitext103".
        path: where it is; None fetches WikiText into download_dir.

    Raises:
        DataError: there is none, or two splits would read the same.
    """
    require_named(name, path)
    if name.startswith("wikitext"):
        source = locate(name, path, SPLITS, download_dir)
        return _division(name, {split: _whole(spans) for split, spans in source.spans.items()}, source.cut, source.note)
    root = Path(path).expanduser().absolute()
    if not root.exists():
        raise DataError(f"{root} does not exist: background {name!r} wants a folder of books, one *.txt a book")
    return _division(name, _folder(root), whole_file, "")


def _folder(root: Path) -> dict[str, tuple[Part, ...]]:
    if root.is_file():
        return _share(_books([root]), SPLITS)
    held = {}
    for split, folders in _FOLDERS.items():
        held[split] = [root / folder for folder in folders if (root / folder).is_dir()]
        held[split] += [root / f"{folder}.txt" for folder in folders if (root / f"{folder}.txt").is_file()]
    if not held["train"] and not held["test"]:
        return _share(_books(_text_files(root)), SPLITS)
    for split in ("train", "test"):
        if not held[split]:
            raise DataError(
                f"{root} has a part for one of 'train' and 'test' but not for {split!r}: add {root / split}/*.txt, or put all books into "
                "one folder, which is then divided by a rule"
            )
    books = {split: _books(_text_files(found[0])) for split, found in held.items() if found}
    if "validation" in books:
        return {split: _whole(spans) for split, spans in books.items()}
    return _share(books["train"], ("train", "validation")) | {"test": _whole(books["test"])}


def _text_files(path: Path) -> list[Path]:
    files = [path] if path.is_file() else sorted(path.glob("*.txt"))
    if not files:
        raise DataError(f"{path} holds no *.txt: it must be a folder of books, one file a book")
    return files


def _books(files: list[Path]) -> tuple[Span, ...]:
    for file in files:
        if not file.is_file() or file.stat().st_size == 0:
            raise DataError(f"{file} is {'empty' if file.is_file() else 'not a file'}: every book must hold text; take it away")
    return tuple(Span(file, 0, file.stat().st_size) for file in files)


def _whole(spans: tuple[Span, ...]) -> tuple[Part, ...]:
    return tuple(Part(span, span.start, span.stop) for span in spans)


def _share(books: tuple[Span, ...], splits: tuple[str, ...]) -> dict[str, tuple[Part, ...]]:
    """Deals books out, or cuts them where there are fewer than splits."""
    if len(books) >= len(splits):
        later = max(1, len(books) // 10)
        first = len(books) - later * (len(splits) - 1)
        cuts = [0, first, *(first + later * i for i in range(1, len(splits)))]
        return {split: _whole(books[cuts[i] : cuts[i + 1]]) for i, split in enumerate(splits)}
    total, before, parts = sum(_SHARES[split] for split in splits), 0, {}
    for split in splits:
        after = before + _SHARES[split]
        parts[split] = tuple(Part(book, book.stop * before // total, book.stop * after // total) for book in books)
        before = after
    return parts


def _division(name: str, parts: dict[str, tuple[Part, ...]], cut: Callable, note: str) -> Division:
    digests: dict[Span, str] = {part.file: "" for held in parts.values() for part in held}
    digests = {span: _sha256(span) for span in digests}
    holders: dict[str, tuple[str, Part]] = {}
    for split, held in parts.items():
        for part in held:
            other_split, other = holders.setdefault(digests[part.file], (split, part))
            if other_split != split and (other.start < part.stop and part.start < other.stop):
                raise DataError(
                    f"{part.file.path} of split {split!r} and {other.file.path} of split {other_split!r} hold the same text: no passage "
                    "may be in two splits; take one of them away"
                )
    listed = {split: [[digests[part.file], part.start, part.stop] for part in held] for split, held in parts.items()}
    return Division(name, parts, cut, hashlib.sha256(repr(sorted(listed.items())).encode()).hexdigest(), note)


def _sha256(span: Span) -> str:
    digest = hashlib.sha256()
    with span.path.open("rb") as file:
        while block := file.read(PIECE_BYTES):
            digest.update(block)
    return digest.hexdigest()
