"""Where time goes."""

import time

import pytest

from fv_jax.training.goodput import Goodput, Rate, goodput_line


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


def test_pauses_do_not_count_against_the_rate(monkeypatch):
    now = [0.0]
    monkeypatch.setattr('fv_jax.training.goodput.time.perf_counter', lambda: now[0])
    rate = Rate()
    assert rate.tick() is None
    for _ in range(4):
        with rate.pause():
            now[0] += 100.0
        now[0] += 0.5
        assert rate.tick() == pytest.approx(2.0)
