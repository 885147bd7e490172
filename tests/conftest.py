"""Tests run on the CPU. Compile time dominates them, so XLA's slowest passes are off.

Small corpora are made on the spot; the real ones are used where ARMT_JAX_DATA says where they are.
"""

import gc
import importlib.metadata
import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# One module for LLVM and not 32: two workers keep two cores busy anyway.
flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Later versions have no such flag, and XLA ends the process at one it does not know.
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(flags))

# Helpers beside the tests: a failed assert of theirs says as much as one of a test.
pytest.register_assert_rewrite(
    "tests.checkpoint.states", "tests.commands", "tests.config.small", "tests.memory.harness", "tests.models", "tests.training.runs"
)  # fmt: skip

# Tracing makes and drops millions of objects: with Python's own thresholds a tenth of the time goes into looking for cycles among them.
gc.set_threshold(100_000, 50, 100)

MAX_MAPPINGS = 40_000  # Linux allows a process 65,530; XLA ends with a segmentation fault when it gets no more


@pytest.fixture(autouse=True)
def bounded_mappings():
    """Compiled programs are let go once they hold many memory mappings (three a program and more)."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MAX_MAPPINGS:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture
def real_data() -> Path:
    """The folder of real text, laid out as wikitext-2/, wikitext-103/, enwik8/, books/, babi/, gpt2-bpe/, sentencepiece/."""
    folder = os.environ.get("ARMT_JAX_DATA")
    if not folder:
        pytest.skip("ARMT_JAX_DATA is not set: it must name the folder of real text")
    if not Path(folder).is_dir():
        pytest.fail(f"ARMT_JAX_DATA={folder} is not a folder")
    return Path(folder)


@pytest.fixture
def make_corpus(tmp_path):
    """make_corpus(train=b"...", ...) writes a corpus and gives its config. A list of texts makes one document of each."""

    from armt_jax.data import CorpusConfig

    def make(tokenizer="bytes", folder="text", **splits):
        root = tmp_path / folder
        fields = {name: splits.pop(name) for name in ("tokenizer_path", "vocab_size") if name in splits}
        for split, documents in splits.items():
            (root / split).mkdir(parents=True, exist_ok=True)
            for i, text in enumerate([documents] if isinstance(documents, (str, bytes)) else documents):
                (root / split / f"{i:04d}.txt").write_bytes(text.encode() if isinstance(text, str) else text)
        return CorpusConfig(
            "text", str(root), tokenizer, splits=tuple(s for s in ("train", "validation", "test") if s in splits),
            cache_dir=str(tmp_path / "cache"), **fields,
        )  # fmt: skip

    return make
