"""Three ways to score an answer, side by side.

strict      the answer, character for character (white space around it aside): what the published RMT and ARMT results count.
official    the scorer of BABILong's benchmark, with its bugs: labels are looked for as substrings. "none" of qa7 can never be right
            ("one" is in it), "I do not know" says "no", and a right answer that occurs in the question is wrong.
repaired    the same with labels as whole words; a target is never discounted for occurring in the question; space around commas does not
            matter; what follows "question:" is cut off, as the official code means to.
"""

import dataclasses
import re

from armt_jax.data.babi.story import require_task

_ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
_YES_NO = ("no", "yes")

LABELS: dict[str, tuple[str, ...]] = {
    "qa1": _ROOMS,
    "qa2": _ROOMS,
    "qa3": _ROOMS,
    "qa4": _ROOMS,
    "qa5": ("Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk"),
    "qa6": _YES_NO,
    "qa7": ("none", "one", "three", "two"),
    "qa8": ("apple", "football", "milk", "nothing"),
    "qa9": _YES_NO,
    "qa10": ("maybe", "no", "yes"),
    "qa11": _ROOMS,
    "qa12": _ROOMS,
    "qa13": _ROOMS,
    "qa14": ("bedroom", "cinema", "kitchen", "office", "park", "school"),
    "qa15": ("cat", "mouse", "sheep", "wolf"),
    "qa16": ("gray", "green", "white", "yellow"),
    "qa17": _YES_NO,
    "qa18": _YES_NO,
    "qa19": ("e,e", "e,n", "e,s", "n,e", "n,n", "n,w", "s,e", "s,s", "s,w", "w,n", "w,s", "w,w"),
    "qa20": ("bedroom", "bored", "garden", "hungry", "kitchen", "thirsty", "tired"),
}
"""What the official scorer looks for. Answers of qa8 are several of them, separated by commas."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """Whether an answer is right, by each scorer."""

    strict: bool
    official: bool
    repaired: bool


def score(task: str, question: str, target: str, output: str) -> Scores:
    """Scores what a model said.

    Args:
        target: the answer of the story. output: all that was generated, up to its end token.
    """
    require_task(task)
    return Scores(strict(target, output), official(task, question, target, output), repaired(task, question, target, output))


def strict(target: str, output: str) -> bool:
    return output.strip() == target.strip()


def official(task: str, question: str, target: str, output: str) -> bool:
    said, target = _first_sentence(output), target.lower()
    labels = {label.lower() for label in LABELS[task]}
    found = {label for label in labels if label in said} - {label for label in labels if label in question.lower()}
    # It tells lists from the answers of qa19 ("n,e") by their length.
    targets = target.split(",") if "," in target and len(target) > 3 else [target]
    return len(found) == len(targets) and all(one in found for one in targets)


def repaired(task: str, question: str, target: str, output: str) -> bool:
    said = re.sub(r"\s*,\s*", ",", _first_sentence(output).split("question:")[0])
    target = target.lower()
    targets = set(target.split(",")) if task == "qa8" else {target}
    labels = {label.lower() for label in LABELS[task]} | targets
    asked = {label for label in labels if _has_word(question.lower(), label)} - targets
    return {label for label in labels if _has_word(said, label)} - asked == targets


def _first_sentence(output: str) -> str:
    """In lower case, without what models go on to make up."""
    said = output.lower().split(".")[0]
    return said.split("<context>")[0].split("<example>")[0]


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None
