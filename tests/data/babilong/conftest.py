"""Small books and stories made by hand."""

import dataclasses

import pytest

from armt_jax.data.babi.story import Story
from armt_jax.data.babilong import BackgroundConfig, StorySource

ROOMS = ("office", "garden", "kitchen", "hallway")


def book(name: str, sentences: int = 60) -> str:
    """Sentences that are all different, of different lengths; no two books share one."""
    lines = [f"{name} goes on for the {i}th time{' and on' * (i % 5)}, as ever." for i in range(sentences)]
    return "\n\n".join("\n".join(lines[i : i + 7]) for i in range(0, sentences, 7))


@dataclasses.dataclass(frozen=True)
class HandStories(StorySource):
    """Story i has 1 + i % 5 facts."""

    size: int | None = 20

    def fingerprint(self, task, split):
        return f"hand:{self.size}"

    def count(self, task, split, compat):
        return self.size

    def story(self, task, split, index, seed, compat):
        rooms = [ROOMS[(index + i) % 4] for i in range(1 + index % 5)]
        facts = tuple(f"{who} moved to the {room}." for who, room in zip(("Mary", "John", "Mary", "John", "Mary"), rooms))
        return Story(task, facts, "Where is Mary?", rooms[(len(rooms) - 1) // 2 * 2], (0,))


@pytest.fixture
def stories():
    return HandStories()


@pytest.fixture
def endless_stories():
    return HandStories(None)


@pytest.fixture
def write_books(tmp_path):
    """write_books({"train/a.txt": "text", ...}) writes a folder of books and gives its config."""

    def write(texts, tokenizer="bytes", folder="books", **fields):
        for name, text in texts.items():
            file = tmp_path / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text.encode() if isinstance(text, str) else text)
        return BackgroundConfig(str(tmp_path / folder), tokenizer=tokenizer, cache_dir=str(tmp_path / "cache"), **fields)

    return write


@pytest.fixture
def make_book():
    return book


@pytest.fixture
def background(write_books):
    names = {"train": ("Anna", "Boris", "Carol"), "validation": ("Vera",), "test": ("Tom", "Uma")}
    return write_books({f"{split}/{name}.txt": book(name) for split, held in names.items() for name in held})
