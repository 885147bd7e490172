import io

import pytest

from armt_jax.telemetry.progress import LongWork, Progress, format_duration


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


def test_plain_line(clock):
    stream = io.StringIO()
    progress = Progress(1650, "step", stream, clock=clock)
    clock.now = 17.931
    progress.update(200, stage="3/10", loss=1.23451, exact_match=0.5123, tokens_per_s=12345.4)
    expected = "step 200/1650 | stage 3/10 | loss 1.2345 | exact_match 0.512 | 12,345 tokens/s | eta 2m10s\n"
    assert stream.getvalue() == expected


def test_updates_without_metrics_print_nothing_but_feed_the_eta(clock):
    stream = io.StringIO()
    progress = Progress(10, "step", stream, clock=clock)
    progress.update(1)
    clock.now = 8.0
    progress.update(4, lr=3e-4, n=1234)
    assert stream.getvalue() == "step 4/10 | lr 0.0003 | n 1,234 | eta 12s\n"


def test_resumed_run_measures_its_own_rate(clock):
    stream = io.StringIO()
    progress = Progress(1000, "step", stream, initial=900, clock=clock)
    clock.now = 10.0
    progress.update(910, loss=1.0)
    assert stream.getvalue().endswith("| eta 1m30s\n")


def test_eta_follows_the_recent_rate(clock):
    stream = io.StringIO()
    progress = Progress(200, "step", stream, clock=clock)
    clock.now = 1000.0  # a slow start, for example a compilation
    for step in range(1, 101):
        clock.now += 1.0
        progress.update(step, loss=1.0)
    assert stream.getvalue().splitlines()[-1].endswith("| eta 1m40s")


def test_total_can_come_later_and_going_back_restarts_the_rate(clock):
    stream = io.StringIO()
    progress = Progress(None, "eval batch", stream, clock=clock)
    clock.now = 1.0
    progress.update(1, loss=1.0)
    progress.set_total(3)
    clock.now = 2.0
    progress.update(2, loss=1.0)
    progress.update(0, loss=1.0)
    assert stream.getvalue().splitlines() == [
        "eval batch 1 | loss 1.0000",
        "eval batch 2/3 | loss 1.0000 | eta 1s",
        "eval batch 0/3 | loss 1.0000",
    ]


def test_notes_and_names_with_a_prefix(clock):
    stream = io.StringIO()
    with Progress(2, "step", stream, clock=clock) as progress:
        progress.note("checkpoint saved")
        progress.update(1, **{"validation/loss": float("nan"), "data_wait": 0.031})
    progress.update(2, loss=1.0)  # after closing: silent
    assert stream.getvalue().splitlines() == ["checkpoint saved", "step 1/2 | validation/loss nan | data_wait 3%"]


def test_disabled_is_silent(clock):
    for stream in (io.StringIO(), Terminal()):
        progress = Progress(2, "step", stream, enabled=False, clock=clock)
        progress.update(1, loss=1.0)
        progress.note("text")
        progress.close()
        assert stream.getvalue() == ""


def test_bar_on_a_terminal():
    stream = Terminal()
    progress = Progress(4, "step", stream)
    progress.update(3, loss=1.5)
    progress.set_total(8)
    progress.note("checkpoint saved")
    progress.update(2, loss=2.5)
    progress.close()
    shown = stream.getvalue()
    assert "3/8" in shown and "2/8" in shown and "loss 2.5000" in shown
    assert "%|" in shown and "<" in shown, "a bar, and what time is left"
    assert "\ncheckpoint saved\n" in shown.replace("\r", "\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (45.4, "45s"), (59.6, "1m00s"), (130, "2m10s"), (3900, "1h05m"), (3 * 86400 + 4 * 3600, "3d04h")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_long_work_speaks_up_every_few_seconds_and_short_work_never(clock):
    stream = io.StringIO()
    with LongWork("tokenising train, MB", stream, every=5.0, clock=clock) as work:
        for clock.now, megabytes in [(0.1, 1), (4.9, 20), (5.1, 21), (6.0, 25), (10.2, 40)]:
            work.reached(megabytes, tokens=megabytes * 1000)
    assert stream.getvalue() == "tokenising train, MB 21 | tokens 21,000\ntokenising train, MB 40 | tokens 40,000\n"
