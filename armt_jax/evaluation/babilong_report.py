"""Tables and heat maps of BABILong: tasks x lengths, several runs as mean and deviation, published figures beside them.

    python -m armt_jax.evaluation.babilong_report RUN [RUN ...] --out=DIR [--score=exact_match|official|repaired]

RUN is the workdir of an evaluated run, or the folder of its results.jsonl. Runs with one label (the memory's name) and different seeds are
one row: mean and sample deviation over them, never the best. Written to DIR: results.csv, results.jsonl, table.md, heatmap.png and, for a
curve, results.png.

Percent, as published. Figures of another kind (generated stories, `facts_within`, memory off, ...) stand in rows of their own, which say
so. No published one stands beside those with `facts_within`, which measure something else (docs/babilong.md).
"""

import argparse
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from armt_jax.data.babilong.published import PUBLISHED
from armt_jax.evaluation import report
from armt_jax.evaluation.seeds import mean_and_deviation
from armt_jax.telemetry import jsonl

Row = Mapping[str, Any]
SCORES = ("exact_match", "official", "repaired")
SOURCES = {"ARMT": "arXiv 2407.04841", "BABILong": "arXiv 2406.10149", "Diagonal": "arXiv 2506.05229"}
# How a run was read, which a csv cell cannot hold.
_NESTED = ("timed",)


class Cell(NamedTuple):
    """Percent. deviation: over `runs`; None: of one, or not published."""

    mean: float
    deviation: float | None = None
    runs: int = 1

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.deviation is None else f" ± {self.deviation:.1f}")


class Line(NamedTuple):
    """A row of the table. cells: by length in tokens."""

    task: str
    label: str
    cells: dict[int, Cell]
    ours: bool = True


def kind(row: Row) -> str:
    """The label, and all that makes a figure another one than a run's on the published test stories. Only rows of one kind are averaged."""
    parts = [row["label"]]
    if row.get("facts_within") is not None:
        parts.append(f"facts in the first {row['facts_within']:,}")
    if row.get("memory", "on") == "off":
        parts.append("memory off")
    if row.get("question", "running") == "apart":
        parts.append("question apart")
    if row.get("max_facts") is not None:
        parts.append(f"at most {row['max_facts']} facts")
    if row.get("stories") == "generated":
        parts.append("generated stories")
    if row.get("split", "test") != "test":
        parts.append(row["split"])
    return ", ".join(parts)


def place(row: Row) -> tuple[str, str, int, Any]:
    """Where a result stands in a table: there is one a place."""
    return row["task"], kind(row), row["length"], row["seed"]


def lines(rows: Sequence[Row], score: str = "exact_match") -> list[Line]:
    """Ours, by task and kind.

    Raises:
        ValueError: two rows are of the same run, task and length, and would be averaged as if they were of different runs.
    """
    values: dict[tuple[str, str], dict[int, dict[Any, float]]] = {}
    for row in rows:
        task, label, length, seed = place(row)
        at = values.setdefault((task, label), {}).setdefault(length, {})
        if seed in at:
            raise ValueError(
                f"two results of {label!r} are of {task}, {length:,} tokens and seed {seed}: they would count as two runs. Give each its "
                "own seed, or leave one out"
            )
        at[seed] = 100.0 * row[score]
    return [
        Line(task, label, {length: _cell(list(seeds.values())) for length, seeds in sorted(by_length.items())})
        for (task, label), by_length in sorted(values.items(), key=lambda item: _task_order(item[0][0]))
    ]


def _cell(values: list[float]) -> Cell:
    return Cell(*mean_and_deviation(values), len(values))


def _task_order(task: str) -> int:
    return int(task.removeprefix("qa"))


def published_lines(tasks: Sequence[str], lengths: Sequence[int]) -> list[Line]:
    """Of these tasks, as far as they have a figure at one of these lengths."""
    found: dict[tuple[str, str], dict[int, Cell]] = {}
    for each in PUBLISHED:
        if each.task in tasks and each.tokens in lengths:
            label = f"{each.model} ({SOURCES[each.source]}{', ' + each.note if each.note == 'best run' else ''})"
            found.setdefault((each.task, label), {})[each.tokens] = Cell(each.accuracy, each.deviation)
    return [Line(task, label, cells, ours=False) for (task, label), cells in found.items()]


def beside(rows: Sequence[Row], score: str = "exact_match") -> list[Line]:
    """Every task's rows: ours, then the published ones."""
    ours = lines(rows, score)
    comparable = [row for row in rows if row.get("facts_within") is None]
    theirs = published_lines(sorted({row["task"] for row in comparable}), sorted({row["length"] for row in comparable}))
    tasks = sorted({line.task for line in ours}, key=_task_order)
    return [line for task in tasks for line in (*ours, *theirs) if line.task == task]


def table(shown: Sequence[Line]) -> str:
    """For a terminal."""
    lengths = sorted({length for line in shown for length in line.cells})
    names = {length: report.format_size(length) for length in lengths}
    rows = [
        {"task": line.task, "model": line.label} | {names[n]: str(line.cells[n]) if n in line.cells else "-" for n in lengths}
        for line in shown
    ]
    return report.format_table(rows, ["task", "model", *names.values()])


def markdown(shown: Sequence[Line]) -> str:
    lengths = sorted({length for line in shown for length in line.cells})
    head = ["task", "model", *map(report.format_size, lengths)]
    out = ["| " + " | ".join(head) + " |", "|---|---" + "|---:" * len(lengths) + "|"]
    for line in shown:
        cells = [str(line.cells[n]) if n in line.cells else "" for n in lengths]
        label = f"**{line.label}**" if line.ours else line.label
        out.append("| " + " | ".join([line.task, label, *cells]) + " |")
    return "\n".join(out) + "\n"


