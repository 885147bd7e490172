"""The corpora: which files each is made of, where they are published, and how they are split.

`locate` finds the files in a local folder, or fetches the official ones, and fingerprints them.
"""

import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from armt_jax.data.documents import Piece, Span, whole_file, wikipedia_pages, wikitext_articles
from armt_jax.data.download import download_and_unzip, one_at_a_time
from armt_jax.data.errors import DataError, InvalidText

SPLITS = ("train", "validation", "test")
ENWIK8_BYTES = 100_000_000
ENWIK8_SHA256 = "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"

# What a prefix of enwik8 can be known by: how it begins, and the SHA-256 of its first bytes where it has that many.
ENWIK8_START = b'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.3/"'
ENWIK8_PREFIX = (4_150_000, "204482105f330f13c6490df36624bd9bc020dd24ba0854e005ada4d735ad6d7e")


@dataclasses.dataclass(frozen=True)
class Archive:
    """A published zip file. members: files in it that are wanted."""

    urls: tuple[str, ...]
    sha256: str
    members: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Source:
    """A corpus on disk.

    Attributes:
        name: of the corpus. spans: of each split, in order. cut: gives the documents of spans.
        fingerprint: 64 hex digits, of every byte and its place; not of where the files lie.
        note: what a reader of results must know about the data.
    """

    name: str
    spans: dict[str, tuple[Span, ...]]
    cut: Callable[[tuple[Span, ...]], Iterator[Piece]]
    fingerprint: str
    note: str

    def pieces(self, split: str) -> Iterator[Piece]:
        """The text of a split, in order."""
        return self.cut(self.spans[split])

    def unreadable(self, split: str, document: int, error: InvalidText) -> DataError:
        """The error about a document that is not UTF-8, with the place in its file (`error` has the place in the document)."""
        if self.cut is whole_file:
            return DataError(f"{self.spans[split][document].path}: {error}")
        (span,) = self.spans[split]
        before = itertools.takewhile(lambda piece: piece.document < document, self.pieces(split))
        place = span.start + sum(len(piece.text) for piece in before) + error.offset
        for edge in (span.start, span.stop):
            if abs(edge - place) < 4 and _parts_a_character(span.path, edge):
                return DataError(
                    f"{span.path}: byte {place} is not valid UTF-8 in {split!r}, because the cut between two splits, at byte {edge}, "
                    "parts a character: take a few bytes off the end of the file, which moves the cut, or use the 'bytes' tokenizer"
                )
        return DataError(f"{span.path} ({split} document {document}, counted from 0): {InvalidText(place, error.reason)}")

    def num_bytes(self, split: str) -> int:
        return sum(span.stop - span.start for span in self.spans[split])


def _wikitext(number: str, sha256: str) -> Archive:
    file = f"wikitext-{number}-v1.zip"
    hosts = ("https://wikitext.smerity.com", "https://s3.amazonaws.com/research.metamind.io/wikitext")
    members = tuple(f"wikitext-{number}/wiki.{part}.tokens" for part in ("train", "valid", "test"))
    return Archive(tuple(f"{host}/{file}" for host in hosts), sha256, members)


ARCHIVES: dict[str, Archive] = {
    "wikitext103": _wikitext("103", "242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590"),
    "wikitext2": _wikitext("2", "92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c"),
    "enwik8": Archive(
        ("https://mattmahoney.net/dc/enwik8.zip",), "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc", ("enwik8",)
    ),
}

# SHA-256 of the published files; of one of them only the SHA-1 is known (40 digits), which the readers of MXNet and GluonNLP check.
PUBLISHED: dict[str, dict[str, str]] = {
    "wikitext103": {
        "train": "b7497e2dfe77e72cfef5e3dbc61b7b53712ac211",
        "validation": "9aee9f52d6e77de6c7751fc5e7c44287db3ec0eaf15477098acc6b93c1c4250b",
        "test": "56db52eb157b1ab5c89646eef70510c1eca6e12a3bfdb99f0d6b05b4eacb75b9",
    },
    "wikitext2": {
        "train": "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
        "validation": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
        "test": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
    },
}

_WIKITEXT_FILES = {"train": "wiki.train.tokens", "validation": "wiki.valid.tokens", "test": "wiki.test.tokens"}
_FOLDERS = {"train": ("train",), "validation": ("validation", "valid"), "test": ("test",)}


