"""Cutting files into documents, and documents into pieces of bounded size. Joined again, the pieces are the file, byte for byte."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

PIECE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Span:
    """Bytes [start, stop) of a file."""

    path: Path
    start: int
    stop: int


class Piece(NamedTuple):
    """Part of a document, of at most PIECE_BYTES. `document` counts from 0 within a split."""

    document: int
    text: bytes


class Line(NamedTuple):
    """A line with its end, or a part of a long one. `begins`: it is the start of its line."""

    text: bytes
    begins: bool


def whole_file(spans: tuple[Span, ...]) -> Iterator[Piece]:
    """Every span is one document."""
    for document, span in enumerate(spans):
        with span.path.open("rb") as file:
            file.seek(span.start)
            left = span.stop - span.start
            while left and (text := file.read(min(PIECE_BYTES, left))):
                yield Piece(document, text)
                left -= len(text)


def wikitext_articles(spans: tuple[Span, ...]) -> Iterator[Piece]:
    """A document begins at a blank line before a level-1 heading (" = Title = ") with a blank line after it."""

    def begins(first: Line, second: Line | None, third: Line | None) -> bool:
        if second is None or third is None or not first.begins or first.text.strip() or third.text.strip():
            return False
        heading = second.text.strip()
        return heading.startswith(b"= ") and heading.endswith(b" =") and not heading.startswith(b"= =") and len(heading) > 4

    return _by_lines(spans, begins)


def wikipedia_pages(spans: tuple[Span, ...]) -> Iterator[Piece]:
    """A document begins at a line "<page>"; what comes before the first one is a document of its own."""
    return _by_lines(spans, lambda first, second, third: first.begins and first.text.strip() == b"<page>")


def _by_lines(spans: tuple[Span, ...], begins: Callable[[Line, Line | None, Line | None], bool]) -> Iterator[Piece]:
    document = -1
    for span in spans:
        document += 1
        held: list[bytes] = []
        size, is_first = 0, True
        for line, second, third in _triples(_lines(span)):
            # The first document begins with the file, whatever its first line.
            new = begins(line, second, third) and not is_first
            if held and (new or size + len(line.text) > PIECE_BYTES):
                yield Piece(document, b"".join(held))
                held, size = [], 0
            document += new
            held.append(line.text)
            size += len(line.text)
            is_first = False
        if held:
            yield Piece(document, b"".join(held))


def _lines(span: Span) -> Iterator[Line]:
    with span.path.open("rb") as file:
        file.seek(span.start)
        left, begins = span.stop - span.start, True
        while left and (text := _readline(file, left)):
            yield Line(text, begins)
            left -= len(text)
            begins = text.endswith(b"\n")


def _readline(file: BinaryIO, left: int) -> bytes:
    return file.readline(min(left, PIECE_BYTES))


def _triples(lines: Iterator[Line]) -> Iterator[tuple[Line, Line | None, Line | None]]:
    """Each line with the two after it."""
    first, second = next(lines, None), next(lines, None)
    while first is not None:
        third = next(lines, None)
        yield first, second, third
        first, second = second, third
