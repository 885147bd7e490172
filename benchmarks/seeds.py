"""One experiment under several seeds: trained and evaluated alike; one table with mean and deviation, one plot with the range.

    python benchmarks/seeds.py [--config=configs/quickstart.py:armt] [--seeds=0,1,2] [--sweep=configs/sweeps/rewrite.py] [--out=DIR]
                               [--checkpoint=best|last|STEP] [--train.max_stage_steps=100 ...]

From the root of the repository. Each run is a process of its own, `python train.py ...` and then `python eval.py ...`; both commands are
printed. Started again, finished runs are not repeated and a broken one goes on from its checkpoint. Other arguments, --a.b=value, are
overrides of the config for all runs.

Written to --out (default runs/seeds-<config>): results.csv, results.jsonl (a row a size and seed), results.png, table.md, and the runs
under their seeds. Of runs on BABILong (--sweep=configs/sweeps/babilong_lengths.py) the files are those of its own report: rows of a task
and length, published figures beside them, heatmap.png.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from armt_jax.data.babilong import BabilongBatches  # noqa: E402
from armt_jax.evaluation import babilong_report, evaluate, report, task  # noqa: E402
from armt_jax.evaluation.seeds import mean_text  # noqa: E402
from armt_jax.telemetry import jsonl  # noqa: E402
from benchmarks.commands import command, config_overrides, execute, require_root  # noqa: E402


def arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--config", default="configs/quickstart.py:armt")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--sweep", default="configs/sweeps/rewrite.py")
    parser.add_argument("--checkpoint", default="best", help="the one of each run that is evaluated: best, last, or a step")
    parser.add_argument("--out")
    args, overrides = parser.parse_known_args()
    args.seeds = [int(seed) for seed in args.seeds.split(",")]
    path, _, variant = args.config.partition(":")
    args.out = Path(args.out or f"runs/seeds-{Path(path).stem}{'-' if variant else ''}{variant}")
    try:
        evaluate.checkpoint_choice(args.checkpoint)
        return args, config_overrides(overrides)
    except ValueError as error:
        parser.error(str(error))


def one_run(args: argparse.Namespace, overrides: list[str], seed: int) -> dict:
    """The commands of a run, trained and evaluated as far as that is still to be done, and its rows."""
    workdir = args.out / str(seed)
    done = workdir / "commands.json"
    chosen = [] if args.checkpoint == "best" else [f"--checkpoint={args.checkpoint}"]
    words = {
        "train": command("train.py", f"--config={args.config}", f"--config.seed={seed}", *overrides, f"--workdir={workdir}"),
        "evaluate": command("eval.py", f"--workdir={workdir}", f"--sweep={args.sweep}", *chosen),
    }
    commands = {name: shlex.join(each) for name, each in words.items()}
    if not done.exists():
        for each in words.values():
            execute(each)
        jsonl.replace_text(done, json.dumps(commands, indent=1) + "\n")
    elif (found := json.loads(done.read_text())) != commands:
        sys.exit(f"error: {workdir} holds another run, {found['train']} and {found['evaluate']}: give another --out")
    return {"rows": report.read_results(workdir / "evaluation" / "results.jsonl"), **commands}


def table(runs: list[dict], x: str) -> str:
    """A line a seed, and their mean and deviation last."""
    sizes = sorted({row[x] for run in runs for row in run["rows"]})
    values = {size: [row["exact_match"] for run in runs for row in run["rows"] if row[x] == size] for size in sizes}
    lines = ["| seed | " + " | ".join(map(str, sizes)) + " |", "|---" + "|---:" * len(sizes) + "|"]
    for i, run in enumerate(runs):
        lines.append(f"| {run['rows'][0]['seed']} | " + " | ".join(f"{values[size][i]:.3f}" for size in sizes) + " |")
    lines.append("| mean ± deviation | " + " | ".join(mean_text(values[size]) for size in sizes) + " |")
    return first_commands(runs) + "\n".join([*lines, ""])


def first_commands(runs: list[dict]) -> str:
    return f"Commands of the first run:\n\n    {runs[0]['train']}\n    {runs[0]['evaluate']}\n\n"


def write(runs: list[dict], out: Path, trained) -> str:
    """Tables and plots of all runs, as their task has them; returns what a terminal shows."""
    rows, source = [row for run in runs for row in run["rows"]], trained.config.task
    if isinstance(source, BabilongBatches):
        shown = babilong_report.write(rows, out, heading=first_commands(runs))
        return f"{babilong_report.table(shown)}\nresults: {out}/table.md, heatmap.png, results.csv, results.jsonl"
    size = source.size_name
    report.write_results(rows, out, x=size, y="exact_match", title=task.title(trained), trained_to=trained.trained_to)
    found = table(runs, size)
    (out / "table.md").write_text(found)
    return f"{found}\nresults: {out}/table.md, results.csv, results.jsonl, results.png"


def main():
    args, overrides = arguments()
    require_root()
    args.out.mkdir(parents=True, exist_ok=True)
    runs = [one_run(args, overrides, seed) for seed in args.seeds]
    print(f"\n{write(runs, args.out, evaluate.load(args.out / str(args.seeds[0])))}")


if __name__ == "__main__":
    main()
