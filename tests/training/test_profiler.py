"""Which steps are traced, and what cannot be."""

import pytest

from fv_jax.core.config import ConfigError
from fv_jax.training import profiler
from fv_jax.training.profiler import Profiler, ProfileSteps


def test_from_the_first_to_the_last(tmp_path, monkeypatch):
    events, lines = [], []
    monkeypatch.setattr(profiler.jax.profiler, 'start_trace', lambda folder, **_: events.append('start'))
    monkeypatch.setattr(profiler.jax.profiler, 'stop_trace', lambda: events.append('stop'))
    with Profiler(ProfileSteps.parse('2:3'), tmp_path, lines.append) as trace:
        for step in range(1, 7):
            trace(step, None)
            events.append(step)
    assert events == [1, 'start', 2, 3, 'stop', 4, 5, 6]
    assert lines == [f'profile of steps 2 to 3: {tmp_path} (0.0 MB)']
    events.clear()
    with Profiler(ProfileSteps.parse('2'), tmp_path, lines.append) as trace:  # the run ends before
        trace(2, None)
    assert events == ['start', 'stop']


@pytest.mark.parametrize('text', ['', 'a', '3:', '3:2', '0:1', '1:21', '-1', '1:2:3'])
def test_what_cannot_be_is_refused(text):
    with pytest.raises(ConfigError, match='--profile-steps='):
        ProfileSteps.parse(text)
