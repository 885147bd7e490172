"""Results as files people read: CSV, JSON lines, aligned text, and plots.

A result is one row, a flat dict: {"label": "ARMT", "pairs": 48, "seed": 0, "exact_match": 0.98}. Rows of one label and
one size that differ in `seed` are shown as their mean with a band from the worst to the best, never as the best alone.
matplotlib is imported only when something is plotted, and without pyplot, so no window system is touched.
"""

import csv
import io
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from armt_jax.telemetry import jsonl

Row = Mapping[str, Any]

# Okabe and Ito's colours, told apart by colour-blind readers; the two lightest are darkened for text on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#C98500", "#3A9BD0", "#444444")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_SIZE_INCHES = (7.0, 4.3)
_DPI = 160
_GREY = "#666666"


def write_results(
    rows: Sequence[Row],
    directory: str | os.PathLike,
    *,
    x: str,
    y: str,
    title: str,
    trained_to: float | None = None,
    label: str = "label",
    chance: float | None = None,
) -> dict[str, Path]:
    """Writes results.csv, results.jsonl and results.png (y against x, one line a label); returns their paths.

    Rows without a `label` make one line, named y. A y that is missing or not finite leaves a gap in its line.
    """
    series = _series(rows, x, y, label)
    paths = write_table(rows, rows, directory) | {"png": Path(directory) / "results.png"}
    log_x = all(value > 0 for xs, _ in series.values() for value in xs)
    plot_curves(
        series, paths["png"], xlabel=_spoken(x), ylabel=_spoken(y), title=title, trained_to=trained_to, chance=chance, log_x=log_x
    )  # fmt: skip
    return paths


def write_table(flat: Sequence[Row], rows: Sequence[Row], directory: str | os.PathLike) -> dict[str, Path]:
    """Writes results.csv of the flat rows and results.jsonl of the whole ones; returns their paths."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = {kind: directory / f"results.{kind}" for kind in ("csv", "jsonl")}
    jsonl.replace_lines(paths["jsonl"], rows)
    jsonl.replace_text(paths["csv"], _csv_text(flat))
    return paths


def write_curves(rows: Sequence[Row], stem: str | os.PathLike, *, x: str, y: str, title: str, label: str) -> None:
    """Writes stem.csv and stem.png (y against x, one line a label, x on an even scale)."""
    stem = Path(stem)
    series = _series(rows, x, y, label)
    jsonl.replace_text(stem.with_suffix(".csv"), _csv_text(rows))
    plot_curves(series, stem.with_suffix(".png"), xlabel=_spoken(x), ylabel=_spoken(y), title=title, log_x=False)


def append_result(row: Row, path: str | os.PathLike) -> None:
    """Adds one row to a JSON-lines file and waits for the disk, so a sweep that is killed keeps what it has finished."""
    jsonl.append_line(row, path)


def read_results(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; a half-written last line is left out. NaN and infinities come back as None."""
    return jsonl.read_lines(path)


