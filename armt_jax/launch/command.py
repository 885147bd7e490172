"""The program to launch, and how its command line is written for each engine."""

import argparse
import dataclasses
import re
import shlex
import shutil
import string
import subprocess
from importlib import resources
from pathlib import PurePath

# What the launcher itself fills in.
_FILLED = ("--coordinator", "--num_processes", "--process_id", "--share", "--merge")
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")


class LaunchError(ValueError):
    """The launch makes no sense as asked for; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A script with its arguments. `shares`: it is a sweep that workers share, not a job of processes that work on one thing."""

    arguments: tuple[str, ...]

    @property
    def shares(self) -> bool:
        return PurePath(self.arguments[0]).name == "eval.py"

    def command(self, python: str, *more: str) -> list[str]:
        return [python, *self.arguments, *more]

    def line(self, python: str, *more: str) -> str:
        """As the shell reads it. `more` is shell text already."""
        return " ".join([shlex.join(self.command(python)), *more])


def program(given: list[str]) -> Program:
    if not given:
        raise LaunchError("no program after --: give train.py or eval.py with its flags")
    name = PurePath(given[0]).name
    if name not in ("train.py", "eval.py"):
        raise LaunchError(f"{given[0]!r} cannot be launched: give train.py or eval.py (with its path, if need be)")
    for argument in given[1:]:
        if not argument.startswith("--"):
            raise LaunchError(f"argument {argument!r} of {name} is no flag: write flags as --name=value")
        if argument.partition("=")[0] in _FILLED:
            raise LaunchError(f"{argument} of {name} is filled in by the launcher: leave it out")
    flags = [argument.partition("=")[0] for argument in given[1:]]
    if "--workdir" not in flags:
        raise LaunchError(f"{name} needs --workdir=DIR here: every process and every restart must find the same folder")
    if name == "eval.py" and "--sweep" not in flags:
        raise LaunchError("eval.py without --sweep has nothing to share: run it by itself, or give --sweep=FILE")
    return Program(tuple(given))


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def dns_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be lower-case letters, digits and '-', begin with a letter, 40 at most")
    return text


def one_line(text: str) -> str:
    """A value that stands in a line of a template."""
    if not text.strip() or any(ord(character) < 32 for character in text):
        raise argparse.ArgumentTypeError(f"{text!r} must be one line of text")
    return text


def word(text: str) -> str:
    """A value that stands unquoted in a directive: no spaces, quotes or other characters with a meaning to a shell."""
    if not re.fullmatch(r"[-\w.,:/@%+=]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} must have no spaces or quotes")
    return text


def fill(template: str, /, **values: object) -> str:
    """A template of this package with its $names replaced. Every value must have its place, and every place its value."""
    text = string.Template((resources.files("armt_jax.launch") / "templates" / template).read_text())
    places = set(text.get_identifiers())
    if places != values.keys():
        raise KeyError(f"template {template} has places {sorted(places)}, but there are values for {sorted(values)}")
    return text.substitute(values)


def run(command: list[str], text: str = "") -> int:
    """Runs it with text as its input; its exit code."""
    if shutil.which(command[0]) is None:
        raise LaunchError(f"{command[0]} is not installed on this machine: install it, or print what to run elsewhere with --dry_run")
    return subprocess.run(command, input=text, text=True, check=False).returncode
