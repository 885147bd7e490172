"""Whether somebody is in a room, by the last that was said of them: qa9, qa10."""

from armt_jax.data.babi.solvers.reading import Sentence, ask, cannot_answer, read
from armt_jax.data.babi.story import Story


def is_not_there(story: Story) -> tuple[str, ...]:
    room, said = _last(story)
    if said.kind == "not":
        if said.room != room:
            raise cannot_answer(story)
        return ("no",)
    return ("yes" if said.room == room else "no",)


def may_be_there(story: Story) -> tuple[str, ...]:
    room, said = _last(story)
    if said.kind == "either":
        return ("maybe" if room in (said.room, said.other) else "no",)
    return ("yes" if said.room == room else "no",)


def _last(story: Story) -> tuple[str, Sentence]:
    """(room asked about, last sentence about the person asked about)"""
    asked = ask(story, r"Is (?P<who>\w+) in the (?P<room>\w+)\?")[1]
    said = [sentence for sentence in read(story) if sentence.who == asked["who"]]
    if not said:
        raise cannot_answer(story)
    return asked["room"], said[-1]
