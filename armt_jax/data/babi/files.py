"""The published files of bAbI: one story after another, a line each sentence.

    1 Mary moved to the bathroom.
    2 John went to the hallway.
    3 Where is Mary? <tab>bathroom<tab>1

Line numbers start again at 1 with each story. A question is followed by its answer and the numbers of the lines that support it.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from armt_jax.data.babi.story import Story, require_task
from armt_jax.data.errors import DataError

# How each split is called in the names of files. Only the published "en-valid" folders have a validation file.
SPLITS = {"train": "train", "validation": "valid", "test": "test"}

_LINE = re.compile(r"([1-9][0-9]*) (.*)")
_NAMED_TASK = re.compile(r"(?:^|_)(qa[0-9]+)_")
_FORM = "the form is 'number sentence.' or 'number question?<tab>answer<tab>numbers of the supporting lines'"


def find_file(folder: str | Path, task: str, split: str) -> Path:
    """The file of a task and a split, such as en-10k/qa1_single-supporting-fact_train.txt.

    Raises:
        DataError: the task or the split is unknown, or the folder does not hold exactly one such file.
    """
    require_task(task)
    if split not in SPLITS:
        raise DataError(f"split {split!r} is unknown: use one of {', '.join(map(repr, SPLITS))}")
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: name the one of the bAbI files, such as tasks_1-20_v1-2/en-10k")
    pattern = f"{task}_*{SPLITS[split]}.txt"
    found = sorted(file for file in folder.glob(pattern) if file.is_file())
    if not found:
        raise DataError(f"{folder} holds no {pattern}: name the folder of the bAbI files, such as tasks_1-20_v1-2/en-10k")
    if len(found) > 1:
        raise DataError(f"{folder} holds {len(found)} files {pattern} ({', '.join(f.name for f in found)}): leave one")
    return found[0]


def read_stories(path: str | Path, task: str | None = None) -> list[Story]:
    """Every question of a file, in order.

    Args:
        path: of the file.
        task: the task it belongs to; None reads it off the name of the file.

    Raises:
        DataError: the file is missing, empty, cut short, not UTF-8, or has a malformed line. The message names file and line.
    """
    path = Path(path).expanduser()
    task = _task_of(path) if task is None else task
    require_task(task)
    if not path.is_file():
        raise DataError(f"{path} is not a file: name one of the bAbI files, such as qa1_single-supporting-fact_test.txt")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line} is not valid UTF-8 ({error.reason}): fetch the published file again") from error
    lines = text.removesuffix("\n").replace("\r\n", "\n").split("\n")
    if lines == [""]:
        raise DataError(f"{path} is empty: fetch the published file again")
    return list(_parse(path, task, lines))


def _task_of(path: Path) -> str:
    named = _NAMED_TASK.search(path.name)
    if named is None:
        raise DataError(f"{path}: the name does not tell the task (the published ones begin with 'qa1_' to 'qa20_'): give task='qa1', say")
    return named[1]


def _parse(path: Path, task: str, lines: list[str]) -> Iterator[Story]:
    facts: list[str] = []
    places: dict[int, int] = {}  # of each line of the story that is a fact: where it stands in facts
    previous, open_line = 0, None  # open_line: where the last fact was, while no question has followed
    for count, line in enumerate(lines, 1):
        where = f"{path}, line {count}"
        number, rest = _numbered(where, line, previous)
        if number == 1:
            _require_asked(path, open_line)
            facts, places = [], {}
        if "\t" in rest:
            yield _question(where, task, rest, facts, places)
            open_line = None
        else:
            if not rest.endswith(".") or rest != rest.strip() or len(rest) < 2:
                raise DataError(f"{where}: the sentence {rest!r} does not end with a period: {_FORM}")
            places[number] = len(facts)
            facts.append(rest)
            open_line = count
        previous = number
    _require_asked(path, open_line)


def _numbered(where: str, line: str, previous: int) -> tuple[int, str]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise DataError(f"{where}: {line!r} does not begin with a number and a space: {_FORM}")
    number = int(match[1])
    if number not in (1, previous + 1):
        raise DataError(f"{where} has number {number} after {previous}: it must be {previous + 1}, or 1 where a story begins")
    return number, match[2]


def _require_asked(path: Path, open_line: int | None) -> None:
    if open_line is not None:
        raise DataError(f"{path}, line {open_line}: the story ends without a question; the file may be cut short: fetch it again")


def _question(where: str, task: str, rest: str, facts: list[str], places: dict[int, int]) -> Story:
    fields = rest.split("\t")
    if len(fields) != 3:
        raise DataError(f"{where}: the question has {len(fields)} fields separated by tabs, not 3: {_FORM}")
    question, answer, numbers = (field.strip() for field in fields)
    if not question.endswith("?") or len(question) < 2:
        raise DataError(f"{where}: the question {question!r} does not end with a question mark: {_FORM}")
    if not answer:
        raise DataError(f"{where}: the answer is empty: {_FORM}")
    supports = []
    for number in numbers.split():
        if not number.isascii() or not number.isdigit() or int(number) not in places:
            raise DataError(f"{where}: support {number!r} must be the number of an earlier sentence of the same story")
        supports.append(places[int(number)])
    if not supports:
        raise DataError(f"{where}: the question names no supporting line: {_FORM}")
    return Story(task, tuple(facts), question, answer, tuple(supports))
