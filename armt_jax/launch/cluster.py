"""TPU VMs through gcloud, SLURM through sbatch, Kubernetes through a JobSet."""

import argparse
import json
import os
import shlex
from pathlib import PurePosixPath

from armt_jax.launch.command import LaunchError, Program, dns_name, fill, one_line, positive, run, word
from armt_jax.launch.local import run_all

# Where process 0 listens for the others.
_PORT = 8476


def _setup(text: str) -> str:
    try:
        shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a line of shell ({error})") from error
    return one_line(text)


def _need_shares(program: Program, shares: int | None) -> None:
    if program.shares and shares is None:
        raise LaunchError("eval.py needs --shares=N: the number of workers that share the sweep")
    if not program.shares and shares is not None:
        raise LaunchError(f"--shares={shares} is for eval.py; the processes of train.py work on one run: leave it out")


# -- TPU VMs -------------------------------------------------------------------------------------------------------------


def add_tpu_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tpu", type=word, required=True, metavar="NAME", help="the TPU VM; for eval.py NAME,NAME,...: a share each")
    parser.add_argument("--zone", type=word, required=True)
    parser.add_argument("--project", type=word)
    parser.add_argument("--directory", type=one_line, default="armt_jax", help="of the program, on every host, from the home folder")
    parser.add_argument("--setup", type=_setup, default=":", help="a line of shell to run first, like 'source venv/bin/activate'")
    parser.add_argument("--python", default="python3")


def tpu_commands(program: Program, arguments: argparse.Namespace) -> list[list[str]]:
    names = arguments.tpu.split(",")
    if not all(names) or len(set(names)) < len(names):
        raise LaunchError(f"--tpu={arguments.tpu} must be different names, with commas between them")
    if len(names) > 1 and not program.shares:
        raise LaunchError(f"--tpu={arguments.tpu}: a training runs on one TPU VM (of any number of hosts): name one")
    commands = []
    for i, name in enumerate(names):
        more = f"--share={i}/{len(names)}" if program.shares else "--coordinator=auto"
        line = program.line(shlex.quote(arguments.python), more)
        script = fill("tpu_vm.sh", directory=shlex.quote(arguments.directory), setup=arguments.setup, line=line)
        place = [f"--zone={arguments.zone}", *([f"--project={arguments.project}"] if arguments.project else [])]
        workers = "0" if program.shares else "all"
        ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", name, *place, f"--worker={workers}"]
        commands.append([*ssh, f"--command={script}"])
    return commands


def launch_tpu(program: Program, arguments: argparse.Namespace) -> int:
    """The program on every host of a TPU VM, started again there after exit code 75 (preempted). eval.py: on several TPU VMs of one
    host, a share each. The workdir must be a folder that all hosts mount."""
    commands = tpu_commands(program, arguments)
    if arguments.dry_run:
        for command in commands:
            print(shlex.join(command) + (" &" if len(commands) > 1 else ""))
        if len(commands) > 1:
            print("wait")
        return 0
    if len(commands) == 1:
        return run(commands[0])
    return run_all(commands, [{}] * len(commands), together=False)


# -- SLURM ---------------------------------------------------------------------------------------------------------------


def add_slurm_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", type=dns_name, default="armt-jax")
    parser.add_argument("--nodes", type=positive, default=1)
    parser.add_argument("--gpus_per_node", type=positive, help="train.py: one process a GPU")
    parser.add_argument("--processes_per_node", type=positive, help="of train.py, without GPUs (default 1)")
    parser.add_argument("--cpus_per_process", type=positive)
    parser.add_argument("--shares", type=positive, help="of eval.py: an array of so many jobs")
    parser.add_argument("--time", type=word, default="24:00:00", help="limit of one start; a longer run is put into the queue again")
    parser.add_argument("--notice", type=positive, default=180, help="seconds before the limit at which the run saves and stops")
    parser.add_argument("--max_restarts", type=positive, default=1000)
    parser.add_argument("--partition", type=word)
    parser.add_argument("--account", type=word)
    parser.add_argument("--sbatch", type=word, action="append", default=[], metavar="FLAG", help="further: --sbatch=--constraint=a100")
    parser.add_argument("--directory", type=one_line, default=os.getcwd(), help="of the program, on every node; default: this one")
    parser.add_argument("--output", type=word, default="slurm-%x-%j.out")
    parser.add_argument("--setup", type=_setup, default=":", help="a line of shell to run first, like 'module load cuda'")
    parser.add_argument("--python", default="python3")


def slurm_script(program: Program, arguments: argparse.Namespace) -> str:
    _need_shares(program, arguments.shares)
    if arguments.gpus_per_node and arguments.processes_per_node:
        raise LaunchError("--processes_per_node is for nodes without GPUs: with --gpus_per_node JAX runs one process a GPU")
    if program.shares and (arguments.nodes > 1 or arguments.processes_per_node):
        raise LaunchError("eval.py runs as one process a share: leave out --nodes and --processes_per_node")
    further = {
        "partition": arguments.partition,
        "account": arguments.account,
        "gpus-per-node": arguments.gpus_per_node,
        "cpus-per-task": arguments.cpus_per_process,
        "array": f"0-{arguments.shares - 1}" if program.shares else None,
    }
    for flag in arguments.sbatch:
        if not flag.startswith("--"):
            raise LaunchError(f"--sbatch={flag} must be a flag of sbatch, like --sbatch=--constraint=a100")
    directives = [f"--{name}={value}" for name, value in further.items() if value is not None] + arguments.sbatch
    more = f'--share="$SLURM_ARRAY_TASK_ID/{arguments.shares}"' if program.shares else "--coordinator=auto"
    return fill(
        "slurm.sh",
        name=arguments.name,
        nodes=arguments.nodes,
        tasks=1 if program.shares else arguments.gpus_per_node or arguments.processes_per_node or 1,
        time=arguments.time,
        output=arguments.output,
        notice=arguments.notice,
        directives="\n".join(f"#SBATCH {each}" for each in directives) or "#",
        directory=shlex.quote(arguments.directory),
        setup=arguments.setup,
        line=program.line(shlex.quote(arguments.python), more),
        max_restarts=arguments.max_restarts,
    )


