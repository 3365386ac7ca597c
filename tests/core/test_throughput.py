"""Throughput metrics in closed form, and those that are omitted."""

import time

import jax
import jax.numpy as jnp
import pytest

from fv_jax.core import hardware, throughput
from fv_jax.core.throughput import StepCost
from tests.runs import THROUGHPUT


def test_throughput_metrics_of_a_known_chip():
    """Two devices at a quarter of the peak rate; heads allow half of it."""
    chip = hardware.CHIPS['v5e']
    cost = StepCost(tokens=600, flops=4 * chip.flops, devices=2, peak_seconds=2.0, roofline_seconds=4.0)
    found = throughput.throughput_metrics(cost, 8.0)
    assert found == pytest.approx(
        {'tokens_per_s': 75, 'tflops_per_chip': chip.flops / 4e12, 'mfu': 0.25, 'roofline_utilization': 0.5}
    )
    assert throughput.throughput_metrics(cost + cost, 16.0) == pytest.approx(found)
    assert set(found) | {'peak_memory_gib'} == set(THROUGHPUT)
    output = throughput.format_metrics(found | {'peak_memory_gib': 3.0})
    for part in (
        '75 tokens/s',
        '49.2 TFLOP/s per chip',
        'MFU 25.0%',
        '50.0% of the roofline',
        'peak memory 3.00 GiB per chip',
    ):
        assert part in output


def test_throughput_metrics_leave_out_what_is_not_known():
    found = throughput.throughput_metrics(StepCost(tokens=600, flops=2e12, devices=1), 2.0)
    assert found == {'tokens_per_s': 300, 'tflops_per_chip': 1}
    assert throughput.format_metrics(found) == '300 tokens/s, 1 TFLOP/s per chip'
    assert (StepCost(1, 1, 1, 1, 1) + StepCost(1, 1, 1)).peak_seconds is None
    assert throughput.peak_memory() == {}  # a CPU's


def test_peak_memory_is_that_of_the_fullest_device(monkeypatch):
    class Device:
        def __init__(self, used):
            self.used = used

        def memory_stats(self):
            return {'peak_bytes_in_use': self.used}

    monkeypatch.setattr(jax, 'local_devices', lambda: [Device(2**30), Device(3 * 2**30)])
    assert throughput.peak_memory() == {'peak_memory_gib': 3.0}


def test_clock_separates_compiling_from_running():
    clock, fresh = throughput.Clock(), jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x) + 11)
    with clock.timed('a'):
        jax.block_until_ready(fresh(jnp.ones((3, 3))))
    compiled = clock.compiling_s['a']
    assert compiled > 0
    with clock.timed('a'):
        time.sleep(0.05)
    assert clock.compiling_s == {'a': compiled} and clock.running_s['a'] >= 0.05


def test_clock_stops_after_an_error():
    clock = throughput.Clock()
    with pytest.raises(ValueError), clock.timed('a'):
        raise ValueError
    jax.block_until_ready(jax.jit(lambda x: x * 17 - 5)(jnp.ones(2)))
    assert clock.compiling_s == {'a': 0}
