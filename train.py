"""Trains a memory transformer.

    python train.py                                              the main job: configs/quickstart.py, all its memories, sweep and plot
    python train.py --config=configs/x.py[:variant] --workdir=runs/x [--config.a.b=value]

Started again with the same command, it goes on from the last checkpoint. Exit codes: 0 done, 1 error, 75 stopped by SIGTERM after saving.
On several machines: `python -m armt_jax.launch` (docs/launch.md) starts one process a machine, with the flags of the job filled in.
"""

import contextlib
import functools
import importlib.util
import sys
import time
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

DEFAULT = "configs/quickstart.py"
_CONFIG = config_flags.DEFINE_config_file(
    "config", str(Path(__file__).parent / DEFAULT), "The experiment, path[:variant].", lock_config=False, accept_new_attributes=True
)  # unknown keys are refused by armt_jax.config, with a suggestion
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives. Default: runs/<config name>[-<variant>].")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "Address of process 0 of several, 'auto' to ask the cluster, or 'none'.")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run, with --coordinator.")
_PROCESS = flags.DEFINE_integer("process_id", None, "This process, with --coordinator.")
_JOIN = flags.DEFINE_integer("join_timeout", 300, "Seconds to wait for the other processes at the start.", lower_bound=1)
_HEARTBEAT = flags.DEFINE_integer("heartbeat_timeout", 30, "Seconds after which a silent process ends the job.", lower_bound=1)
_STALL = flags.DEFINE_integer("stall_seconds", 600, "Without a step for so long: stacks of all threads to stderr. 0: never.", lower_bound=0)
_STALL_END = flags.DEFINE_bool("stall_end", False, "After a stall, exit with 1.")


def config_file() -> tuple[Path, str | None]:
    """The path of --config, and its variant."""
    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return Path(path), variant or None


