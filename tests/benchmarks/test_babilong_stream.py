"""What the streaming benchmark computes from its marks."""

import pytest

from benchmarks import babilong_stream


def test_lengths_are_read_as_people_write_them():
    assert [babilong_stream.number(text) for text in ("64k", "4M", "1.5M", "700")] == [64_000, 4_000_000, 1_500_000, 700]


def test_tenths_are_of_tokens_not_of_time():
    """Half the tokens at 100 a second, half at 50, seen at uneven marks."""
    marks = [(0, 0.0), (130, 1.3), (500, 5.0), (600, 7.0), (1000, 15.0)]
    assert babilong_stream.tenths(marks, 1000) == pytest.approx([100] * 5 + [50] * 5)
