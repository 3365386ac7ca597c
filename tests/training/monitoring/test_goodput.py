"""Goodput attributes time to causes; the rate is that of the last steps."""

import time

import pytest

from fv_jax.core.throughput import StepCost
from fv_jax.training.monitoring import goodput as goodput_lib
from fv_jax.training.monitoring.goodput import Goodput, Rate, goodput_line


def test_goodput_counts_time_once_for_the_current_cause():
    now = [10.0]
    goodput = Goodput(lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    wait(1)
    goodput.switch_to('step')
    wait(2)
    with goodput.track('checkpoint'):
        wait(3)
        with goodput.track('evaluation'):
            wait(4)
    wait(5)
    with goodput.track_data_wait(lambda: False):
        wait(6)
    with goodput.track_data_wait(lambda: True):  # the device was at work meanwhile
        wait(7)
    assert goodput.seconds() == {
        'start': 1, 'step': 14, 'checkpoint': 3, 'evaluation': 4, 'data': 6, 'compile': 0
    }  # fmt: skip
    fractions = goodput.fractions()
    assert fractions['goodput/step'] == pytest.approx(0.5) and fractions['goodput/seconds'] == 28
    line = goodput_line(9, fractions)
    assert line.startswith('goodput at step 9: step 50.0%  data 21.4%') and line.endswith('of 28 s')
    shards = {'goodput/shard_hit_rate': 0.99, 'goodput/shard_wait_seconds': 12.3, 'goodput/shard_gigabytes': 4.56}
    line = goodput_line(9, fractions | shards)
    assert line.endswith('of 28 s; shards: 99.0% of the reads without waiting, 12 s waited, 4.56 GB fetched')


def test_goodput_restores_the_cause_after_an_error():
    goodput = Goodput()
    with pytest.raises(ValueError), goodput.track('checkpoint'):
        raise ValueError
    assert goodput.current[0] == 'start'


def test_goodput_heartbeat_restarts_the_current_cause():
    goodput = Goodput()
    _, before = goodput.current
    time.sleep(0.001)
    goodput.heartbeat()
    assert goodput.current[0] == 'start' and goodput.current[1] > before


def test_rate_is_of_the_steps_in_the_window(monkeypatch):
    """With steps of several sizes each counts with its own cost."""
    now = [0.0]
    monkeypatch.setattr(goodput_lib.time, 'perf_counter', lambda: now[0])
    rate = Rate(window=2)
    assert rate.tick(5, StepCost(1, 1e12, 1)) == {}
    found = None
    for seconds, examples, cost in (
        (1, 4, StepCost(10, 2e12, 1)),
        (2, 3, StepCost(20, 3e12, 1)),
        (2, 1, StepCost(40, 1e12, 1)),
    ):
        now[0] += seconds
        with rate.pause():
            now[0] += 100
        found = rate.tick(examples, cost)
    assert found == {'steps_per_s': 0.5, 'clips_per_s': 1.0, 'tokens_per_s': 15.0, 'tflops_per_chip': 1.0}
    now[0] += 2
    assert rate.tick(1).keys() == {'steps_per_s', 'clips_per_s'}  # the cost of a step is not known