def load_module(path: Path):
    spec = importlib.util.spec_from_file_location("config_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def variants(path: Path, variant: str | None) -> list[str | None]:
    """A config file may list RUNS: without a variant on the command line, all of them run, one after the other."""
    runs = getattr(load_module(path), "RUNS", None)
    return [variant] if variant is not None or not runs else list(runs)


def config_of(path: Path, variant: str | None):
    """The plain config of a variant, with the command line's overrides."""
    from armt_jax.config import override, plain

    module = load_module(path)
    config = plain(module.get_config() if variant is None else module.get_config(variant))
    return override(config, config_flags.get_override_values(flags.FLAGS["config"]))


def run(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; settings are given as --config.section.key=value")
    from armt_jax.config import resolve
    from armt_jax.parallel.processes import agree, initialize, is_joined, is_main, split_cpu
    from armt_jax.telemetry.failures import leaving_at_sigterm
    from armt_jax.telemetry.watchdog import StallWatchdog
    from armt_jax.training.checks import check_init
    from armt_jax.training.loop import train

    path, variant = config_file()
    chosen = variants(path, variant)
    # Resolve every variant before the first one runs: a mistake in the last must not cost the others' time.
    raws = {each: config_of(path, each) for each in chosen}
    configs = {each: resolve(raw) for each, raw in raws.items()}
    split_cpu(configs[chosen[0]].mesh.cpu_devices)
    initialize(
        _COORDINATOR.value, _PROCESSES.value, _PROCESS.value, join_timeout=_JOIN.value, heartbeat_timeout=_HEARTBEAT.value
    )  # fmt: skip
    agree("runs", {"config": path.stem, "variants": chosen})
    say = functools.partial(print, flush=True) if is_main() else lambda text: None
    base = Path(_WORKDIR.value or Path("runs") / (path.stem if variant is None else f"{path.stem}-{variant}"))
    workdirs = {each: base if len(chosen) == 1 else base / each for each in chosen}
    for each in chosen:
        if not (workdirs[each] / "checkpoints").exists():  # a run under way has read it
            check_init(configs[each])
    for each in chosen:
        start = time.monotonic()
        say(f"== {path.stem}{':' + each if each else ''} -> {workdirs[each]}")
        with StallWatchdog(_STALL.value, end=_STALL_END.value) as watchdog:
            standing = train(configs[each], raws[each], workdirs[each], watchdog)
        say(f"== trained {standing.step} steps in {time.monotonic() - start:.0f} s")
    sweep = getattr(load_module(path), "SWEEP", None)
    if sweep is not None:
        # In a job of several processes JAX has taken the signal: they ask for it between two runs.
        with contextlib.nullcontext() if is_joined() else leaving_at_sigterm():
            evaluate_all(path, workdirs, base, Path(__file__).parent / sweep)


def evaluate_all(path: Path, workdirs: dict, base: Path, sweep: Path):
    """The config's own sweep over every run, then all in one table and plot."""
    from armt_jax.evaluation import sweep as sweeps
    from armt_jax.evaluation import task as tasks
    from armt_jax.evaluation.evaluate import load
    from armt_jax.evaluation.report import plot_training
    from armt_jax.parallel.processes import is_main, reached_stop
    from armt_jax.telemetry.failures import EXIT_PREEMPTED

    points, results = sweeps.read_sweep(sweep), {}
    for label, workdir in workdirs.items():
        if reached_stop():
            sys.exit(EXIT_PREEMPTED)
        trained = load(workdir)
        results[label or sweeps.memory_name(trained)] = sweeps.run_sweep(trained, points, workdir / "evaluation", label)
    if not is_main():
        return
    print(tasks.table(results, trained.config.task.size_name))
    if len(results) > 1:
        tasks.compare(results, base, trained)
    plot_training({label or path.stem: workdir / "metrics.jsonl" for label, workdir in workdirs.items()}, base / "training.png")
    print(f"plots: {base if len(results) > 1 else workdir / 'evaluation'}/results.png, {base}/training.png")


def main(argv):
    from armt_jax.checkpoint import CheckpointError
    from armt_jax.parallel.processes import JobError, ending_together
    from armt_jax.tasks.workers import WorkerDied
    from armt_jax.telemetry.failures import one_line_errors
    from armt_jax.training.stops import NonFiniteLoss
    from armt_jax.training.workdir import WorkdirError

    with ending_together():
        one_line_errors(run, CheckpointError, JobError, NonFiniteLoss, WorkdirError, WorkerDied)(argv)


def parse_flags(argv):
    """absl's parser, with one clear line where the config file or an override of it is wrong."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        print(config_mistake(argv) or error, file=sys.stderr)
        sys.exit(1)


def config_mistake(argv) -> str | None:
    """What is wrong with --config and its overrides on this command line; None where it is something else."""
    from armt_jax.config import SECTIONS, plain, suggestion

    given = next((a.partition("=")[2] for a in reversed(argv) if a.startswith("--config=")), str(Path(__file__).parent / DEFAULT))
    path, _, variant = given.partition(":")
    if not Path(path).is_file():
        return f"config file {path} does not exist: --config names a Python file, with its variant behind a colon"
    try:
        get_config = load_module(Path(path)).get_config
        config = plain(get_config(variant) if variant else get_config())
    except ValueError as error:
        return str(error)
    except Exception as error:  # whatever a config file may do
        return f"config file {path}: {type(error).__name__}: {error}"
    for override in (a for a in argv if a.startswith("--config.")):
        section = override.removeprefix("--config.").partition("=")[0].split(".")[0]
        if section not in SECTIONS:
            return f"{override}: unknown section {section}{suggestion(section, SECTIONS)}"
        if section not in config:
            spelt = f"c.{section} = dict()" if "." in override.partition("=")[0].removeprefix("--config.") else f"c.{section} = ..."
            return (
                f"{override}: config override into section {section}, which {path} does not have: the config file must spell it out, for "
                f"instance `{spelt}`, before the command line can change it"
            )
    return None


if __name__ == "__main__":
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)  # libraries below are talkative at INFO
    app.run(main, flags_parser=parse_flags)