def locate(name: str, path: str | Path | None, splits: Sequence[str] = SPLITS, download_dir: str | Path | None = None) -> Source:
    """The corpus of this name.

    Args:
        name: "wikitext103", "wikitext2", "enwik8", "pg19", or "text" (any folder of text).
        path: where its files are (see the README of each in the error for a missing one). None: they are fetched into `download_dir`.
        splits: those that are needed; files of others may be missing.

    Raises:
        DataError: a file is missing or empty, two places hold one split, or the download failed. The message says which files are wanted
            where. Files of another content than the published ones are no error: `Source.note` says so.
    """
    if name not in SOURCES:
        close = difflib.get_close_matches(str(name), SOURCES, n=1)
        raise DataError(f"corpus {name!r} is unknown: " + (f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(SOURCES)}"))
    if unknown := [split for split in splits if split not in SPLITS]:
        raise DataError(f"split {unknown[0]!r} is unknown: use {', '.join(map(repr, SPLITS))}")
    if not splits:
        raise DataError("splits=() asks for nothing: name at least one of " + ", ".join(map(repr, SPLITS)))
    splits = tuple(split for split in SPLITS if split in splits)
    folder = _download(name, download_dir) if path is None else Path(path).expanduser().absolute()
    if not folder.exists():
        raise DataError(f"{folder} does not exist. {_wanted(name, splits)}")
    return SOURCES[name](name, folder, splits)


def _download(name: str, download_dir: str | Path | None) -> Path:
    if name not in ARCHIVES or download_dir is None:
        raise DataError(f"data.path is not set. {_wanted(name, SPLITS)}")
    archive = ARCHIVES[name]
    folder = Path(download_dir).expanduser().absolute() / name
    files = [folder / Path(member).name for member in archive.members]
    if not all(file.is_file() for file in files):
        with one_at_a_time(folder):
            if not all(file.is_file() for file in files):  # while we waited, another process may have fetched them
                try:
                    download_and_unzip(archive.urls, archive.sha256, archive.members, folder)
                except DataError as e:
                    raise DataError(f"{e}. Without a network, set data.path. {_wanted(name, SPLITS)}") from e
    return folder


def _wanted(name: str, splits: Sequence[str]) -> str:
    """Which files `data.path` must hold."""
    if name.startswith("wikitext"):
        files = ", ".join(_WIKITEXT_FILES[split] for split in splits)
        return f"{name} wants a folder with {files} (from {ARCHIVES[name].urls[0]})"
    if name == "enwik8":
        url = ARCHIVES[name].urls[0]
        return f"enwik8 wants the file enwik8 of {ENWIK8_BYTES:,} bytes, or a prefix of it, or the folder it is in (from {url})"
    files = " and ".join(f"{_FOLDERS[split][0]}/*.txt (or {_FOLDERS[split][0]}.txt)" for split in splits)
    fetch = f" Fetch it with: gsutil -m cp -r {' '.join(f'gs://deepmind-gutenberg/{split}' for split in SPLITS)} FOLDER"
    return f"{name} wants a folder with {files}, one document a file.{fetch if name == 'pg19' else ''}"


def _locate_wikitext(name: str, folder: Path, splits: tuple[str, ...]) -> Source:
    files = {split: folder / _WIKITEXT_FILES[split] for split in splits}
    _require(name, splits, [file for file in files.values() if not file.is_file()])
    spans = {split: (_span(file),) for split, file in files.items()}
    hashes = {split: _sha256(spans[split][0]) for split in splits}
    other = [split for split in splits if not _is_published(name, split, spans[split][0], hashes[split])]
    note = f"not the published file: {', '.join(f'{files[split]}{_known_as(hashes[split])}' for split in other)}" if other else ""
    return Source(name, spans, wikitext_articles, _fingerprint(name, {split: [h] for split, h in hashes.items()}), note)


def _is_published(name: str, split: str, span: Span, sha256: str) -> bool:
    known = PUBLISHED[name][split]
    return known == (sha256 if len(known) == 64 else _digest(span, "sha1"))


def _known_as(sha256: str) -> str:
    """Which published file this is, if it is one; for a file that lies in the place of another."""
    found = [f" (it is {split!r} of {name})" for name, files in PUBLISHED.items() for split, known in files.items() if known == sha256]
    return found[0] if found else ""


def _locate_enwik8(name: str, path: Path, splits: tuple[str, ...]) -> Source:
    file = path
    if path.is_dir():
        found = [path / "enwik8"] if (path / "enwik8").is_file() else [p for p in sorted(path.glob("enwik8*")) if p.suffix != ".zip"]
        if len(found) != 1:
            raise DataError(
                f"{path} holds {len(found)} files that could be enwik8 ({', '.join(p.name for p in found)}). {_wanted(name, splits)}"
            )
        file = found[0]
    size = _span(file).stop
    if size > ENWIK8_BYTES:
        raise DataError(
            f"{file} has {size:,} bytes, more than the {ENWIK8_BYTES:,} of enwik8: this is another file. {_wanted(name, splits)}"
        )
    if size < 20:
        raise DataError(f"{file} has {size} bytes, too few for three splits. {_wanted(name, splits)}")
    first, second = size * 90 // 100, size * 95 // 100
    cuts = {"train": (0, first), "validation": (first, second), "test": (second, size)}
    spans = {split: (Span(file, *cuts[split]),) for split in splits}
    sizes = f"{first:,} / {second - first:,} / {size - second:,} bytes"
    note = _enwik8_note(file, size, sizes)
    return Source(name, spans, wikipedia_pages, _fingerprint(name, {split: [_sha256(spans[split][0])] for split in splits}), note)


def _enwik8_note(file: Path, size: int, sizes: str) -> str:
    if size == ENWIK8_BYTES:
        return "" if _sha256(Span(file, 0, size)) == ENWIK8_SHA256 else f"not the published file: {file} has another SHA-256 than enwik8"
    split = f"split 90/5/5 like the whole ({sizes}); results do not compare with published ones"
    with file.open("rb") as start:
        if start.read(len(ENWIK8_START)) != ENWIK8_START[:size]:
            return f"not the published file: {file} does not begin as enwik8 does; {split}"
    known, sha256 = ENWIK8_PREFIX
    if size < known:
        checked = f"by its first {min(size, len(ENWIK8_START))} bytes"
    elif _sha256(Span(file, 0, known)) == sha256:
        checked = f"checked up to byte {known:,}"
    else:
        return f"not the published file: the first {known:,} bytes of {file} are not those of enwik8; {split}"
    return f"prefix of enwik8 ({checked}): the first {size:,} of {ENWIK8_BYTES:,} bytes, {split}"


def _parts_a_character(file: Path, at: int) -> bool:
    """Whether a character of UTF-8 lies on both sides of a place in a file."""
    with file.open("rb") as text:
        text.seek(max(at - 3, 0))
        before, after = text.read(min(at, 3)), text.read(3)
    return any(_is_character(before[-n:] + after[:m]) for n in range(1, len(before) + 1) for m in range(1, len(after) + 1))


def _is_character(data: bytes) -> bool:
    try:
        return len(data.decode("utf-8")) == 1
    except UnicodeDecodeError:
        return False


def _locate_folder(name: str, folder: Path, splits: tuple[str, ...]) -> Source:
    places = {split: _place(folder, split) for split in splits}
    _require(name, splits, [folder / _FOLDERS[split][0] / "*.txt" for split in splits if places[split] is None])
    files = {split: _text_files(place) for split, place in places.items()}
    spans = {split: tuple(map(_span, files[split])) for split in splits}
    hashes = {split: [[span.path.name, _sha256(span)] for span in spans[split]] for split in splits}
    ignored = [file for split in splits for file in _ignored(folder, split, files[split])]
    note = f"files that are not read (only *.txt is, and no subfolder): {len(ignored)}, the first is {ignored[0]}" if ignored else ""
    return Source(name, spans, whole_file, _fingerprint(name, hashes), note)


def _place(folder: Path, split: str) -> Path | None:
    """The one folder or file that holds the text of a split; None: there is none."""
    folders = [folder / part for part in _FOLDERS[split] if any((folder / part).glob("*.txt"))]
    found = folders + [file for part in _FOLDERS[split] if (file := folder / f"{part}.txt").is_file()]
    if len(found) > 1:
        raise DataError(f"{' and '.join(map(str, found))} all hold text of the split {split!r}: keep one of them, and move the others away")
    return found[0] if found else None


def _text_files(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(place.glob("*.txt"))


def _ignored(folder: Path, split: str, read: list[Path]) -> list[Path]:
    """Files in the folders of a split that are not read; hidden ones are nobody's text."""
    found = [file for part in _FOLDERS[split] for file in sorted((folder / part).rglob("*")) if file.is_file()]
    known = set(read)
    return [file for file in found if file not in known and not file.name.startswith(".")]


def _require(name: str, splits: tuple[str, ...], missing: list[Path]) -> None:
    if missing:
        raise DataError(
            f"{', '.join(map(str, missing))}: missing. {_wanted(name, splits)}. To use only some of the splits, name them in data.splits"
        )


def _span(file: Path) -> Span:
    if not file.is_file():
        raise DataError(f"{file} is not a file: it must be one of text")
    size = file.stat().st_size
    if size == 0:
        raise DataError(f"{file} is empty: it must hold text. Take it away, or fetch it again if it should not be empty")
    return Span(file, 0, size)


def _sha256(span: Span) -> str:
    return _digest(span, "sha256")


def _digest(span: Span, algorithm: str) -> str:
    # Against files that were mistaken for others, not against forgers.
    digest, left = hashlib.new(algorithm, usedforsecurity=False), span.stop - span.start
    with span.path.open("rb") as file:
        file.seek(span.start)
        while left and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def _fingerprint(name: str, hashes: dict) -> str:
    return hashlib.sha256(json.dumps([name, hashes], sort_keys=True).encode()).hexdigest()


SOURCES: dict[str, Callable[[str, Path, tuple[str, ...]], Source]] = {
    "wikitext103": _locate_wikitext,
    "wikitext2": _locate_wikitext,
    "enwik8": _locate_enwik8,
    "pg19": _locate_folder,
    "text": _locate_folder,
}


@functools.lru_cache(maxsize=64)
def located(name: str, path: str | None, splits: tuple[str, ...], download_dir: str) -> Source:
    """As `locate`, once a process: it reads every byte."""
    return locate(name, path, splits, download_dir)
