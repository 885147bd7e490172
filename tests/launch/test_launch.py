"""What the launcher prints is what a shell, sbatch and Kubernetes accept; what it runs ends as one."""

import os
import pathlib
import re
import shlex
import subprocess
import sys
import time

import pytest

from armt_jax.launch import local
from armt_jax.launch.__main__ import main
from armt_jax.launch.command import LaunchError

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = ("train.py", "--config=configs/quickstart.py:armt", "--workdir=/runs/a run's")
EVAL = ("eval.py", "--workdir=/runs/x", "--sweep=configs/sweeps/rewrite.py")
TPU, SLURM = ("tpu-vm", "--tpu=pod", "--zone=us-east5-b"), ("slurm",)
GKE = ("gke", "--name=run-1", "--image=repo/armt:1", "--volume=runs:/runs")


def dry_run(capsys, engine, program):
    assert main([*engine, "--dry_run", "--", *program]) == 0
    return capsys.readouterr().out


def check_shell(text):
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, timeout=20)
    assert done.returncode == 0 and not done.stderr, (done.stderr, text)


def load_yaml(text):
    yaml = pytest.importorskip("yaml")
    (document,) = yaml.safe_load_all(text)
    return document


def flags(line):
    return dict(word.split("=", 1) for word in shlex.split(line) if word.startswith("--") and "=" in word)


# -- what is printed -----------------------------------------------------------------------------------------------------


