"""Tables and heat maps of BABILong: tasks x lengths, several runs as mean and deviation, published figures beside them.

    python -m armt_jax.evaluation.babilong_report RUN [RUN ...] --out=DIR [--score=exact_match|official|repaired]

RUN is the workdir of an evaluated run, or the folder of its results.jsonl. Runs with one label (the memory's name) and different seeds are
one row: mean and sample deviation over them, never the best. Written to DIR: results.csv, results.jsonl, table.md, heatmap.png and, for a
curve, results.png.

Percent, as published. Figures with `facts_within` measure something else (docs/babilong.md), stand in rows of their own, and no published
one stands beside them.
"""

import argparse
import sys
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


def lines(rows: Sequence[Row], score: str = "exact_match") -> list[Line]:
    """Ours, by task and label.

    Raises:
        ValueError: two rows are of the same run, task and length, and would be averaged as if they were of different runs.
    """
    values: dict[tuple[str, str], dict[int, dict[Any, float]]] = {}
    for row in rows:
        label = row["label"]
        if row.get("facts_within") is not None:
            label += f", facts in the first {row['facts_within']:,}"
        if row.get("memory", "on") == "off":
            label += ", memory off"
        at = values.setdefault((row["task"], label), {}).setdefault(row["length"], {})
        if row["seed"] in at:
            raise ValueError(
                f"two results of {label!r} are of {row['task']}, {row['length']:,} tokens and seed {row['seed']}: they would count as two "
                "runs. Give each its own seed, or leave one out"
            )
        at[row["seed"]] = 100.0 * row[score]
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


def plot_heatmap(shown: Sequence[Line], path: Path, title: str) -> None:
    """Rows of tasks and models against lengths, from red at 0 to green at 100 percent; ours in bold."""
    from matplotlib.figure import Figure

    lengths = sorted({length for line in shown for length in line.cells})
    grid = [[line.cells[n].mean if n in line.cells else float("nan") for n in lengths] for line in shown]
    figure = Figure(figsize=(3.2 + 0.62 * len(lengths), 1.1 + 0.32 * len(shown)), dpi=160, layout="constrained")
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
    several = len({line.task for line in shown}) > 1
    ax.set_yticks(range(len(shown)), [f"{line.task} {line.label}" if several else line.label for line in shown], fontsize=8)
    for tick, line in zip(ax.get_yticklabels(), shown, strict=True):
        tick.set_fontweight("bold" if line.ours else "normal")
    ax.set_xlabel("tokens", fontsize=9)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title, loc="left", fontsize=10, fontweight="bold")
    figure.colorbar(image, ax=ax, shrink=0.8, aspect=25).ax.tick_params(labelsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")


def write(rows: Sequence[Row], directory: Path, score: str = "exact_match") -> list[Line]:
    """results.csv, results.jsonl, table.md, heatmap.png and, of several lengths, results.png. Returns the rows of the table."""
    directory.mkdir(parents=True, exist_ok=True)
    report.write_table([{k: v for k, v in row.items() if k not in _NESTED} for row in rows], rows, directory)
    shown = beside(rows, score)
    samples = sorted({row["samples"] for row in rows})
    count = f"{samples[0]}" if len(samples) == 1 else f"{samples[0]} to {samples[-1]}"
    note = f"{score.replace('_', ' ').capitalize()} in percent, {count} samples a task and length; ± is the deviation over runs.\n\n"
    jsonl.replace_text(directory / "table.md", note + markdown(shown))
    tasks = sorted({row["task"] for row in rows}, key=_task_order)
    title = f"BABILong {tasks[0]}" if len(tasks) == 1 else "BABILong"
    plot_heatmap(shown, directory / "heatmap.png", title)
    if len({row["length"] for row in rows}) > 1:
        curves = {}
        for row in rows:
            name = row["label"] if len(tasks) == 1 else f"{row['label']} {row['task']}"
            if row.get("facts_within") is not None:
                name += f", facts in the first {row['facts_within']:,}"
            if row.get("memory", "on") == "off":
                name += ", memory off"
            xs, ys = curves.setdefault(name, ([], []))
            xs.append(row["length"])
            ys.append(row[score])
        trained = {row["trained_to"] for row in rows}
        report.plot_curves(
            curves, directory / "results.png", xlabel="tokens", ylabel=score.replace("_", " "), title=title,
            trained_to=trained.pop() if len(trained) == 1 else None,
        )  # fmt: skip
    return shown


def read_run(path: Path) -> list[dict[str, Any]]:
    """Results of a run.

    Raises:
        ValueError: there are none.
    """
    for file in (path / "results.jsonl", path / "evaluation" / "results.jsonl"):
        if file.is_file():
            return report.read_results(file)
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
