"""Published figures as data."""

import pytest

from armt_jax.data.babilong.published import LENGTHS, PUBLISHED, published


def one(source, model, task, length):
    (found,) = [row for row in published(source, model, task) if row.length == length]
    return found.accuracy, found.deviation


def test_figures():
    assert one("ARMT", "ARMT", "qa1", "50M") == (49.6, 40.4)
    assert one("ARMT", "ARMT (best run)", "qa1", "50M") == (79.9, None)
    assert one("ARMT", "RMT-R", "qa2", "10M") == (13.0, None)
    assert one("ARMT", "Mamba", "qa5", "128k") == (97.5, 1.1)
    assert one("ARMT", "GPT-4 few-shot", "qa3", "128k") == (4, None)
    assert one("BABILong", "ARMT", "qa3", "1k") == (85, None)
    assert one("BABILong", "RMT", "qa5", "10M") == (44, None)
    assert one("BABILong", "Mamba", "qa1", "512k") == (92, None)
    assert one("BABILong", "GPT-4", "qa1", "128k") == (39, None)
    assert one("Diagonal", "ARMT-Llama-1B", "qa2", "64k") == (47, None)


AVERAGES = [("ARMT", "10M", 75.8), ("ARMT", "1M", 92.6), ("RMT", "128k", 58.6), ("RMT", "10M", 34)]


@pytest.mark.parametrize(("model", "length", "mean"), AVERAGES)
def test_averages_over_tasks_are_those_of_the_leaderboard(model, length, mean):
    assert sum(one("BABILong", model, f"qa{i}", length)[0] for i in range(1, 6)) / 5 == pytest.approx(mean)


def test_rows_are_sane():
    assert len({(row.source, row.model, row.task, row.length) for row in PUBLISHED}) == len(PUBLISHED)
    assert all(0 <= row.accuracy <= 100 and row.tokens == LENGTHS[row.length] for row in PUBLISHED)
    # Rows of the tables are as wide as their heads, or shorter.
    assert len(published("ARMT", "ARMT", "qa1")) == 6 and len(published("BABILong", "ARMT", "qa1")) == 12
