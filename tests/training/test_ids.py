"""A source of one's own whose ids do not fit the vocabulary."""

import dataclasses

import pytest

from armt_jax.tasks.associative_retrieval import AssociativeRetrieval

MAKE = AssociativeRetrieval.batch


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("tokens_BxN", 128, r"token id 128 \(row 1, position 2\) is outside the vocabulary 0..127"),
        ("targets_BxN", -1, r"target -1 \(row 1, position 2\) is outside the vocabulary 0..127"),
    ],
)
def test_ids_outside_the_vocabulary_stop_the_run_before_they_are_trained_on(counting, tmp_path, monkeypatch, name, value, message):
    """Inside of a compiled step such an id would be taken for another token."""

    def broken(task, seed, step, *args, **kwargs):
        batch = MAKE(task, seed, step, *args, **kwargs)
        if step == 2:
            ids, weights = getattr(batch, name).copy(), batch.weights_BxN.copy()
            ids[1, 2], weights[1, 2] = value, 1.0
            batch = dataclasses.replace(batch, weights_BxN=weights, **{name: ids})
        return batch

    monkeypatch.setattr(AssociativeRetrieval, "batch", broken)
    with pytest.raises(ValueError, match=message):
        counting.run(tmp_path)
    assert counting.done == [1, 2]
