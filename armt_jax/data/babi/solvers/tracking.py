"""Who is where, who has what, and where each thing has been, after a story: qa1, qa2, qa3, qa6, qa7, qa8."""

from armt_jax.data.babi.solvers.reading import Sentence, ask, cannot_answer, read
from armt_jax.data.babi.story import Story

_NUMBERS = ("none", "one", "two", "three")


class Tracker:
    """What is known after these sentences.

    room: of each person who is known to be somewhere. holder: of each thing in somebody's hands.
    seen: the rooms where each thing is known to have been, in order.
    had: the things that each person has ever had, in order.
    """

    def __init__(self, sentences: list[Sentence]):
        self.room: dict[str, str] = {}
        self.holder: dict[str, str] = {}
        self.seen: dict[str, list[str]] = {}
        self.had: dict[str, list[str]] = {}
        for sentence in sentences:
            self._hear(sentence)

    def held(self, who: str) -> list[str]:
        return [what for what in self.had.get(who, []) if self.holder.get(what) == who]

    def _hear(self, s: Sentence) -> None:
        if s.kind == "move":
            self.room[s.who] = s.room
        elif s.kind == "get":
            self._take(s.who, s.what)
        elif s.kind == "give":
            self._take(s.to, s.what)
        elif s.kind == "drop":
            self.holder.pop(s.what, None)
            self._see(s.what, s.who)
        for what in self.held(s.who):
            self._see(what, s.who)

    def _take(self, who: str, what: str) -> None:
        self.holder[what] = who
        if what not in self.had.setdefault(who, []):
            self.had[who].append(what)
        self._see(what, who)

    def _see(self, what: str, who: str) -> None:
        """The thing is where this person is."""
        seen = self.seen.setdefault(what, [])
        room = self.room.get(who)
        if room is not None and seen[-1:] != [room]:
            seen.append(room)


def where_is_who(story: Story) -> tuple[str, ...]:
    who = ask(story, r"Where is (?P<who>\w+)\?")[1]["who"]
    room = Tracker(read(story)).room.get(who)
    if room is None:
        raise cannot_answer(story)
    return (room,)


def where_is_what(story: Story) -> tuple[str, ...]:
    what = ask(story, r"Where is the (?P<what>\w+)\?")[1]["what"]
    seen = Tracker(read(story)).seen.get(what)
    if not seen:
        raise cannot_answer(story)
    return (seen[-1],)


def where_was_what(story: Story) -> tuple[str, ...]:
    """Before the last time that it was there."""
    asked = ask(story, r"Where was the (?P<what>\w+) before the (?P<room>\w+)\?")[1]
    seen = Tracker(read(story)).seen.get(asked["what"], [])
    before = [earlier for earlier, room in zip(seen, seen[1:]) if room == asked["room"]]
    if not before:
        raise cannot_answer(story)
    return (before[-1],)


def is_present(story: Story) -> tuple[str, ...]:
    asked = ask(story, r"Is (?P<who>\w+) in the (?P<room>\w+)\?")[1]
    room = Tracker(read(story)).room.get(asked["who"])
    if room is None:
        raise cannot_answer(story)
    return ("yes" if room == asked["room"] else "no",)


def how_many(story: Story) -> tuple[str, ...]:
    who = ask(story, r"How many objects is (?P<who>\w+) carrying\?")[1]["who"]
    return (_NUMBERS[len(Tracker(read(story)).held(who))],)


def which_things(story: Story) -> tuple[str, ...]:
    """In the order in which the person first had them."""
    who = ask(story, r"What is (?P<who>\w+) carrying\?")[1]["who"]
    return (",".join(Tracker(read(story)).held(who)) or "nothing",)
