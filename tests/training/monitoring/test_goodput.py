"""Where time goes."""

import time

import pytest

from fv_jax.core.throughput import Work
from fv_jax.training.monitoring import goodput as goodput_lib
from fv_jax.training.monitoring.goodput import Goodput, Rate, goodput_line


def test_time_is_counted_once_for_the_cause_that_is_current():
    now = [10.0]
    goodput = Goodput(lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    wait(1)
    goodput.turn_to('step')
    wait(2)
    with goodput.during('checkpoint'):
        wait(3)
        with goodput.during('evaluation'):
            wait(4)
    wait(5)
    with goodput.waiting(lambda: False):
        wait(6)
    with goodput.waiting(lambda: True):  # the device was at work meanwhile
        wait(7)
    assert goodput.seconds() == {
        'start': 1, 'step': 14, 'checkpoint': 3, 'evaluation': 4, 'data': 6, 'compile': 0
    }  # fmt: skip
    shares = goodput.shares()
    assert shares['goodput/step'] == pytest.approx(0.5) and shares['goodput/seconds'] == 28
    assert goodput_line(9, shares).startswith('time until step 9: step 50.0%  data 21.4%')


def test_an_error_ends_a_cause_too():
    goodput = Goodput()
    with pytest.raises(ValueError), goodput.during('checkpoint'):
        raise ValueError
    assert goodput.current[0] == 'start'


def test_what_moves_is_seen_to():
    goodput = Goodput()
    _, before = goodput.current
    time.sleep(0.001)
    goodput.moved()
    assert goodput.current[0] == 'start' and goodput.current[1] > before


def test_rates_are_of_the_steps_in_the_window(monkeypatch):
    """Steps of several sizes: what each did counts, not what the last one did."""
    now = [0.0]
    monkeypatch.setattr(goodput_lib.time, 'perf_counter', lambda: now[0])
    rate = Rate(window=2)
    assert rate.tick(5, Work(1, 1e12, 1)) == {}
    found = None
    for seconds, rows, work in ((1, 4, Work(10, 2e12, 1)), (2, 3, Work(20, 3e12, 1)), (2, 1, Work(40, 1e12, 1))):
        now[0] += seconds
        with rate.pause():
            now[0] += 100
        found = rate.tick(rows, work)
    assert found == {'steps_per_s': 0.5, 'clips_per_s': 1.0, 'tokens_per_s': 15.0, 'tflops_per_chip': 1.0}
    now[0] += 2
    assert rate.tick(1).keys() == {'steps_per_s', 'clips_per_s'}  # of a step whose work is not known
