"""What a compiled program exchanges between devices, read off its text."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all", "collective-broadcast")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_COLLECTIVE = re.compile(rf" = (.+?) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+)\w*\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_FUSED = re.compile(r"(async_collective_fusion|fused_computation)")
_CONSTANT = re.compile(r" = [su]\d+\[\]\S* constant\((\d+)\)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange of the program.

    Attributes:
        kind: one of KINDS. shapes: of what each device holds after it. bytes: of these.
        loops: while loops around it. times: how often it runs, by the loops' trip counts (one that depends on data counts as 1).
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    bytes: int
    loops: int
    times: int


def _width(element: str) -> int:
    """Bytes of an element type of XLA: 'f32', 'bf16', 'pred'."""
    return 1 if element == "pred" else max(1, int(re.sub(r"\D", "", element)) // 8)


def _shapes(text: str, started: bool) -> list[tuple[str, tuple[int, ...]]]:
    """Of a result's type. What starts in the background has the operands before the results, and perhaps counters behind them."""
    found = [(element, tuple(int(n) for n in sizes.split(",") if n)) for element, sizes in _SHAPE.findall(text)]
    if not started or not text.startswith("("):
        return found
    arrays = [each for each in found if each != ("u32", ())]
    return arrays[len(arrays) // 2 :]


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """(lines of every computation, the name of the entry)."""
    lines: dict[str, list[str]] = {}
    entry = name = None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name = match[2]
            entry = name if match[1] else entry
            lines[name] = []
        elif line.startswith("}"):
            name = None
        elif name is not None:
            lines[name].append(line)
    if entry is None:
        raise ValueError(f"a program's text of {len(text)} characters has no ENTRY computation: give compiled.as_text()")
    return lines, entry


def _trips(line: str, computations: dict[str, list[str]]) -> int:
    """How often a loop runs: as the compiler noted it (CPU, GPU), or the one constant in its condition, the counter's end (TPU)."""
    if noted := _TRIPS.search(line):
        return int(noted[1])
    condition = computations.get(_CONDITION.search(line)[1], [])
    constants = [int(n) for each in condition for n in _CONSTANT.findall(each)]
    counts_up = any("ROOT" in each and "direction=LT" in each for each in condition)
    return constants[0] if counts_up and len(constants) == 1 else 1


def _callees(line: str, computations: dict[str, list[str]]) -> Iterator[tuple[str, bool, int]]:
    """(computation, whether a loop calls it, how often)."""
    loop = " while(" in line
    times = _trips(line, computations) if loop else 1
    for name in _CALLED.findall(line):
        yield name, loop, times
    for names in _BRANCHES.findall(line):
        for name in names.split(","):
            yield name.strip().lstrip("%"), False, 1


def collectives(text: str) -> list[Collective]:
    """Every exchange in the text of a compiled program (`compiled.as_text()`), in the order in which the program is written.

    A computation that is called from several places counts at each of them. A TPU program hides an exchange behind other work by writing it
    into several fusions, with one channel, some of them in the loops that hide it: it is one exchange, and runs as often as the outermost.
    """
    computations, entry = _computations(text)
    found = []
    hidden: dict[str, int] = {}  # channel: place in `found`

    def visit(name: str, loops: int, times: int):
        for line in computations[name]:
            if match := _COLLECTIVE.search(line):
                shapes = _shapes(match[1], match[3] is not None)
                size = sum(_width(element) * math.prod(shape) for element, shape in shapes)
                one = Collective(match[2], tuple(shape for _, shape in shapes), size, loops, times)
                channel = _CHANNEL.search(line) if _FUSED.match(name) else None
                place = hidden.setdefault(channel[1], len(found)) if channel else len(found)
                if place == len(found):
                    found.append(one)
                else:
                    found[place] = min(found[place], one, key=lambda each: (each.loops, each.times))
            for callee, loop, trips in _callees(line, computations):
                if callee in computations:
                    visit(callee, loops + loop, times * trips)

    visit(entry, 0, 1)
    return found


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Exchanges of one kind. number: in the program. bytes: of one run of the program, on each device; in_loops: those of them in loops."""

    kind: str
    number: int
    bytes: int
    in_loops: int


def traffic(found: Iterable[Collective]) -> list[Traffic]:
    """Sums by kind, the largest first."""
    by_kind = collections.defaultdict(list)
    for each in found:
        by_kind[each.kind].append(each)
    sums = [
        Traffic(kind, len(group), sum(c.bytes * c.times for c in group), sum(c.bytes * c.times for c in group if c.loops))
        for kind, group in by_kind.items()
    ]
    return sorted(sums, key=lambda each: -each.bytes)
