"""Starts train.py or eval.py on one machine, a TPU pod, a SLURM cluster or Kubernetes.

    python -m armt_jax.launch local  --processes=4                        -- train.py --config=... --workdir=...
    python -m armt_jax.launch tpu-vm --tpu=NAME --zone=ZONE               -- train.py --config=... --workdir=...
    python -m armt_jax.launch slurm  --nodes=4 --gpus_per_node=8          -- train.py --config=... --workdir=...
    python -m armt_jax.launch gke    --name=NAME --image=IMAGE --hosts=4 --volume=CLAIM:PATH -- train.py --config=... --workdir=...

What follows -- runs as every process of one job (train.py); or, for eval.py, as so many workers, each with its share of the sweep.
--dry_run prints what would be run, to be read and kept: a script, or of gke the manifest that `kubectl create -f -` gets.
Flags of each: python -m armt_jax.launch slurm --help.
"""

import argparse
import sys

from armt_jax.launch import cluster, local
from armt_jax.launch.command import LaunchError, program


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        "python -m armt_jax.launch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    engines = top.add_subparsers(dest="engine", required=True, metavar="{local,tpu-vm,slurm,gke}")
    for name, add_flags, launch in (
        ("local", local.add_flags, local.launch),
        ("tpu-vm", cluster.add_tpu_flags, cluster.launch_tpu),
        ("slurm", cluster.add_slurm_flags, cluster.launch_slurm),
        ("gke", cluster.add_gke_flags, cluster.launch_gke),
    ):
        engine = engines.add_parser(name, allow_abbrev=False, description=launch.__doc__)
        engine.add_argument("--dry_run", action="store_true", help="print what would be run, and run nothing")
        add_flags(engine)
        engine.set_defaults(launch=launch)
    return top


def main(argv: list[str]) -> int:
    own, found, given = (argv[: argv.index("--")], True, argv[argv.index("--") + 1 :]) if "--" in argv else (argv, False, [])
    arguments = parser().parse_args(own)
    try:
        if not found:
            raise LaunchError("no program given: write it after --, for instance -- train.py --config=CONFIG --workdir=DIR")
        return arguments.launch(program(given), arguments)
    except LaunchError as error:
        print(f"LaunchError: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
