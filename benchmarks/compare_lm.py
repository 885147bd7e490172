"""Compares memory systems on a text: every system with every seed, trained and evaluated alike; one table with mean and deviation.

    python benchmarks/compare_lm.py --dataset=enwik8 --data_path=DIR [--size=cpu] [--systems=none,armt] [--seeds=0,1,2] [--out=DIR]
                                    [--train.max_stage_steps=100 ...]

From the root of the repository. Each run is a process of its own, `python train.py ...` and then `python eval.py ...`; both commands are
printed, and stand in the results, so that every number can be had again. Started again, finished runs are not repeated (their speed is
measured again) and a broken one goes on from its checkpoint. Other arguments, --a.b=value, are overrides of the config for all runs.

Every run has to be read in the same ways: readings of other names (windows of another length) are not put into one table or plot.

Written to --out (default runs/compare-<dataset>-<size>): results.csv and results.jsonl (a row a run), table.md, by_segment and by_position
(csv, png), and the runs, <system>-<seed>/. "memory off": the same parameters, with the memory emptied before every segment. temp MB is the
compiled training step's peak temporary memory (XLA's memory analysis): no parameters, gradients or optimizer state. tokens/s is that of
training steps of all systems taking turns in one process (benchmarks/steps_in_turn.py), measured at the end and not while the runs train.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from armt_jax.evaluation import report, text  # noqa: E402
from armt_jax.evaluation.seeds import mean_and_deviation, mean_text  # noqa: E402
from armt_jax.telemetry import jsonl  # noqa: E402
from benchmarks.commands import command, config_overrides, execute, require_root  # noqa: E402

SYSTEMS = ("none", "transformer_xl", "rmt", "armt", "rmt_xl", "armt_xl")
DATASETS = ("enwik8", "wikitext2", "wikitext103")


def arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--dataset", choices=DATASETS, required=True, help="configs/<dataset>.py is the experiment")
    parser.add_argument("--data_path", required=True, help="where the corpus is")
    parser.add_argument("--size", default="cpu", help="what follows the system's name in the config's variants")
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out")
    args, overrides = parser.parse_known_args()
    args.systems, args.seeds = args.systems.split(","), [int(seed) for seed in args.seeds.split(",")]
    if unknown := [s for s in args.systems if s not in SYSTEMS]:
        parser.error(f"--systems: {unknown[0]} is unknown, use some of {', '.join(SYSTEMS)}")
    args.out = Path(args.out or f"runs/compare-{args.dataset}-{args.size}")
    try:
        return args, config_overrides(overrides)
    except ValueError as error:
        parser.error(str(error))


def one_run(args, overrides: list[str], system: str, seed: int) -> dict:
    """The row of a run, trained and evaluated as far as that is still to be done."""
    workdir = args.out / f"{system}-{seed}"
    path = workdir / "comparison.json"
    config = f"--config=configs/{args.dataset}.py:{system}-{args.size}"
    train = command("train.py", config, f"--config.data.path={args.data_path}", f"--config.seed={seed}", *overrides, f"--workdir={workdir}")
    evaluate = command("eval.py", f"--workdir={workdir}", f"--data_path={args.data_path}")
    if path.exists():
        row = json.loads(path.read_text())
        if row["train"] != shlex.join(train):
            sys.exit(f"error: {workdir} holds another run, {row['train']}: give another --out")
        return row
    execute(train)
    execute(evaluate)
    readings = report.read_results(workdir / "evaluation" / "results.jsonl")
    row = {"system": system, "seed": seed, **facts(workdir, readings), "train": shlex.join(train), "evaluate": shlex.join(evaluate)}
    jsonl.replace_text(path, json.dumps(row, indent=1) + "\n")
    return row


def facts(workdir: Path, readings: list[dict]) -> dict:
    """What the table shows of a run. Memory off is not read where nothing is remembered: it is the same."""
    by_name = {each["reading"]: each for each in readings}
    on = by_name["stateful"]
    off = by_name.get("stateful, memory off", on)
    figure = on["published_as"]
    logged = [each for each in jsonl.read_lines(workdir / "metrics.jsonl") if each.get("tokens_per_s")]
    sliding = next((each[figure] for name, each in by_name.items() if name.startswith("sliding")), None)
    return {
        "figure": figure, "test": on[figure], "memory_off": off[figure], "sliding": sliding, "nats_per_token": on["nats_per_token"],
        "best_step": on["step"], "steps": logged[-1]["step"], "data_wait": statistics.median(each["data_wait"] for each in logged),
    }  # fmt: skip


def require_alike(read: dict[str, list[dict]]) -> None:
    """Exits where runs ({folder: readings}) were read in different ways. Memory off is read only where something is remembered."""
    names = {folder: [each["reading"] for each in readings if "memory off" not in each["reading"]] for folder, readings in read.items()}
    first = next(iter(names))
    for folder, own in names.items():
        if sorted(own) != sorted(names[first]):
            sys.exit(
                f"error: {folder} was read as {'; '.join(own)}, and {first} as {'; '.join(names[first])}: that is not one comparison. "
                "Delete comparison.json and evaluation/ of the run to be read again, and start the same command"
            )


def side_by_side(args) -> dict[str, dict]:
    """{system: parameters, memory and speed of its training step}, measured in one process in which the systems take turns."""
    workdirs = [str(args.out / f"{system}-{args.seeds[0]}") for system in args.systems]
    words = command("benchmarks/steps_in_turn.py", *workdirs)
    print(f"$ {shlex.join(words)}", flush=True)
    done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, text=True, stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(f"error: {shlex.join(words)} ended with {done.returncode}")
    rows = dict(zip(args.systems, map(json.loads, done.stdout.splitlines()), strict=True))
    return {system: {name: value for name, value in row.items() if name != "workdir"} for system, row in rows.items()}


def verdict(values: list[float], baseline: list[float]) -> str:
    """Whether the difference is more than twice the larger of the two deviations."""
    (mean, deviation), (base, base_deviation) = mean_and_deviation(values), mean_and_deviation(baseline)
    if deviation is None or base_deviation is None:
        return "one seed"
    gain, bar = base - mean, 2 * max(deviation, base_deviation)
    return f"{'yes' if gain > bar else 'no'} ({gain:+.3f} against {bar:.3f})"


def table(rows: list[dict], args, overrides: list[str]) -> str:
    by_system = report.group_by(rows, "system")
    head = ("system", "parameters", f"test {rows[0]['figure']}", "memory off", "tokens/s", "temp MB", "beats none by > 2 deviations")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    column = lambda group, name: [row[name] for row in group]
    for system, group in by_system.items():
        none = by_system.get("none")
        speed, temp = group[0]["tokens_per_s"], group[0]["temp_mb"]
        beats = "-" if none is None or system == "none" else verdict(column(group, "test"), column(none, "test"))
        cells = (
            system, f"{group[0]['parameters']:,}", mean_text(column(group, "test")), mean_text(column(group, "memory_off")),
            f"{speed:,.0f}", f"{temp:,.0f}", beats,
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    words = command("benchmarks/compare_lm.py", f"--dataset={args.dataset}", "--data_path=DIR", f"--size={args.size}")
    words += [f"--systems={','.join(args.systems)}", f"--seeds={','.join(map(str, args.seeds))}"]
    words += [override.replace("--config.", "--", 1) for override in overrides]
    steps = sorted({row["steps"] for row in rows})
    facts = f"{rows[0]['device']}; {', '.join(f'{s:,}' for s in steps)} steps; seeds {', '.join(map(str, args.seeds))}; mean ± deviation."
    return "\n".join([f"    {shlex.join(words)}", "", facts, "", *lines, "", *by_seed(by_system, args.seeds), ""])


def by_seed(by_system: dict[str, list[dict]], seeds: list[int]) -> list[str]:
    """The lines of a second table: every run's figure, the size of the memory, and how long a step waits for its batch."""
    head = ("system", *(f"seed {seed}" for seed in seeds), "floats of state a row", "share of a step waiting for data")
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for system, group in by_system.items():
        wait = statistics.median(row["data_wait"] for row in group)
        cells = (system, *(f"{row['test']:.3f}" for row in group), f"{group[0]['state_floats_a_row']:,}", f"{wait:.1%}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main():
    args, overrides = arguments()
    require_root()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in args.seeds:  # seed by seed: every system has something early on
        for system in args.systems:
            rows.append(one_run(args, overrides, system, seed))
    steps = side_by_side(args)
    rows = [{**row, **steps[row["system"]]} for row in rows]
    rows.sort(key=lambda row: (args.systems.index(row["system"]), row["seed"]))
    folders = {f"{row['system']}-{row['seed']}": row["system"] for row in rows}
    read = {folder: report.read_results(args.out / folder / "evaluation" / "results.jsonl") for folder in folders}
    require_alike(read)
    report.write_table(rows, rows, args.out)
    readings = [{**each, "system": system} for folder, system in folders.items() for each in read[folder]]
    curves = [each for each in readings if each["reading"].startswith("from empty")]
    on = [each for each in curves if "memory off" not in each["reading"]]
    if on:  # a split shorter than a segment holds no window
        text.write_curves(on, args.out, f"{args.dataset}, {on[0]['reading']}", key="system")
    found = table(rows, args, overrides)
    (args.out / "table.md").write_text(found)
    print(f"\n{found}\nresults: {args.out}/table.md, results.csv, by_segment.png, by_position.png")


if __name__ == "__main__":
    main()
