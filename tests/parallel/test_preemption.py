"""Signals of a process of its own, and what any one process wants."""

import os
import signal

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from fv_jax.core.exit_codes import PreemptedError
from fv_jax.parallel import cross_host
from fv_jax.parallel.cross_host import CrossHostFlags
from fv_jax.parallel.mesh import ParallelConfig, make_mesh
from fv_jax.parallel.preemption import Preemption


def test_sigterm_is_deferred_and_a_second_one_kills():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption, preemption.defer_sigterm():
        assert not preemption.is_requested(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.is_requested(2) and preemption.is_requested(3)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_outside_of_the_loop_raises_at_once():
    with pytest.raises(PreemptedError, match='preempted before a step'), Preemption():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 1)


def test_cross_host_flags_are_known_to_all(monkeypatch):
    """The program that several processes run, in one with several devices."""
    mesh = make_mesh(ParallelConfig(data=2, fsdp=-1))
    any_host = CrossHostFlags(mesh)
    assert list(any_host(False, True)) == [False, True]
    monkeypatch.setattr(cross_host.jax, 'process_count', lambda: 2)
    for wishes in ((False, False), (True, False), (True, True)):
        found = any_host(*wishes)
        assert found.sharding.spec == PartitionSpec() and list(np.asarray(found)) == list(wishes)
    one = np.zeros((jax.device_count(), 2), bool)
    one[-1, 1] = True  # of the last device alone
    assert list(np.asarray(any_host._any(jax.device_put(one, any_host._split)))) == [False, True]
