"""Commands that a benchmark runs as a user would type them, and prints, so that every number can be had again."""

import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def command(*parts: str) -> list[str]:
    """As a user would type it; `execute` runs it with this interpreter."""
    return ["python", *parts]


def execute(words: list[str]) -> None:
    """Runs a command from the root of the repository; where it fails, this process ends with its code."""
    print(f"$ {shlex.join(words)}", flush=True)
    done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT)
    if done.returncode:
        sys.exit(done.returncode)  # 75: stopped by SIGTERM after saving; the same command goes on


def config_overrides(words: list[str]) -> list[str]:
    """--a.b=value, as the arguments of a benchmark, to --config.a.b=value.

    Raises:
        ValueError: one that is neither an argument of the benchmark nor such an override.
    """
    if odd := [word for word in words if not (word.startswith("--") and "." in word.partition("=")[0] and "=" in word)]:
        raise ValueError(f"{odd[0]} is neither an argument nor an override of the config, --section.key=value")
    return [f"--config.{word[2:]}" for word in words]


def require_root() -> None:
    """Leaves unless the benchmark was started where the commands that it prints belong."""
    if Path.cwd() != ROOT:
        sys.exit(f"error: start it in {ROOT}, where the commands that it prints belong")
