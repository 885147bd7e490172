"""The configs and sweeps in the repository."""

import importlib.util
import pathlib
import random
import re

import pytest

from armt_jax.config import override, plain, resolve
from armt_jax.data.tokenizers import GPT2Tokenizer
from armt_jax.data.tokenizers.gpt2 import byte_symbols
from armt_jax.evaluation.sweep import CHANGEABLE, read_sweep

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Stand-ins for the published corpora, and the settings that name them."""
    folder = tmp_path_factory.mktemp("corpora")
    (folder / "enwik8").write_bytes(b"".join(b"<page>some text, number %d</page>\n" % i for i in range(2000)))
    for part in ("train", "valid", "test"):
        (folder / f"wiki.{part}.tokens").write_text(" \n = A title = \n \n some <unk> words in a line , and more . \n" * 400)
    # A book in which a small SentencePiece model learns the words of bAbI, so that facts are as short as with a large one.
    rng, words = random.Random(0), "Mary John Daniel Sandra went moved journeyed travelled back to the office garden kitchen".split()
    words += "hallway bathroom bedroom Where is was a book of many sentences that go on and on".split()
    sentences = [" ".join(rng.choices(words, k=14)).capitalize() + "." for _ in range(600)]
    for number in range(4):
        (folder / "books").mkdir(exist_ok=True)
        (folder / "books" / f"{number}.txt").write_text("\n".join(sentences[number::4]) + "\n")
    symbols = byte_symbols()
    GPT2Tokenizer({symbol: i for i, symbol in enumerate(symbols.values())}, []).save(folder)

    def fields(data):
        bpe = {"data.tokenizer_path": str(folder)} if data["tokenizer"] == "gpt2" else {}
        short = {"data.segments": 2} if data["segments"] > 100 else {}  # the stand-ins hold no row of 131,072 tokens
        return {"data.path": str(folder), "data.cache_dir": str(folder / "cache"), **bpe, **short}

    def babilong(background):
        made = {"tokenizer_path": str(folder)} if background["tokenizer"] == "gpt2" else {"vocab_size": 330}
        made |= {"path": str(folder / "books"), "cache_dir": str(folder / "cache")}
        return {f"task.background.{name}": value for name, value in made.items()}

    fields.babilong = babilong
    return fields


def shipped(module, variant, corpora):
    config = plain(module.get_config() if variant is None else module.get_config(variant))
    if config.get("task", {}).get("name") == "babilong":
        return override(config, corpora.babilong(config["task"]["background"]))
    return override(config, corpora(config["data"])) if "data" in config else config


def every_variant():
    for path in sorted(CONFIGS.glob("*.py")):
        module = load(path)
        for variant in [None, *getattr(module, "RUNS", ()), *getattr(module, "VARIANTS", ()), *getattr(module, "TASKS", ())]:
            yield pytest.param(path, variant, id=f"{path.stem}:{variant}")


@pytest.mark.parametrize(("path", "variant"), list(every_variant()))
def test_every_config_resolves(path, variant, corpora):
    module = load(path)
    config = resolve(shipped(module, variant, corpora))
    assert config.train.stages and len(config.tasks) == len(config.train.stages)
    if variant is not None:
        with pytest.raises(ValueError, match="no-such-variant"):
            module.get_config("no-such-variant")


def test_the_docstring_of_a_config_gives_its_command():
    for path in CONFIGS.glob("*.py"):
        command = "python train.py" if path.stem == "quickstart" else rf"python train.py --config=configs/{path.stem}\.py"
        assert re.search(command, load(path).__doc__), path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("sweeps/*.py")), ids=lambda path: path.stem)
def test_every_sweep_reads(path):
    points = read_sweep(path)
    assert points and all(key.split(".")[0] in CHANGEABLE for point in points for key in point)


def test_the_sweep_of_every_config_fits_it():
    seen = 0
    for path in CONFIGS.glob("*.py"):
        module = load(path)
        if not hasattr(module, "SWEEP"):
            continue
        for variant in getattr(module, "RUNS", (None,)):
            config = plain(module.get_config() if variant is None else module.get_config(variant))
            for point in read_sweep(CONFIGS.parent / module.SWEEP):
                seen += resolve(override(config, point)).task.size > 0
    assert seen
