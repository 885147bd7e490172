"""What rows must be, said before anything runs: each raises ValueError that names the value."""

import jax
import jax.numpy as jnp
import numpy as np


def check_shape(name: str, given: jax.Array | None, shape: tuple[int, ...]) -> None:
    if given is not None and given.shape != shape:
        raise ValueError(f"{name} has the shape {list(given.shape)}, and these tokens need {list(shape)}")


def check_tokens(tokens_BxN: jax.Array, vocab_size: int) -> None:
    """Shape and dtype always; the ids themselves where they are concrete: inside `jax.jit` nobody can look at them."""
    if tokens_BxN.ndim != 2 or 0 in tokens_BxN.shape:
        raise ValueError(f"tokens must be [batch, length] with at least one token, not {list(tokens_BxN.shape)}")
    if not jnp.issubdtype(tokens_BxN.dtype, jnp.integer):
        raise ValueError(f"tokens must be integers, not {tokens_BxN.dtype}")
    if isinstance(tokens_BxN, jax.core.Tracer):
        return
    ids = np.asarray(tokens_BxN)
    if ids.min() < 0 or ids.max() >= vocab_size:
        bad = ids.min() if ids.min() < 0 else ids.max()
        row, column = np.argwhere(ids == bad)[0]
        raise ValueError(
            f"token id {bad} (row {row}, position {column}) is outside the vocabulary 0..{vocab_size - 1}: "
            "check the tokenizer, or raise backbone.vocab_size"
        )


def check_targets(targets_BxN: jax.Array, weights_BxN: jax.Array, vocab_size: int) -> None:
    """Those that count, where they are concrete: an index outside the vocabulary would be taken for another token, or give NaN."""
    if any(isinstance(a, jax.core.Tracer) for a in (targets_BxN, weights_BxN)):
        return
    ids, counts = np.asarray(targets_BxN), np.asarray(weights_BxN) > 0
    if (wrong := counts & ((ids < 0) | (ids >= vocab_size))).any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"target {ids[row, column]} (row {row}, position {column}) is outside the vocabulary 0..{vocab_size - 1}: give it weight 0 "
            "where there is nothing to predict"
        )