def group_by(rows: Sequence[Row], key: str, default: Any = None) -> dict[Any, list[Row]]:
    """Rows by their value of `key`, groups and rows in order of appearance. Rows without the key go under `default`."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.get(key, default), []).append(row)
    return groups


def _series(rows: Sequence[Row], x: str, y: str, label: str) -> dict[str, tuple[list[float], list[float]]]:
    for key in (x, y):
        if not any(key in row for row in rows):
            known = sorted({name for row in rows for name in row})
            raise ValueError(f"no row has {key!r}, the rows hold {known}: name one of those as x and y")
    series = {}
    for name, members in group_by(rows, label, default=y).items():
        seen = set()
        for row in members:
            if x not in row:
                raise ValueError(f"row {dict(row)} has no {x!r}, every row needs its place on the x axis: add it")
            place = (row[x], row.get("seed"))
            if place in seen:
                raise ValueError(
                    f"two rows of {name!r} have {x} {place[0]} and seed {place[1]}, they would be averaged as if they were"
                    f" different seeds: give each its own seed or {label!r}, or drop one"
                )
            seen.add(place)
        ys = [math.nan if row.get(y) is None else float(row[y]) for row in members]
        series[str(name)] = ([row[x] for row in members], ys)
    return series


def _csv_text(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def format_table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """An aligned plain-text table: numbers to the right, text to the left, `-` for what is missing."""
    cells = {column: _column_cells([row.get(column) for row in rows]) for column in columns}
    lines = [[column for column in columns]]
    lines += [[cells[column][i] for column in columns] for i in range(len(rows))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    numeric = [all(_is_number(row.get(c)) or row.get(c) is None for row in rows) for c in columns]

    def render(line: Sequence[str]) -> str:
        cells = (cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(line, widths, numeric, strict=True))
        return "  ".join(cells).rstrip()

    return "\n".join([render(lines[0]), "  ".join("-" * width for width in widths), *map(render, lines[1:])])


def _column_cells(values: Sequence[Any]) -> list[str]:
    floats = [abs(value) for value in values if isinstance(value, float) and math.isfinite(value)]
    plain = all(value == 0 or 1e-3 <= value < 1e4 for value in floats)
    spec = ".3f" if plain else ".4g"
    return ["-" if v is None else format(v, spec) if isinstance(v, float) else str(v) for v in values]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def summarise(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float, float, float, int]]:
    """(x, mean, lowest, highest, count) for each distinct x, ascending. A NaN among an x's ys makes its numbers NaN."""
    by_x: dict[float, list[float]] = {}
    for place, value in zip(xs, ys, strict=True):
        by_x.setdefault(place, []).append(value)
    summary = []
    for place, values in sorted(by_x.items()):
        low, high = (math.nan, math.nan) if any(map(math.isnan, values)) else (min(values), max(values))
        summary.append((place, sum(values) / len(values), low, high, len(values)))
    return summary


def plot_curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: str | os.PathLike,
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    trained_to: float | None = None,
    chance: float | None = None,
    log_x: bool = True,
) -> None:
    """Line plot with the labels at the line ends. An x that repeats within a series is a further seed: mean and band.

    `trained_to` marks the longest trained size, `chance` the level of guessing. The x axis carries the real sizes.
    The y axis runs from 0 to 1.02 when all values are shares (within 0..1), else it fits the data.
    """
    places = sorted({place for xs, _ in series.values() for place in xs})
    if not places:
        raise ValueError("series holds no points, a plot needs at least one: check which rows were selected")
    if log_x and min(places) <= 0:
        raise ValueError(f"x value {min(places)} cannot stand on a logarithmic axis: pass log_x=False")
    figure = _new_figure()
    ax = figure.add_subplot()
    if log_x:
        ax.set_xscale("log", base=2)
    ends, seeds = [], 1
    for index, (name, (xs, ys)) in enumerate(series.items()):
        color = _COLORS[index % len(_COLORS)]
        summary = summarise(xs, ys)
        seeds = max(seeds, max(count for *_, count in summary))
        _draw_line(ax, summary, index)
        finite = [(place, mean) for place, mean, *_ in summary if math.isfinite(mean)]
        if finite:
            ends.append((*finite[-1], name, color))
    values = [value for _, ys in series.values() for value in ys if math.isfinite(value)]
    if all(0 <= value <= 1 for value in values):
        ax.set_ylim(0, 1.02)
    _style(ax, xlabel, ylabel)
    note = f"mean and range of up to {seeds} seeds" if seeds > 1 else ""
    _title(ax, title, note, raised=trained_to is not None)
    if trained_to is not None:
        _mark_trained(ax, trained_to)
    if chance is not None:
        ax.axhline(chance, color=_GREY, linewidth=0.9, linestyle=":", zorder=1)
        ax.annotate("chance", (0, chance), (4, 3), ax.get_yaxis_transform(), "offset points", color=_GREY, fontsize=8)
    _size_ticks(ax, places, keep=trained_to, log=log_x)
    _label_ends(figure, ax, ends)
    _save(figure, path)


