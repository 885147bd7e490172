"""The parser: small files of the published form, and what is wrong with others, by file and line."""

import pytest

from armt_jax.data.babi import TASKS, Story, find_file, read_stories
from armt_jax.data.errors import DataError

TWO_STORIES = """\
1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Daniel went back to the hallway.
5 Where is Daniel? \thallway\t4 2
1 Sandra moved to the garden.
2 Where is Sandra?\tgarden\t1
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes, name="qa1_single-supporting-fact_test.txt"):
        file = tmp_path / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write


def test_questions_keep_the_facts_before_them_and_nothing_else(write):
    mary, john, daniel = "Mary moved to the bathroom.", "John went to the hallway.", "Daniel went back to the hallway."
    assert read_stories(write(TWO_STORIES)) == [
        Story("qa1", (mary, john), "Where is Mary?", "bathroom", (0,)),
        # Line 4 is the third fact: line 3 is a question. The published order of the supports is kept.
        Story("qa1", (mary, john, daniel), "Where is Daniel?", "hallway", (2, 1)),
        Story("qa1", ("Sandra moved to the garden.",), "Where is Sandra?", "garden", (0,)),
    ]


@pytest.mark.parametrize("text", [TWO_STORIES.replace("\n", "\r\n"), TWO_STORIES.removesuffix("\n")])
def test_line_ends_do_not_matter(write, text):
    assert read_stories(write(text)) == read_stories(write(TWO_STORIES, "qa1_other.txt"))


def test_the_task_is_in_the_name_or_given(write):
    assert read_stories(write(TWO_STORIES, "en-valid-10k_qa12_valid.txt"))[0].task == "qa12"
    assert read_stories(write(TWO_STORIES, "anything.txt"), task="qa2")[0].task == "qa2"
    with pytest.raises(DataError, match="anything.txt: the name does not tell the task"):
        read_stories(write(TWO_STORIES, "anything.txt"))
    with pytest.raises(DataError, match="task 'qa21' is not one of bAbI: use one of qa1, .*qa20"):
        read_stories(write(TWO_STORIES, "qa21_new_test.txt"))


@pytest.mark.parametrize(
    "line, bad, reason",
    [
        (1, "Mary moved to the bathroom.", "does not begin with a number and a space"),
        (2, "", "'' does not begin with a number"),
        (2, "0 John went to the hallway.", "does not begin with a number"),
        (2, "3 John went to the hallway.", "number 3 after 1: it must be 2, or 1"),
        (2, "2 John went to the", "'John went to the' does not end with a period"),
        (2, "2 .", "does not end with a period"),
        (3, "3 Where is Mary?\tbathroom", "has 2 fields separated by tabs, not 3"),
        (3, "3 Where is Mary?\tbathroom\t1\t2", "has 4 fields"),
        (3, "3 Where is Mary\tbathroom\t1", "does not end with a question mark"),
        (3, "3 Where is Mary? \t \t1", "the answer is empty"),
        (3, "3 Where is Mary? \tbathroom\t", "names no supporting line"),
        (3, "3 Where is Mary? \tbathroom\tone", "support 'one' must be the number of an earlier sentence"),
        (3, "3 Where is Mary? \tbathroom\t4", "support '4' must be"),
        (5, "5 Where is Daniel? \thallway\t3", "support '3' must be"),  # a question
        (7, "2 Where is Sandra?\tgarden\t2", "support '2' must be"),  # of the story before
        (7, "2 Sandra moved to the kitchen.", "the story ends without a question"),
    ],
)
def test_a_malformed_line_is_named(write, line, bad, reason):
    lines = TWO_STORIES.splitlines()
    lines[line - 1] = bad
    file = write("\n".join(lines) + "\n")
    with pytest.raises(DataError) as error:
        read_stories(file)
    assert f"{file}, line {line}" in str(error.value) and reason in str(error.value)


def test_a_story_without_a_question_within_the_file_is_named_where_it_ends(write):
    lines = TWO_STORIES.splitlines()
    with pytest.raises(DataError, match="line 4: the story ends without a question"):
        read_stories(write("\n".join(lines[:4] + lines[5:])))


def test_files_that_are_none(write, tmp_path):
    with pytest.raises(DataError, match="is empty"):
        read_stories(write(""))
    with pytest.raises(DataError, match="line 2 is not valid UTF-8"):
        read_stories(write(b"1 Mary moved to the bathroom.\n2 J\xff went to the hallway.\n"))
    with pytest.raises(DataError, match="qa1_gone.txt is not a file"):
        read_stories(tmp_path / "qa1_gone.txt")


def test_find_file(write, tmp_path):
    file = write(TWO_STORIES)
    write(TWO_STORIES, "qa10_indefinite-knowledge_test.txt")
    valid = write(TWO_STORIES, "qa1_valid.txt")
    assert find_file(tmp_path, "qa1", "test") == file
    assert find_file(str(tmp_path), "qa1", "validation") == valid
    with pytest.raises(DataError, match=r"holds no qa1_\*train.txt"):
        find_file(tmp_path, "qa1", "train")
    with pytest.raises(DataError, match="split 'dev' is unknown: use one of 'train', 'validation', 'test'"):
        find_file(tmp_path, "qa1", "dev")
    with pytest.raises(DataError, match="task 'qa0' is not one of bAbI: use one of " + ", ".join(TASKS)):
        find_file(tmp_path, "qa0", "test")
    with pytest.raises(DataError, match="gone is not a folder"):
        find_file(tmp_path / "gone", "qa1", "test")
    write(TWO_STORIES, "qa1_again_test.txt")
    with pytest.raises(DataError, match="holds 2 files"):
        find_file(tmp_path, "qa1", "test")