def launch_slurm(program: Program, arguments: argparse.Namespace) -> int:
    """An sbatch script that starts the processes with srun, and puts the job into the queue again when they stopped with 75.
    eval.py: a job array, a share each."""
    script = slurm_script(program, arguments)
    if arguments.dry_run:
        print(script, end="")
        return 0
    return run(["sbatch"], script)


# -- Kubernetes ----------------------------------------------------------------------------------------------------------


def add_gke_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", type=dns_name, required=True)
    parser.add_argument("--image", type=word, required=True)
    parser.add_argument("--hosts", type=positive, help="processes of train.py, one a host")
    parser.add_argument("--shares", type=positive, help="of eval.py: so many workers")
    parser.add_argument("--tpu", type=word, metavar="TYPE", help="like tpu-v5-lite-podslice, with --topology")
    parser.add_argument("--topology", type=word, help="like 4x4")
    parser.add_argument("--gpu", type=word, metavar="TYPE", help="like nvidia-h100-80gb")
    parser.add_argument("--chips_per_host", type=positive, help="TPU chips or GPUs of a host")
    parser.add_argument("--volume", type=word, required=True, metavar="CLAIM:/PATH", help="the shared volume (a PersistentVolumeClaim)")
    parser.add_argument("--notice", type=positive, default=180, help="seconds that a pod gets to save when it is evicted")
    parser.add_argument("--max_restarts", type=positive, default=3, help="after failures; preemptions do not count")
    parser.add_argument("--directory", type=one_line, default="/armt_jax", help="of the program, in the image")
    parser.add_argument("--python", default="python3")


def _accelerator(arguments: argparse.Namespace) -> tuple[dict[str, str], dict[str, int]]:
    """Node selector, resource limits."""
    if arguments.tpu and arguments.gpu:
        raise LaunchError("--tpu and --gpu: give one of them")
    if bool(arguments.tpu) != bool(arguments.topology):
        raise LaunchError("--tpu and --topology go together: like --tpu=tpu-v5-lite-podslice --topology=4x4")
    if bool(arguments.tpu or arguments.gpu) != bool(arguments.chips_per_host):
        raise LaunchError("--chips_per_host goes with --tpu or --gpu: the number of chips that each host has")
    label = "cloud.google.com/gke-"
    if arguments.tpu:
        selector = {f"{label}tpu-accelerator": arguments.tpu, f"{label}tpu-topology": arguments.topology}
        return selector, {"google.com/tpu": arguments.chips_per_host}
    if arguments.gpu:
        return {f"{label}accelerator": arguments.gpu}, {"nvidia.com/gpu": arguments.chips_per_host}
    return {}, {}


def _volume(program: Program, given: str) -> tuple[str, str]:
    """Claim, path. What the program writes must be there."""
    claim, _, path = given.partition(":")
    if not claim or not path.startswith("/"):
        raise LaunchError(f"--volume={given} must be CLAIM:/PATH, like runs:/runs")
    for each in program.arguments:
        flag, _, folder = each.partition("=")
        if flag in ("--workdir", "--out") and not PurePosixPath(folder).is_relative_to(path):
            raise LaunchError(f"{each} is not on the shared volume, which the pods see at {path}: put it there")
    return claim, path


def jobset(program: Program, arguments: argparse.Namespace) -> str:
    _need_shares(program, arguments.shares)
    if program.shares == bool(arguments.hosts):
        raise LaunchError("train.py needs --hosts=N; eval.py has --shares=N instead: one process a share")
    selector, limits = _accelerator(arguments)
    claim, path = _volume(program, arguments.volume)
    name, python = arguments.name, shlex.quote(arguments.python)
    values = dict(
        name=json.dumps(name), image=json.dumps(arguments.image), directory=json.dumps(arguments.directory), notice=arguments.notice,
        node_selector=json.dumps(selector), limits=json.dumps(limits), max_restarts=arguments.max_restarts,
        volumes=json.dumps([{"name": "shared", "persistentVolumeClaim": {"claimName": claim}}]),
        mounts=json.dumps([{"name": "shared", "mountPath": path}]),
    )  # fmt: skip
    if program.shares:
        line = program.line(python, f'--share="$JOB_COMPLETION_INDEX/{arguments.shares}"')
        return fill("jobset_sweep.yaml", shares=arguments.shares, line=json.dumps(f"exec {line}"), **values)
    # The name that Kubernetes gives the first pod (JobSet's network).
    job = [f"--coordinator={name}-workers-0-0.{name}:{_PORT}", f"--num_processes={arguments.hosts}"]
    line = program.line(python, *job, '--process_id="$JOB_COMPLETION_INDEX"')
    exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"} if arguments.tpu else {}
    return fill("jobset.yaml", hosts=arguments.hosts, line=json.dumps(f"exec {line}"), annotations=json.dumps(exclusive), **values)


def launch_gke(program: Program, arguments: argparse.Namespace) -> int:
    """A JobSet (sigs.k8s.io/jobset 0.6 or newer): a pod a host, all started again after a preemption. eval.py: a pod a share."""
    manifest = jobset(program, arguments)
    if arguments.dry_run:
        print(manifest, end="")
        return 0
    return run(["kubectl", "create", "-f", "-"], manifest)