def plot_training(
    metrics_jsonl_paths: Mapping[str, str | os.PathLike],
    path: str | os.PathLike,
    *,
    loss: str = "loss",
    metric: str | None = "exact_match",
    stage: str = "stage",
    title: str = "Training",
) -> None:
    """Loss and a metric (None: loss only) against step, from the metrics.jsonl of one or more runs.

    Where the value of `stage` changes a thin vertical line is drawn: labelled when all runs share their stages,
    otherwise in each run's colour.
    """
    runs = {name: jsonl.read_lines(source) for name, source in metrics_jsonl_paths.items()}
    keys = [key for key in (loss, metric) if key is not None]
    known = sorted({key for rows in runs.values() for row in rows for key in row})
    for key in keys:
        if key not in known:
            raise ValueError(f"no run has logged {key!r}, logged are {known}: name one of those as loss or metric")
    figure = _new_figure(height=_SIZE_INCHES[1] * (1.25 if len(keys) > 1 else 1))
    axes = figure.subplots(len(keys), 1, sharex=True, squeeze=False)[:, 0]
    boundaries = {name: _stage_starts(rows, stage) for name, rows in runs.items()}
    shared = len(set(map(tuple, boundaries.values()))) == 1
    for index, (name, rows) in enumerate(runs.items()):
        color = _COLORS[index % len(_COLORS)]
        for ax, key in zip(axes, keys, strict=True):
            points = [(row["step"], row[key]) for row in rows if key in row]
            ys = [math.nan if value is None else value for _, value in points]
            style = {"linewidth": 1.4, "marker": "." if len(points) <= 40 else "", "clip_on": False, "zorder": 3}
            ax.plot([step for step, _ in points], ys, color=color, label=name, **style)
            for start, _ in boundaries[name][1:] if index == 0 or not shared else ():
                line_color, alpha = (_GREY, 0.7) if shared else (color, 0.6)
                ax.axvline(start, color=line_color, linewidth=0.8, linestyle=(0, (2, 2)), alpha=alpha, zorder=1)
    for ax, key in zip(axes, keys, strict=True):
        _style(ax, "step" if ax is axes[-1] else "", _spoken(key))
        heights = [row[key] for rows in runs.values() for row in rows if row.get(key) is not None]
        if key != loss and all(0 <= value <= 1 for value in heights):
            ax.set_ylim(0, 1.02)
    axes[-1].xaxis.set_major_formatter(lambda value, _: format_size(value))
    starts = next(iter(boundaries.values())) if shared else []
    _title(axes[0], title, raised=len(starts) > 1)
    if len(starts) > 1:
        _label_stages(axes[0], starts)
    if len(runs) > 1:
        axes[0].legend(frameon=False, fontsize=9, loc="upper right")
    _save(figure, path)


def _stage_starts(rows: Sequence[Row], key: str) -> list[tuple[int, str]]:
    """(first step logged, name) of each stage, in order."""
    starts: list[tuple[int, str]] = []
    for row in rows:
        if row.get(key) is not None:
            name = str(row[key]).split("/")[0]
            if not starts or starts[-1][1] != name:
                starts.append((row["step"], name))
    return starts


def _label_stages(ax: Any, starts: Sequence[tuple[int, str]]) -> None:
    left, right = ax.get_xlim()
    last = -math.inf
    for index, (start, name) in enumerate(starts):
        place = (start - left) / (right - left)
        if place - last >= (0.075 if index <= 1 else 0.035):  # the first label is longer: it names what is numbered
            text = f"stage {name}" if index == 0 else name
            ax.text(start, 1.015, text, transform=ax.get_xaxis_transform(), fontsize=8, color=_GREY)
            last = place


def format_size(value: float) -> str:
    """2, 500, 16,384, 128k, 1M: exact, and short where zeros allow."""
    for unit, letter in ((10**6, "M"), (10**3, "k")):
        if value >= 10**4 and value * 10 % unit == 0:
            return f"{value / unit:g}{letter}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"


def _spoken(key: str) -> str:
    return key.replace("_", " ")


def _new_figure(height: float = _SIZE_INCHES[1]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_SIZE_INCHES[0], height), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    return figure


def _draw_line(ax: Any, summary: Sequence[tuple[float, float, float, float, int]], index: int) -> None:
    color, marker = _COLORS[index % len(_COLORS)], _MARKERS[index % len(_MARKERS)]
    dashes = "-" if index < len(_COLORS) else "--"
    places, means, lows, highs, counts = zip(*summary, strict=True)
    style = {"markersize": 5.5, "markeredgecolor": "white", "markeredgewidth": 0.7, "linewidth": 1.8}
    ax.plot(places, means, dashes, color=color, marker=marker, clip_on=False, zorder=3, **style)
    if max(counts) > 1:
        ax.fill_between(places, lows, highs, color=color, alpha=0.15, linewidth=0, zorder=2)


