"""The configs and sweeps in the repository."""

import importlib.util
import pathlib
import random
import re

import jax
import pytest

from armt_jax.config import override, plain, resolve, resolve_memory
from armt_jax.data.tokenizers import GPT2Tokenizer
from armt_jax.data.tokenizers.gpt2 import byte_symbols
from armt_jax.evaluation.sweep import CHANGEABLE, read_sweep
from armt_jax.parallel.mesh import make_mesh
from armt_jax.training import step as steps
from armt_jax.training.optimizer import make_optimizer

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
        made = {"tokenizer_path": str(folder)} if background["tokenizer"] == "gpt2" else {"vocab_size": 400}
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


@pytest.mark.parametrize("name", ["enwik8", "wikitext2", "wikitext103"])
def test_an_associative_memory_that_goes_on_through_a_text_cannot_overshoot(name):
    """ARMT.beta_max: unit keys, and a segment's tokens together replace at most twice the error."""
    module, carried = load(CONFIGS / f"{name}.py"), 0
    for variant in module.VARIANTS:
        config = plain(module.get_config(variant))
        if variant.startswith("armt") and config["data"]["stream"] == "contiguous":
            memory = resolve_memory(config["memory"])
            assert memory.key_norm == "l2" and memory.num_memory_tokens * memory.beta_max <= 2, variant
            carried += 1
    assert carried >= 4


SHALLOWER = [{"data.segments": 3, "train.batch_size": 20}, {"recurrence.bptt_segments": 2}, {"recurrence.bptt_segments": 1}]


@pytest.mark.parametrize(("name", "variant"), [("wikitext103", "rmt-150"), ("wikitext103", "rmt-50"), ("enwik8", "rmt-published")])
def test_the_published_depths_are_overrides(name, variant, corpora):
    module = load(CONFIGS / f"{name}.py")
    for changes in SHALLOWER:
        assert all(f"--config.{key}={value}" in module.__doc__ for key, value in changes.items() if key != "train.batch_size")
        config = resolve(override(shipped(module, variant, corpora), changes))
        assert (config.model.recurrence.bptt_segments or config.task.segments) < module.get_config(variant).data.segments


def test_the_published_windows_start_from_a_checkpoint_if_one_is_named(corpora):
    module = load(CONFIGS / "wikitext103.py")
    for system in ("none", "rmt", "armt"):
        config = shipped(module, f"{system}-128x8", corpora)
        assert resolve(config).init.path is None
        assert resolve(override(config, {"init.path": "gpt2"})).init.path == "gpt2"
        if system != "none":
            assert resolve(config).model.memory.positions == "table"


# Small layers and few words, and all else of a recipe as it is: its memory, optimizer, gradient and segments.
LAYERS = {"backbone.num_layers": 2, "backbone.width": 64, "backbone.num_heads": 2, "backbone.mlp_width": 16}
WORDS = {"backbone.vocab_size": 300, "backbone.cutoffs": [20, 40, 100]}
TRACED = [
    "wikitext103:armt-150", "wikitext103:transformer_xl-150", "wikitext103:armt_xl-gpu", "wikitext103:armt-128x8", "enwik8:armt-published",
    "enwik8:transformer_xl-published",
]  # fmt: skip


@pytest.mark.parametrize("recipe", TRACED)
def test_a_recipe_has_a_training_step(recipe, corpora):
    """Traced, not compiled: all shapes and dtypes fit together, and the state that comes out is one that goes in."""
    name, _, variant = recipe.partition(":")
    raw = shipped(load(CONFIGS / f"{name}.py"), variant, corpora)
    words = WORDS if raw["data"]["tokenizer"] == "words" else {"backbone.vocab_size": 300}
    config = resolve(override(raw, LAYERS | words | {"train.batch_size": 2, "mesh": {"data": 1}}))
    model, source, stage, carries = config.models[0], config.tasks[0], config.train.stages[0], config.carries_memory(0)
    assert carries == (raw["data"]["stream"] == "contiguous")
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    optimizer = make_optimizer(config.train.optimizer_of(stage), stage.steps)
    state = steps.abstract_state(model, optimizer, mesh, 2 if carries else None)
    step = steps.make_train_step(model, optimizer, mesh, num_answers=0, accumulate=1, carries=carries)
    after, metrics = jax.eval_shape(step, state, source.batch(0, 0, 2), jax.random.key(0))
    shapes = lambda tree: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
    assert shapes(after) == shapes(state) and jax.tree.structure(after) == jax.tree.structure(state)
    assert metrics.loss.shape == () and metrics.loss.dtype == "float32"


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
