"""Continuations of a text that a trained run has not seen: prompts from the test split, and what follows them in truth."""

import functools
from pathlib import Path

import jax
import numpy as np
from absl import logging
from flax import nnx

from armt_jax.data.tokenizers import Tokenizer
from armt_jax.evaluation.evaluate import Trained
from armt_jax.generation import Sampling, generate
from armt_jax.telemetry import jsonl
from armt_jax.training import step as steps

SHOWN = 400  # characters of a prompt


def fitted(trained: Trained, prompt_tokens: int, new_tokens: int) -> tuple[int, int]:
    """(tokens of a prompt, tokens to follow), shortened to what the evaluated split holds, with a warning.

    Raises:
        ValueError: the split has no two tokens.
    """
    split = trained.config.evaluation.split
    tokens = len(trained.config.task.text(split).ids_N)
    if tokens < 2:
        raise ValueError(f"split {split!r} has {tokens} tokens, and a continuation needs one before it and one to follow: use --samples=0")
    new = min(new_tokens, max(tokens - prompt_tokens, tokens // 2))
    prompt = min(prompt_tokens, tokens - new)
    if (prompt, new) != (prompt_tokens, new_tokens):
        logging.warning(
            "continuations: a prompt of %d tokens and %d to follow need more than the %d tokens of split %r: written with %d and %d",
            prompt_tokens, new_tokens, tokens, split, prompt, new,
        )  # fmt: skip
    return prompt, new


def prompts(trained: Trained, count: int, prompt_tokens: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids [count, prompt_tokens], the `after` ids that follow each), from places spread evenly over the evaluated split.

    Raises:
        ValueError: the split is too short.
    """
    ids_N = trained.config.task.text(trained.config.evaluation.split).ids_N
    room = len(ids_N) - prompt_tokens - after
    if room < 0:
        raise ValueError(f"a prompt of {prompt_tokens} tokens and {after} to follow need more than the {len(ids_N)} tokens of the split")
    starts = np.linspace(0, room, count + 1)[:-1].astype(np.int64)
    rows = np.stack([ids_N[start : start + prompt_tokens + after] for start in starts]).astype(np.int32)
    return rows[:, :prompt_tokens], rows[:, prompt_tokens:]


def write_samples(trained: Trained, directory: Path, *, count: int, new_tokens: int, temperature: float) -> list[dict[str, str]]:
    """Writes samples.txt: after a row of text as in training, what the model writes and what the text says. Returns them.

    Both are shorter where the split is (`fitted`). The random numbers follow from the run's seed.
    """
    source = trained.config.task
    prompt_tokens, new_tokens = fitted(trained, source.row_length(source.segments), new_tokens)
    given, truth = prompts(trained, count, prompt_tokens, new_tokens)
    model = nnx.merge(steps.abstract_model(trained.config.model)[0], trained.params)
    key = jax.random.key(trained.config.seed)
    out = generate(model, given, max_new_tokens=new_tokens, sampling=Sampling(temperature=temperature), key=key)
    decode = functools.partial(_decoded, source.corpus.open().tokenizer)
    samples = [
        {"prompt": decode(prompt), "continuation": decode(new), "text": decode(rest)}
        for prompt, new, rest in zip(given, np.asarray(out.tokens_BxG), truth, strict=True)
    ]
    directory.mkdir(parents=True, exist_ok=True)
    jsonl.replace_text(directory / "samples.txt", "".join(map(_page, samples)))
    return samples


def _decoded(tokenizer: Tokenizer, ids_N: np.ndarray) -> str:
    """With U+FFFD for every id that the model has and the tokenizer has not."""
    unknown = np.flatnonzero(ids_N >= tokenizer.vocab_size)
    return "\ufffd".join(tokenizer.decode(part[part < tokenizer.vocab_size]) for part in np.split(ids_N, unknown))


def _page(sample: dict[str, str]) -> str:
    prompt = sample["prompt"]
    shown = prompt if len(prompt) <= SHOWN else f"... {prompt[-SHOWN:]}"
    return f"== prompt\n{shown}\n== the model goes on\n{sample['continuation']}\n== the text goes on\n{sample['text']}\n\n"
