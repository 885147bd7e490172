"""Stories of the published files: validation from train, orders, and what is left out."""

import pytest

from armt_jax.data.babi.story import Story
from armt_jax.data.babilong import GeneratedStories, StoryFiles
from armt_jax.data.babilong.stories import split_training
from armt_jax.data.errors import DataError


def told(number: int, questions: int = 5) -> list[Story]:
    """The questions of a story, which share facts."""
    facts = tuple(f"{number} moved {i}." for i in range(2 * questions))
    return [Story("qa1", facts[: 2 * i + 2], "Where is Mary?", "office", (0,)) for i in range(questions)]


def test_validation_begins_with_a_new_story():
    stories = [story for i in range(21) for story in told(i)]
    train, validation = split_training(stories)
    assert train + validation == stories
    assert len(train) == 95  # 94.5 and on to the end of a story
    assert not {story.facts[0] for story in train} & {story.facts[0] for story in validation}
    assert len(split_training(stories[:50])[1]) == 5


def write(folder, split="train", stories=20):
    folder.mkdir(exist_ok=True)
    lines = []
    for number in range(stories):
        for i in range(5):
            lines += [f"{3 * i + 1} Mary moved to the office.", f"{3 * i + 2} John{number}x{i} went to the garden."]
            lines.append(f"{3 * i + 3} Where is Mary? \toffice\t{3 * i + 1}")
    (folder / f"qa1_single-supporting-fact_{split}.txt").write_text("\n".join(lines) + "\n")
    return StoryFiles(str(folder))


@pytest.fixture
def files(tmp_path):
    pytest.importorskip("armt_jax.data.babi.files")
    write(tmp_path / "babi", "test", 4)
    return write(tmp_path / "babi")


def test_splits(files):
    counts = {split: files.count("qa1", split, "default") for split in ("train", "validation", "test")}
    assert counts == {"train": 90, "validation": 10, "test": 20}
    assert [files.count("qa1", split, "published") for split in counts] == [89, 9, 19]
    assert files.story("qa1", "test", 0, 0, "default").facts == ("Mary moved to the office.", "John0x0 went to the garden.")
    with pytest.raises(DataError, match="index=20 is past the 20 stories of qa1, split 'test'"):
        files.story("qa1", "test", 20, 0, "default")


def test_training_reads_every_story_once_an_epoch_in_new_orders(files):
    def epoch(number, seed):
        return [files.story("qa1", "train", number * 90 + i, seed, "default") for i in range(90)]

    first, second, other = epoch(0, 0), epoch(1, 0), epoch(0, 1)
    assert first == epoch(0, 0)
    assert first != second and first != other
    assert set(first) == set(second) == set(other) and len(set(first)) == 90


def test_most_facts(files):
    shorter = StoryFiles(files.folder, max_facts=4)
    assert shorter.count("qa1", "test", "default") == 8
    assert shorter.count("qa1", "test", "published") == 3  # the question counts, and the last is left out
    with pytest.raises(DataError, match="gives no story for split 'test' with max_facts=1"):
        StoryFiles(files.folder, max_facts=1).count("qa1", "test", "default")
    with pytest.raises(ValueError, match="max_facts=0 is out of range"):
        StoryFiles(files.folder, max_facts=0)


def test_fingerprints(files, tmp_path):
    prints = {files.fingerprint("qa1", split) for split in ("train", "test")}
    prints.add(StoryFiles(files.folder, max_facts=4).fingerprint("qa1", "test"))
    prints.add(write(tmp_path / "other", "test", 5).fingerprint("qa1", "test"))
    assert len(prints) == 4
    assert write(tmp_path / "same", "test", 4).fingerprint("qa1", "test") == files.fingerprint("qa1", "test")


def test_generated_stories():
    pytest.importorskip("armt_jax.data.babi.worlds", exc_type=ImportError)
    from armt_jax.data.babi import worlds

    if not hasattr(worlds, "generate"):
        pytest.skip("the generator is not there yet")
    stories = GeneratedStories(max_facts=8)
    assert stories.count("qa1", "train", "default") is None
    drawn = [stories.story("qa1", split, i, 0, "default") for split in ("train", "validation", "test") for i in range(50)]
    assert len(set(drawn)) > 120 and all(len(story.facts) <= 8 for story in drawn)
    assert drawn[60] == stories.story("qa1", "validation", 10, 0, "default")
