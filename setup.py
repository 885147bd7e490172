"""armt_jax: recurrent memory transformers in JAX. Tool settings are in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "armt_jax" / "version.py").read_text()).group(1)

setup(
    name="armt_jax",
    version=VERSION,
    description="Associative Recurrent Memory Transformers, Recurrent Memory Transformers and relatives in JAX/Flax",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["armt_jax", "armt_jax.*"]),
    package_data={"armt_jax.interop": ["pytorch/*.py"], "armt_jax.launch": ["templates/*"]},
    install_requires=[
        "absl-py>=2.1,<3",
        "array_record>=0.8.1,<0.9",
        "etils>=1.9,<2",
        "flax>=0.12.8,<0.13",
        "importlib_resources>=6,<8",  # tensorflow-datasets needs it and does not say so
        "jax>=0.10,<0.13",
        "matplotlib>=3.8,<4",
        "ml-collections>=1.0,<2",
        "ml_dtypes>=0.5,<1",
        "numpy>=2.0,<3",
        "optax>=0.2.6,<0.3",
        "orbax-checkpoint>=0.12.3,<1.0",
        "safetensors>=0.5.3,<1",
        "sentencepiece>=0.2.3,<0.3",
        "tensorboardX>=2.6,<3",
        "tensorflow-datasets>=4.9.10,<4.10",
        "tokenizers>=0.22,<0.24",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "test": ["pytest>=8,<10", "pytest-xdist>=3.6,<4", "ruff>=0.12,<1", "import-linter>=2.1,<3"],
        "torch": ["torch>=2.6,<3", "transformers>=4.46,<6"],
        "gpu": ["jax[cuda13]>=0.10,<0.13"],
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "aot": ["jax[tpu]>=0.10,<0.13"],  # compiles without a TPU; JAX says which libtpu writes programs that it can read
        "aot-gpu": ["jax-cuda13-plugin>=0.10,<0.13"],  # without CUDA's libraries, which compiling does not need
    },
)