def note(rows: Sequence[Row], shown: Sequence[Line], score: str = "exact_match") -> str:
    """What a reader of the figures must know."""
    samples = sorted({row["samples"] for row in rows})
    count = f"{samples[0]}" if len(samples) == 1 else f"{samples[0]} to {samples[-1]}"
    said = [f"{score.replace('_', ' ').capitalize()} in percent, {count} samples a task and length; ± is the deviation over runs."]
    said.append("Our lengths are counted in tokens of the run's own tokenizer.")
    told = {"generated": "are generated", "files": "are those of the published files"}
    if found := [told[source] for source in sorted({row["stories"] for row in rows if "stories" in row})]:
        said.append(f"Our stories {' or '.join(found)}{', as their label says' * (len(found) > 1)}.")
    if any(not line.ours for line in shown):
        said.append(
            "Published lengths are counted in GPT-2's tokens, and published checkpoints were chosen on the test file; ours are chosen on "
            "questions held out of the training stories."
        )
    return " ".join(said)


def plot_heatmap(shown: Sequence[Line], path: Path, title: str, below: str) -> None:
    """Rows of tasks and models against lengths, from red at 0 to green at 100 percent; ours in bold. below: a text under it."""
    from matplotlib.figure import Figure

    lengths = sorted({length for line in shown for length in line.cells})
    grid = [[line.cells[n].mean if n in line.cells else float("nan") for n in lengths] for line in shown]
    several = len({line.task for line in shown}) > 1
    names = [f"{line.task} {line.label}" if several else line.label for line in shown]
    width = max(3.2, 1.2 + 0.062 * max(map(len, names))) + 0.62 * len(lengths)
    below = textwrap.wrap(below, int(18 * width))
    figure = Figure(figsize=(width, 1.1 + 0.32 * len(shown) + 0.11 * len(below)), dpi=160, layout="constrained")
    ax = figure.add_subplot()
    image = ax.imshow(grid, cmap="RdYlGn", vmin=0, vmax=100, aspect="auto")
    for y, line in enumerate(shown):
        for x, length in enumerate(lengths):
            if length in line.cells:
                cell = line.cells[length]
                text = f"{cell.mean:.0f}" + ("" if cell.deviation is None else f"\n±{cell.deviation:.0f}")
                ax.text(x, y, text, ha="center", va="center", fontsize=7.5 if cell.deviation is None else 6, color="#111111")
        if y and line.task != shown[y - 1].task:
            ax.axhline(y - 0.5, color="white", linewidth=3)
    ax.set_xticks(range(len(lengths)), [report.format_size(length) for length in lengths], fontsize=8)
    ax.set_yticks(range(len(shown)), names, fontsize=8)
    for tick, line in zip(ax.get_yticklabels(), shown, strict=True):
        tick.set_fontweight("bold" if line.ours else "normal")
    ax.set_xlabel("tokens", fontsize=9)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title, loc="left", fontsize=10, fontweight="bold")
    figure.colorbar(image, ax=ax, shrink=0.8, aspect=25).ax.tick_params(labelsize=7)
    figure.supxlabel("\n".join(below), fontsize=6.5, x=0.01, ha="left", color="#444444")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")


def write(rows: Sequence[Row], directory: Path, score: str = "exact_match", heading: str = "") -> list[Line]:
    """results.csv, results.jsonl, table.md, heatmap.png and, of several lengths, results.png. Returns the rows of the table.

    heading: stands first in table.md.
    """
    directory.mkdir(parents=True, exist_ok=True)
    report.write_table([{k: v for k, v in row.items() if k not in _NESTED} for row in rows], rows, directory)
    shown = beside(rows, score)
    known = note(rows, shown, score)
    jsonl.replace_text(directory / "table.md", f"{heading}{known}\n\n{markdown(shown)}")
    tasks = sorted({row["task"] for row in rows}, key=_task_order)
    title = f"BABILong {tasks[0]}" if len(tasks) == 1 else "BABILong"
    plot_heatmap(shown, directory / "heatmap.png", title, known)
    if len({row["length"] for row in rows}) > 1:
        _plot_lengths(rows, directory / "results.png", score, title, several=len(tasks) > 1)
    return shown


def _plot_lengths(rows: Sequence[Row], path: Path, score: str, title: str, *, several: bool) -> None:
    """Ours against the length. several: tasks there are."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows:
        xs, ys = curves.setdefault(f"{kind(row)} {row['task']}" if several else kind(row), ([], []))
        xs.append(row["length"])
        ys.append(row[score])
    trained = {row["trained_to"] for row in rows}
    report.plot_curves(
        curves, path, xlabel="tokens", ylabel=score.replace("_", " "), title=title,
        trained_to=trained.pop() if len(trained) == 1 else None,
    )  # fmt: skip


def merged(rows: Sequence[Row]) -> list[Row]:
    """Of rows with one identity the last: a file that a killed evaluation left may have it twice."""
    return list({row["id"]: row for row in rows}.values())


def read_run(path: Path) -> list[dict[str, Any]]:
    """Results of a run.

    Raises:
        ValueError: there are none.
    """
    for file in (path / "results.jsonl", path / "evaluation" / "results.jsonl"):
        if file.is_file():
            return merged(report.read_results(file))
    raise ValueError(f"{path} has no results.jsonl, nor has {path}/evaluation: evaluate the run first (eval.py)")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--score", choices=SCORES, default="exact_match")
    args = parser.parse_args(argv)
    try:
        shown = write([row for run in args.runs for row in read_run(run)], args.out, args.score)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(table(shown))
    print(f"results: {args.out}/table.md, heatmap.png, results.csv, results.jsonl")


if __name__ == "__main__":
    main()
