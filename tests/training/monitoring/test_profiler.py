"""Which steps are traced, and what cannot be."""

import os
import signal

import jax
import jax.numpy as jnp
import pytest

from fv_jax.core.config import ConfigError
from fv_jax.training.monitoring import profiler
from fv_jax.training.monitoring.profiler import MAX_SIGNALS, STEPS_ON_SIGNAL, Profiler, ProfileSteps, TraceSignal


def test_profiler_traces_first_to_last_step(tmp_path, monkeypatch, log_lines):
    events = []
    monkeypatch.setattr(profiler.jax.profiler, 'start_trace', lambda folder, **_: events.append('start'))
    monkeypatch.setattr(profiler.jax.profiler, 'stop_trace', lambda: events.append('stop'))
    (tmp_path / 'another').write_bytes(bytes(10**6))  # a trace of before
    with Profiler(ProfileSteps.parse('2:3'), tmp_path) as trace:
        for step in range(1, 7):
            trace(step, None)
            events.append(step)
    assert events == [1, 'start', 2, 3, 'stop', 4, 5, 6]
    assert log_lines == [f'profile of steps 2 to 3: {tmp_path} (0.0 MB)']
    events.clear()
    with Profiler(ProfileSteps.parse('2'), tmp_path) as trace:  # the run ends before
        trace(2, None)
    assert events == ['start', 'stop']


@pytest.mark.parametrize('text', ['', 'a', '3:', '3:2', '0:1', '1:21', '-1', '1:2:3'])
def test_profile_steps_refuses_invalid_ranges(text):
    with pytest.raises(ConfigError, match='--profile-steps='):
        ProfileSteps.parse(text)


def test_profiler_signal_requests_the_next_steps(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(profiler.jax.profiler, 'start_trace', lambda folder, **_: events.append('start'))
    monkeypatch.setattr(profiler.jax.profiler, 'stop_trace', lambda: events.append('stop'))
    before = signal.getsignal(signal.SIGUSR1)
    with TraceSignal() as trace_signal, Profiler(ProfileSteps.parse('2'), tmp_path, trace_signal) as trace:
        for step in range(1, 9):
            if step in (4, 5):  # the second one comes within a trace, and is of the steps after it
                os.kill(os.getpid(), signal.SIGUSR1)
            trace(step, None)
            events.append(step)
    assert signal.getsignal(signal.SIGUSR1) == before and STEPS_ON_SIGNAL == 3
    assert events == [1, 'start', 2, 'stop', 3, 'start', 4, 5, 6, 'stop', 'start', 7, 8, 'stop']


def test_profiler_signals_are_limited(tmp_path, monkeypatch, log_lines):
    started = []
    monkeypatch.setattr(profiler.jax.profiler, 'start_trace', lambda folder, **_: started.append(folder))
    monkeypatch.setattr(profiler.jax.profiler, 'stop_trace', lambda: None)
    with TraceSignal() as trace_signal, Profiler(None, tmp_path, trace_signal) as trace:
        for step in range(1, 100):
            os.kill(os.getpid(), signal.SIGUSR1)
            trace(step, None)
    assert len(started) == MAX_SIGNALS and any(line.startswith('no profile') for line in log_lines)


def test_profiler_trace_can_be_read(tmp_path, log_lines):
    """JAX's own reader finds the operations of the steps in it, and its size is logged."""
    step = jax.jit(lambda x: jnp.sin(x @ x))
    x = step(jnp.ones((64, 64)))
    with Profiler(ProfileSteps.parse('2:3'), tmp_path) as trace:
        for number in range(1, 5):
            trace(number, x)
            x = step(x)
    (path,) = tmp_path.rglob('*.xplane.pb')
    data = jax.profiler.ProfileData.from_file(str(path))
    names = [event.name for plane in data.planes for line in plane.lines for event in line.events]
    assert 2 <= sum('sine' in name or 'sin' in name for name in names) <= 100, names[:50]
    written = sum(file.stat().st_size for file in tmp_path.rglob('*') if file.is_file()) / 1e6
    assert path.stat().st_size and log_lines == [f'profile of steps 2 to 3: {tmp_path} ({written:.1f} MB)']