def test_local_prints_one_command_a_process(capsys, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    text = dry_run(capsys, ("local", "--processes=3", "--gpus_per_process=2"), TRAIN)
    check_shell(text)
    *lines, last = text.splitlines()
    assert last == "wait" and len(lines) == 3
    found = [flags(line) for line in lines]
    assert [each["--process_id"] for each in found] == ["0", "1", "2"] and {each["--num_processes"] for each in found} == {"3"}
    assert len({each["--coordinator"] for each in found}) == 1 and found[0]["--workdir"] == "/runs/a run's"
    assert [line.split()[0] for line in lines] == ["CUDA_VISIBLE_DEVICES=0,1", "CUDA_VISIBLE_DEVICES=2,3", "CUDA_VISIBLE_DEVICES=4,5"]


def test_local_divides_the_gpus_that_it_was_given(capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-1a2b,6,7,")
    lines = dry_run(capsys, ("local", "--processes=2", "--gpus_per_process=2"), TRAIN).splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["CUDA_VISIBLE_DEVICES=4,GPU-1a2b", "CUDA_VISIBLE_DEVICES=6,7"]
    with pytest.raises(LaunchError, match="--processes=3 of --gpus_per_process=2 need 6 GPUs, and CUDA_VISIBLE_DEVICES=4, GPU.* leaves 4"):
        local._visible_gpus(3, 2)


def test_local_shares_a_sweep(capsys):
    lines = dry_run(capsys, ("local", "--processes=2"), EVAL).splitlines()
    assert [flags(line)["--share"] for line in lines[:-1]] == ["0/2", "1/2"] and "--coordinator" not in lines[0]


def test_tpu_vm_runs_on_all_hosts_until_it_is_not_preempted(capsys):
    text = dry_run(capsys, (*TPU, "--project=p", "--setup=source venv/bin/activate"), TRAIN)
    check_shell(text)
    words = shlex.split(text)
    assert words[:8] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=us-east5-b", "--project=p"]
    assert words[8] == "--worker=all"
    (script,) = [word.removeprefix("--command=") for word in words if word.startswith("--command=")]
    check_shell(script)
    assert "source venv/bin/activate" in script and '"/runs/a run\'s"' not in script and flags(script)["--coordinator"] == "auto"


@pytest.mark.parametrize("codes, expected", [((75, 75, 0), 0), ((75, 3), 3)])
def test_the_script_of_a_tpu_host_starts_again_after_75_alone(capsys, tmp_path, codes, expected):
    """Run for real, with a stand-in for Python that ends with one code after the other."""
    python = tmp_path / "python"
    starts = tmp_path / "starts"
    python.write_text(f'#!/bin/bash\ncodes=({" ".join(map(str, codes))})\necho x >> {starts}\nexit "${{codes[$(wc -l < {starts})-1]}}"\n')
    python.chmod(0o755)
    text = dry_run(capsys, (*TPU, f"--directory={tmp_path}", f"--python={python}"), TRAIN)
    (script,) = [word.removeprefix("--command=") for word in shlex.split(text) if word.startswith("--command=")]
    done = subprocess.run(["bash", "-c", script.replace("sleep 10", "true")], capture_output=True, text=True, timeout=20)
    assert done.returncode == expected and starts.read_text().count("x") == len(codes)


def test_tpu_vms_share_a_sweep(capsys):
    text = dry_run(capsys, ("tpu-vm", "--tpu=a,b,c", "--zone=z"), EVAL)
    check_shell(text)
    assert re.findall(r"--share=(\d/\d)", text) == ["0/3", "1/3", "2/3"] and "--worker=all" not in text


def test_slurm_script(capsys):
    engine = (*SLURM, "--nodes=4", "--gpus_per_node=8", "--partition=p", "--sbatch=--constraint=a100", "--directory=/a b")
    text = dry_run(capsys, engine, TRAIN)
    check_shell(text)
    directives = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8", "--partition=p", "--constraint=a100", "--requeue"} <= set(directives)
    assert "--signal=TERM@180" in directives and "cd '/a b'" in text
    (line,) = [line for line in text.splitlines() if line.startswith("srun")]
    assert flags(line)["--coordinator"] == "auto" and flags(line)["--workdir"] == "/runs/a run's"


@pytest.mark.parametrize("code, restarts, requeued", [(75, None, True), (75, 1000, False), (0, None, False), (1, None, False)])
def test_the_slurm_script_requeues_after_75_alone(capsys, tmp_path, code, restarts, requeued):
    """Run for real, with stand-ins for srun and scontrol."""
    for name, body in (("srun", f"exit {code}"), ("scontrol", f'echo "$@" > {tmp_path}/called')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    script = dry_run(capsys, (*SLURM, f"--directory={tmp_path}"), TRAIN)
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    environ |= {} if restarts is None else {"SLURM_RESTART_COUNT": str(restarts)}
    done = subprocess.run(["bash"], input=script, env=environ, text=True, capture_output=True, timeout=20)
    assert done.returncode == code and (tmp_path / "called").exists() == requeued, done.stderr
    if requeued:
        assert (tmp_path / "called").read_text() == "requeue 7\n"


def test_slurm_array_shares_a_sweep(capsys):
    text = dry_run(capsys, (*SLURM, "--shares=8", "--gpus_per_node=1"), EVAL)
    check_shell(text)
    assert "#SBATCH --array=0-7" in text and "#SBATCH --ntasks-per-node=1" in text and '--share="$SLURM_ARRAY_TASK_ID/8"' in text


def pods(manifest):
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    ((job,),) = [[each["template"]["spec"] for each in manifest["spec"]["replicatedJobs"]]]
    (container,) = job["template"]["spec"]["containers"]
    shell, flag, line = container["command"]
    assert (shell, flag) == ("bash", "-c") and line.startswith("exec ")
    check_shell(line)
    (rule,) = [rule for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [75]}
    assert job["completionMode"] == "Indexed" and job["template"]["spec"]["restartPolicy"] == "Never"
    return job, container, line, rule["action"]


def test_jobset_manifest(capsys):
    engine = (*GKE, "--hosts=4", "--tpu=tpu-v5-lite-podslice", "--topology=4x4", "--chips_per_host=4")
    manifest = load_yaml(dry_run(capsys, engine, TRAIN))
    job, container, line, action = pods(manifest)
    assert job["completions"] == job["parallelism"] == 4 and job["backoffLimit"] == 0 and action == "FailJob"
    (rule,) = manifest["spec"]["failurePolicy"]["rules"]
    assert rule == {"action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert manifest["spec"]["network"]["enableDNSHostnames"] is True
    found = flags(line)
    assert found["--coordinator"] == "run-1-workers-0-0.run-1:8476" and found["--num_processes"] == "4"
    assert found["--process_id"] == "$JOB_COMPLETION_INDEX" and found["--workdir"] == "/runs/a run's"
    assert container["resources"]["limits"] == {"google.com/tpu": 4} and container["volumeMounts"][0]["mountPath"] == "/runs"
    assert job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"


def test_indexed_jobset_shares_a_sweep(capsys):
    job, container, line, action = pods(load_yaml(dry_run(capsys, (*GKE, "--shares=8", "--gpu=nvidia-l4", "--chips_per_host=1"), EVAL)))
    assert job["completions"] == 8 and job["backoffLimitPerIndex"] == 3 and action == "Ignore"
    assert flags(line)["--share"] == "$JOB_COMPLETION_INDEX/8" and container["resources"]["limits"] == {"nvidia.com/gpu": 1}


def launch_commands(text):
    """The launch commands of a page, as (flags of the launcher, program); a continuation line ends in a backslash."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip().startswith("python -m armt_jax.launch "):
            words = shlex.split(line, comments=True)[3:]
            yield [word for word in words[: words.index("--")] if word != "--dry_run"], words[words.index("--") + 1 :]


def check_command(capsys, engine, program):
    text = dry_run(capsys, engine, program)
    if engine[0] == "gke":
        pods(load_yaml(text))
    else:
        check_shell(text)


def test_commands_of_the_readmes_section(capsys):
    """One of each engine, all of them printed."""
    section = (ROOT / "README.md").read_text().split("## From one device to a pod\n")[1].split("\n## ")[0]
    commands = list(launch_commands(section))
    assert [engine[0] for engine, _ in commands] == ["local", "tpu-vm", "slurm", "gke"]
    for engine, program in commands:
        check_command(capsys, engine, program)
        config = flags(shlex.join(program))["--config"].partition(":")[0]
        assert (ROOT / config).exists(), config


def test_commands_of_the_documentation(capsys):
    """Every launch command in the README and docs/ can be printed."""
    pages = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    commands = [command for page in pages for command in launch_commands(page.read_text())]
    for engine, program in commands:
        check_command(capsys, engine, program)
    assert len(commands) >= 10


# -- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "engine, program, words",
    [
        (("local", "--processes=2"), (), "no program after --"),
        (("local", "--processes=2"), ("test.py",), "'test.py' cannot be launched: give train.py or eval.py"),
        (("local", "--processes=2"), ("train.py", "--config=x"), "needs --workdir=DIR"),
        (("local", "--processes=2"), ("train.py", "config", "--workdir=x"), "argument 'config' of train.py is no flag"),
        (("local", "--processes=2"), (*TRAIN, "--process_id=3"), "--process_id=3 of train.py is filled in"),
        (("local", "--processes=2"), EVAL[:2], "without --sweep"),
        (("tpu-vm", "--tpu=a,b", "--zone=z"), TRAIN, "a training runs on one TPU VM"),
        (("tpu-vm", "--tpu=a,a", "--zone=z"), EVAL, "different names"),
        (SLURM, EVAL, "needs --shares=N"),
        ((*SLURM, "--shares=2"), TRAIN, "--shares=2 is for eval.py"),
        ((*SLURM, "--shares=2", "--nodes=2"), EVAL, "leave out --nodes"),
        ((*SLURM, "--gpus_per_node=8", "--processes_per_node=2"), TRAIN, "one process a GPU"),
        ((*SLURM, "--sbatch=constraint"), TRAIN, "--sbatch=constraint must be a flag of sbatch"),
        (GKE, TRAIN, "train.py needs --hosts=N"),
        ((*GKE, "--hosts=2", "--tpu=t"), TRAIN, "--tpu and --topology go together"),
        ((*GKE, "--hosts=2", "--tpu=t", "--gpu=g"), TRAIN, "give one of them"),
        ((*GKE, "--hosts=2", "--gpu=g"), TRAIN, "--chips_per_host goes with"),
        ((*GKE, "--hosts=2"), ("train.py", "--workdir=runs/x"), "--workdir=runs/x is not on the shared volume"),
        ((*GKE, "--shares=2"), (*EVAL, "--out=/tmp/x"), "--out=/tmp/x is not on the shared volume"),
        ((*GKE[:-1], "--volume=runs", "--hosts=2"), TRAIN, "--volume=runs must be CLAIM:/PATH"),
    ],
)
def test_what_makes_no_sense_is_one_clear_line(capsys, engine, program, words):
    assert main([*engine, "--dry_run", "--", *program]) == 1
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("LaunchError: ") and words in line and not said.out


@pytest.mark.parametrize(
    "engine, words",
    [
        (("local",), "--processes"),
        (("local", "--processes=0"), "'0' must be a whole number of at least 1"),
        (("local", "--proc=2"), "--processes"),
        (("slurm", "--setup=echo 'x"), "is not a line of shell"),
        (("slurm", "--directory=a\nb"), "must be one line of text"),
        (("slurm", "--time=1 day"), "must have no spaces or quotes"),
        (("gke", "--name=Run"), "must be lower-case letters"),
        (("magic",), "invalid choice: 'magic'"),
    ],
)
def test_a_bad_flag_names_the_rule(capsys, engine, words):
    with pytest.raises(SystemExit) as ended:
        main([*engine, "--dry_run", "--", *TRAIN])
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_without_a_program_and_without_the_engine(capsys, monkeypatch):
    assert main(["local", "--processes=2"]) == 1 and "write it after --" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/nowhere")
    assert main([*SLURM, "--", *TRAIN]) == 1
    assert "sbatch is not installed" in capsys.readouterr().err


# -- what is run ---------------------------------------------------------------------------------------------------------


def python(text):
    return [sys.executable, "-c", f"import os, signal, sys, time\n{text}"]


WAITS = python("time.sleep(60)")


def run_all(*commands, together=True, grace=0.2):
    began = time.monotonic()
    code = local.run_all(list(commands), [{}] * len(commands), together=together, grace=grace)
    assert time.monotonic() - began < 30
    return code


@pytest.mark.parametrize(
    "program, code", [("sys.exit(3)", 3), ("sys.exit(75)", 75), ("os.kill(os.getpid(), signal.SIGKILL)", 137), ("pass", 0)]
)
def test_one_that_fails_ends_all_with_its_code(program, code):
    assert run_all(python(program), WAITS if code else python("pass")) == code


def test_workers_of_a_sweep_do_not_end_each_other(tmp_path):
    assert run_all(python("sys.exit(1)"), python(f"time.sleep(0.5); open({str(tmp_path / 'done')!r}, 'w')"), together=False) == 1
    assert (tmp_path / "done").exists()


def test_a_program_that_cannot_be_started_leaves_none_behind():
    with pytest.raises(FileNotFoundError):
        run_all(WAITS, ["/nowhere/python"])


def test_a_signal_is_passed_on_and_75_comes_back(tmp_path):
    """The launcher as a process: SIGTERM to it reaches all, and their code is its own."""
    script = tmp_path / "train.py"
    script.write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"pathlib.Path({str(tmp_path)!r}, sys.argv[-1]).touch()\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-m", "armt_jax.launch", "local", "--processes=2", "--", str(script), "--workdir=x"]
    launcher = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 30
        while len(list(tmp_path.glob("--process_id=*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        launcher.terminate()
        _, err = launcher.communicate(timeout=30)
    finally:
        launcher.kill()
    assert launcher.returncode == 75 and "was preempted and has saved (exit code 75)" in err


def test_the_launcher_needs_no_jax():
    code = "import sys; from armt_jax.launch import __main__; assert not {'jax', 'numpy', 'flax'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=30)
    assert done.returncode == 0