def _style(ax: Any, xlabel: str, ylabel: str) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color("#999999")
    ax.tick_params(colors="#333333", labelsize=9, length=3)
    ax.grid(True, color="#e2e2e2", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.set_xlabel(xlabel, fontsize=10, color="#222222")
    ax.set_ylabel(ylabel, fontsize=10, color="#222222")


def _title(ax: Any, title: str, note: str = "", *, raised: bool) -> None:
    """The title, over the mark of the trained size or of the stages where there is one; a note beside the x label."""
    ax.set_title(title, loc="left", fontsize=11.5, fontweight="bold", color="#111111", pad=20 if raised else 8)
    if note:
        small = {"fontsize": 7.5, "color": _GREY, "ha": "right", "va": "center", "annotation_clip": False}
        ax.annotate(note, (1, 0), (0, -28), "axes fraction", "offset points", **small)


def _mark_trained(ax: Any, trained_to: float) -> None:
    ax.axvline(trained_to, color=_GREY, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    left, right = ax.get_xlim()
    ax.axvspan(left, trained_to, color="#888888", alpha=0.08, linewidth=0, zorder=0)
    ax.set_xlim(left, right)
    text = f"trained up to {format_size(trained_to)}"
    ax.text(trained_to, 1.015, text, transform=ax.get_xaxis_transform(), fontsize=8.5, color=_GREY, ha="center")


def _size_ticks(ax: Any, places: Sequence[float], keep: float | None, *, log: bool) -> None:
    """Ticks at the sizes themselves; where they would collide, the ends and the trained size stay."""
    position = math.log if log else float
    left, right = map(position, ax.get_xlim())
    inches = 5.0 / (right - left)
    chosen: list[float] = []
    for size in [*([] if keep is None else [keep]), places[-1], places[0], *places]:
        half = 0.035 * len(format_size(size)) + 0.05
        gaps = (abs(position(size) - position(c)) * inches - half - 0.035 * len(format_size(c)) for c in chosen)
        if all(gap >= 0 for gap in gaps):
            chosen.append(size)
    ax.set_xticks(sorted(chosen), [format_size(size) for size in sorted(chosen)])
    ax.set_xticks([], minor=True)


def _label_ends(figure: Any, ax: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Each line's name at its last point; names that would overlap are pushed apart."""
    from matplotlib.patheffects import withStroke

    figure.draw_without_rendering()  # the layout decides how tall the axes are
    height = ax.get_window_extent().height * 72 / figure.dpi
    bottom, top = ax.get_ylim()
    by_x: dict[float, list[tuple[float, str, str]]] = {}
    for place, value, name, color in ends:
        by_x.setdefault(place, []).append(((value - bottom) / (top - bottom) * height, textwrap.fill(name, 24), color))
    for place, labels in by_x.items():
        labels.sort(key=lambda label: label[0])
        spread = _spread([at for at, *_ in labels], [12.0 * (1 + name.count("\n")) for _, name, _ in labels], height)
        for (at, name, color), wanted in zip(labels, spread, strict=True):
            ax.annotate(
                name,
                (place, bottom + at / height * (top - bottom)),
                (9, wanted - at),
                textcoords="offset points",
                color=color,
                fontsize=9.5,
                va="center",
                annotation_clip=False,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
                zorder=4,
            )


def _spread(wanted: Sequence[float], heights: Sequence[float], top: float) -> list[float]:
    """Ascending positions near the wanted ones, so far apart that neither boxes of these heights overlap nor stick out."""
    placed: list[float] = []
    for index, at in enumerate(wanted):
        floor = heights[0] / 2 - 6 if not placed else placed[-1] + (heights[index - 1] + heights[index]) / 2
        placed.append(max(at, floor))
    ceiling = top + 6
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], ceiling - heights[index] / 2)
        ceiling = placed[index] - heights[index] / 2
    return placed


def _save(figure: Any, path: str | os.PathLike) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI, facecolor="white")
