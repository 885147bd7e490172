"""The step timer, on a clock that moves only when told to."""

import math

import pytest

from armt_jax.telemetry.timing import StepTimer


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def pass_(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def timer(clock):
    return StepTimer(clock=clock)


def step(timer, clock, *, wait=1.0, compute=3.0, tokens=400):
    with timer.data_wait():
        clock.pass_(wait)
    clock.pass_(compute)
    timer.tick(tokens=tokens)


def test_rates_over_a_window(timer, clock):
    for _ in range(5):
        step(timer, clock)
    assert timer.flush() == {"tokens_per_s": 100.0, "data_wait": 0.25, "seconds_per_step": 4.0, "flops_per_step": 0.0}


def test_flush_starts_a_new_window(timer, clock):
    step(timer, clock)
    timer.flush()
    step(timer, clock, wait=0.0, compute=2.0)
    assert timer.flush() == {"tokens_per_s": 200.0, "data_wait": 0.0, "seconds_per_step": 2.0, "flops_per_step": 0.0}


def test_pauses_are_left_out_even_nested(timer, clock):
    step(timer, clock)
    with timer.paused():
        clock.pass_(50)
        with timer.paused():
            clock.pass_(50)
        clock.pass_(50)
    step(timer, clock)
    assert timer.flush() == {"tokens_per_s": 100.0, "data_wait": 0.25, "seconds_per_step": 4.0, "flops_per_step": 0.0}


def test_pause_inside_a_data_wait(timer, clock):
    with timer.data_wait():
        clock.pass_(1)
        with timer.paused():
            clock.pass_(99)
    clock.pass_(3)
    timer.tick(tokens=400)
    assert timer.flush()["data_wait"] == 0.25


def test_flush_inside_a_pause_splits_it(timer, clock):
    step(timer, clock)
    with timer.paused():
        clock.pass_(10)
        assert timer.flush()["seconds_per_step"] == 4.0
        clock.pass_(10)
    step(timer, clock)
    assert timer.flush()["seconds_per_step"] == 4.0


def test_exceptions_close_what_they_leave(timer, clock):
    with pytest.raises(StopIteration), timer.paused(), timer.data_wait():
        raise StopIteration
    step(timer, clock)
    assert timer.flush()["seconds_per_step"] == 4.0


def test_reset_forgets_the_window(timer, clock):
    step(timer, clock, compute=1000.0)
    timer.reset()
    step(timer, clock)
    assert timer.flush()["seconds_per_step"] == 4.0


def test_window_without_steps_is_nan(timer, clock):
    clock.pass_(1)
    assert all(math.isnan(value) for value in timer.flush().values())


def test_several_steps_in_one_tick(timer, clock):
    clock.pass_(8)
    timer.tick(tokens=800, steps=4)
    assert timer.flush() == {"tokens_per_s": 100.0, "data_wait": 0.0, "seconds_per_step": 2.0, "flops_per_step": 0.0}


def test_operations_are_counted_by_the_step(timer, clock):
    for flops in (10, 30):
        clock.pass_(1.0)
        timer.tick(tokens=1, flops=flops)
    assert timer.flush()["flops_per_step"] == 20.0
