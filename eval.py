"""Evaluates a trained run.

    python eval.py --workdir=RUN [--sweep=configs/sweeps/x.py] [--out=DIR] [--checkpoint=best|last|STEP]

Restores the best checkpoint, evaluates every point of the sweep (without one: the task it was trained on), prints a table and writes
results.csv, results.jsonl and results.png to RUN/evaluation (or DIR). A stopped sweep goes on where it was. The files are those of the last
evaluation; what DIR held of other points goes on in results.earlier.jsonl, and is not evaluated again when it is asked for.
It runs on the run's mesh; where the devices here are others, or a point's rows do not divide over it, on as many as fit, and says so.

    [--share=I/N]  this is worker I (from 0) of N: points I, I+N, ... of the sweep. The worker that ends last writes the report of all.
    [--merge]      evaluate nothing, write the report of what the shares have found; an error while points are missing.
`python -m armt_jax.launch` (docs/launch.md) starts the workers. Exit codes: 0 done, 1 error, 75 stopped by SIGTERM (start it again).

A run on a text is read in several ways (armt_jax/evaluation/text.py): stateful, from an empty memory, sliding, and with the memory off.
results.csv and results.jsonl have the figures; by_segment and by_position (csv, png) the curves; samples.txt continuations of the split.
    [--data_path=DIR]  where the text lies now, if it has moved        [--samples=2 --sample_tokens=256 --temperature=0.8]

A run on BABILong answers samples of any length, read as streams (armt_jax/evaluation/babilong.py): table.md, heatmap.png, samples.jsonl.
Its files hold all sweeps of a checkpoint (no results.earlier.jsonl; results.png where there are several lengths), it is not shared (no
--share, no --merge), and rows that do not divide over the mesh are read by every device.
    [--stories=DIR]  ask about the published bAbI files there; without it, about stories of the kind that the run was trained on
"""

import os
import signal
import sys
from pathlib import Path

from absl import app, flags, logging

from armt_jax.telemetry.failures import EXIT_PREEMPTED

_WORKDIR = flags.DEFINE_string("workdir", None, "The run to evaluate.", required=True)
_SWEEP = flags.DEFINE_string("sweep", None, "File with get_sweep() -> list of config overrides.")
_OUT = flags.DEFINE_string("out", None, "Where the results go. Default: RUN/evaluation.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, last, or a step.")
_SHARE = flags.DEFINE_string("share", None, "I/N: worker I, from 0, of N that share the sweep.")
_MERGE = flags.DEFINE_bool("merge", False, "Only write the report of the shares.")
_DATA = flags.DEFINE_string("data_path", None, "Where the run's text lies, if not where it lay in training.")
_STORIES = flags.DEFINE_string("stories", None, "BABILong: folder of the published bAbI files to ask about.")
_SAMPLES = flags.DEFINE_integer("samples", 2, "Continuations to write, of a run on a text.", lower_bound=0)
_SAMPLE_TOKENS = flags.DEFINE_integer("sample_tokens", 256, "Tokens of each.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "Of the continuations; 0 is greedy.", lower_bound=0.0)


def run(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    from armt_jax.config import resolve
    from armt_jax.data import TextSource
    from armt_jax.evaluation import samples
    from armt_jax.evaluation import sweep as sweeps
    from armt_jax.evaluation.evaluate import checkpoint_choice, load, run_config
    from armt_jax.evaluation.shares import ALL, EARLIER, MERGE, Share
    from armt_jax.parallel.processes import cluster_request, split_cpu

    if _MERGE.value and _SHARE.value:
        raise ValueError("--merge and --share: a worker has its share, and --merge evaluates nothing; give one of them")
    share = MERGE if _MERGE.value else ALL if _SHARE.value is None else Share.parse(_SHARE.value)
    if share is ALL and (request := cluster_request(os.environ)):
        raise ValueError(
            f"{request}: several processes would each evaluate everything; give each its --share=I/N (python -m armt_jax.launch does), or "
            "unset the variable"
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_PREEMPTED))  # every finished point is written
    points = [{}] if _SWEEP.value is None else sweeps.read_sweep(_SWEEP.value)
    wanted = checkpoint_choice(_CHECKPOINT.value)
    split_cpu(resolve(run_config(Path(_WORKDIR.value), _DATA.value, _STORIES.value)).mesh.cpu_devices)
    trained = load(_WORKDIR.value, wanted, _DATA.value, _STORIES.value)
    if _STORIES.value:
        points = [{"task.stories": _STORIES.value, **point} for point in points]
    out = Path(_OUT.value) if _OUT.value else trained.workdir / "evaluation"
    rows = sweeps.run_sweep(trained, points, out, share=share)
    if rows is None:
        print(
            f"share {share.index} of {share.count} is done, others are not: {out}/{share.file}. The last one, or --merge, writes the report"
        )
        return
    print(sweeps.show(trained, rows, out))
    if (out / EARLIER).exists():
        print(f"other points and checkpoints: {out / EARLIER}")
    if _SAMPLES.value and isinstance(trained.config.task, TextSource):
        samples.write_samples(trained, out, count=_SAMPLES.value, new_tokens=_SAMPLE_TOKENS.value, temperature=_TEMPERATURE.value)
        print(f"continuations: {out}/samples.txt")


def main(argv):
    from armt_jax.checkpoint import CheckpointError
    from armt_jax.parallel.processes import JobError
    from armt_jax.telemetry.failures import one_line_errors
    from armt_jax.training.workdir import WorkdirError

    one_line_errors(run, CheckpointError, JobError, WorkdirError)(argv)


if __name__ == "__main__":
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)  # libraries below are talkative at INFO
    app.run(main)
