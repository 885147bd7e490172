"""What train.py says of a mistake in --config: one line, with the file, the key and what to do."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
QUICKSTART = str(ROOT / "configs" / "quickstart.py")
BROKEN = "from ml_collections import ConfigDict\n\n\ndef get_config():\n    c = ConfigDict()\n    c.trian.x = 1\n    return c\n"
BARE = "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({'seed': 0})\n"
MISTAKES = {
    "an unknown variant": ([f"--config={QUICKSTART}:armtt"], ["quickstart.py:armtt is unknown", "armt, rmt, none"]),
    "no such file": (["--config=configs/quikstart.py", "--config.seed=1"], ["configs/quikstart.py does not exist"]),
    "a mistake in the file": (["--config=FOLDER/broken.py"], ["FOLDER/broken.py", "trian"]),
    "an unknown section": ([f"--config={QUICKSTART}", "--config.trian.x=1"], ["unknown section trian", "did you mean 'train'?"]),
    "a section that the file lacks": (["--config=FOLDER/bare.py", "--config.init.path=x"], ["FOLDER/bare.py", "`c.init = dict()`"]),
    "a value that the file lacks": (["--config=FOLDER/bare.py", "--config.dtype=bfloat16"], ["FOLDER/bare.py", "`c.dtype = ...`"]),
}
SCRIPT = """
import json, sys
import train
print(json.dumps({name: train.config_mistake(["train.py", *argv]) for name, argv in json.loads(sys.argv[1]).items()}))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """One process for all of them: absl's flags are defined once a process."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "broken.py").write_text(BROKEN)
    (folder / "bare.py").write_text(BARE)
    given = {name: [word.replace("FOLDER", str(folder)) for word in argv] for name, (argv, _) in MISTAKES.items()}
    given["none"] = [f"--config={QUICKSTART}:armt", "--config.seed=1", "--config.dtype=bfloat16"]
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, json.dumps(given)]
    done = subprocess.run(command, env=environ, cwd=ROOT, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(said, name):
    folder, found = said
    assert "\n" not in found[name]
    for part in MISTAKES[name][1]:
        assert part.replace("FOLDER", str(folder)) in found[name]


def test_a_right_command_line_has_no_mistake(said):
    assert said[1]["none"] is None
