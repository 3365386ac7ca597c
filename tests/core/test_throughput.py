"""The ledger's figures in closed form, and what is left out."""

import time

import jax
import jax.numpy as jnp
import pytest

from fv_jax.core import hardware, throughput
from fv_jax.core.throughput import Work


def test_figures_of_a_known_chip():
    """Two devices at a quarter of the peak; heads allow half of it."""
    chip = hardware.CHIPS['v5e']
    work = Work(tokens=600, flops=4 * chip.flops, devices=2, peak=2.0, ceiling=4.0)
    found = throughput.figures(work, 8.0)
    assert found == pytest.approx(
        {'tokens_per_s': 75, 'tflops_per_chip': chip.flops / 4e12, 'mfu': 0.25, 'roofline_share': 0.5}
    )
    assert throughput.figures(work + work, 16.0) == pytest.approx(found)
    assert set(found) | {'peak_memory_gib'} == set(throughput.NAMES)
    said = throughput.line(found | {'peak_memory_gib': 3.0})
    for part in ('75 tokens/s', '49.2 TFLOP/s a chip', 'MFU 25.0%', '50.0% of the roofline', 'at most 3.00 GiB a chip'):
        assert part in said


def test_what_is_not_known_is_left_out():
    found = throughput.figures(Work(tokens=600, flops=2e12, devices=1), 2.0)
    assert found == {'tokens_per_s': 300, 'tflops_per_chip': 1}
    assert throughput.line(found) == '300 tokens/s, 1 TFLOP/s a chip'
    assert (Work(1, 1, 1, 1, 1) + Work(1, 1, 1)).peak is None
    assert throughput.peak_memory() == {}  # a CPU's


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    class Device:
        def __init__(self, used):
            self.used = used

        def memory_stats(self):
            return {'peak_bytes_in_use': self.used}

    monkeypatch.setattr(jax, 'local_devices', lambda: [Device(2**30), Device(3 * 2**30)])
    assert throughput.peak_memory() == {'peak_memory_gib': 3.0}


def test_compiling_is_told_from_running():
    clock, fresh = throughput.Clock(), jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x) + 11)
    with clock.timed('a'):
        jax.block_until_ready(fresh(jnp.ones((3, 3))))
    compiled = clock.compiling_s['a']
    assert compiled > 0
    with clock.timed('a'):
        time.sleep(0.05)
    assert clock.compiling_s == {'a': compiled} and clock.running_s['a'] >= 0.05


def test_a_clock_ends_with_what_it_times():
    clock = throughput.Clock()
    with pytest.raises(ValueError), clock.timed('a'):
        raise ValueError
    jax.block_until_ready(jax.jit(lambda x: x * 17 - 5)(jnp.ones(2)))
    assert clock.compiling_s == {'a': 0}
