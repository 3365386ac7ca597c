"""The anomaly guard counts bad steps and detects spikes."""

import pytest

from fv_jax.core.config import ConfigError
from fv_jax.training.monitoring.anomalies import MIN_LOSSES, WINDOW, AnomalyGuard, BadStepsConfig
from fv_jax.training.progress import Progress

GOOD = {'loss': 1.0, 'grad_norm': 1.0, 'update_norm': 1.0, 'param_norm': 1.0}
NAN = float('nan')


def test_bad_steps_are_counted_consecutively_and_in_total():
    guard = AnomalyGuard(BadStepsConfig(max_consecutive=2), progress := Progress())
    found = [guard.check(GOOD | more) for more in ({}, {'loss': NAN}, {}, {'grad_norm': NAN}, {'loss': NAN}, {})]
    assert [finding and (finding.reason, finding.needs_rollback) for finding in found] == [
        None, ('loss is nan', False), None, ('grad_norm is nan', False), ('loss is nan', True), None,
    ]  # fmt: skip
    assert (progress.bad_steps, guard.consecutive) == (3, 0)


def test_non_finite_parameters_need_a_rollback_at_once():
    found = AnomalyGuard(BadStepsConfig(max_consecutive=9), Progress()).check(GOOD | {'param_norm': float('inf')})
    assert found.needs_rollback and found.reason == 'param_norm is inf'


def test_spike_detection_by_median_and_spread():
    guard = AnomalyGuard(BadStepsConfig(spike_sigmas=10.0), progress := Progress())
    losses = [1.0 + 0.01 * (i % 5) for i in range(MIN_LOSSES)]
    assert guard.check(GOOD | {'loss': 50.0}) is None  # too early to know
    assert all(guard.check(GOOD | {'loss': loss}) is None for loss in losses)
    assert guard.check(GOOD | {'loss': 1.1}) is None  # the spread is about 0.015
    assert guard.check(GOOD | {'loss': 0.1}) is None  # lower is no spike
    found = guard.check(GOOD | {'loss': 1.3})
    assert (
        found.kind == 'spike'
        and not found.needs_rollback
        and 'loss 1.3; the last losses have a median of 1.02' in found.reason
    )
    assert progress.spikes == 1 and 1.3 not in progress.losses  # or the next would be none
    for loss in 3 * losses * 10:
        guard.check(GOOD | {'loss': loss})
    assert len(progress.losses) == WINDOW


def test_spike_detection_needs_enough_losses():
    guard = AnomalyGuard(BadStepsConfig(), progress := Progress())
    for step in range(MIN_LOSSES):
        assert guard.check(GOOD | {'loss': 1.0 if step else 100.0}) is None
    assert guard.check(GOOD | {'loss': 100.0}).kind == 'spike' and progress.spikes == 1
    guard = AnomalyGuard(BadStepsConfig(), Progress(losses=[1.0] * (MIN_LOSSES - 1)))
    assert guard.check(GOOD | {'loss': 100.0}) is None


def test_spike_detection_with_nearly_equal_losses():
    guard = AnomalyGuard(BadStepsConfig(spike_sigmas=10.0), Progress(losses=[2.0] * WINDOW))
    assert guard.check(GOOD | {'loss': 2.19}) is None  # a tenth: ten times MIN_RELATIVE_SPREAD of the median
    assert guard.check(GOOD | {'loss': 2.21}).kind == 'spike'


def test_progress_round_trip_and_defaults_for_absent_fields():
    progress = Progress(num_rollbacks=2, bad_steps=3, losses=[1.0], best={'a': 1.0})
    assert Progress.from_dict(progress.to_dict()) == progress
    assert Progress.from_dict({}) == Progress() and Progress.from_dict({'num_rollbacks': 1, 'unknown': 1}) == Progress(
        num_rollbacks=1
    )


@pytest.mark.parametrize(
    'values',
    [{'max_consecutive': 0}, {'max_rollbacks': -1}, {'spike_sigmas': -1.0}, {'spike_sigmas': NAN}, {'max_dumps': -1}],
)
def test_bad_steps_config_refuses_values_out_of_range(values):
    ((name, value),) = values.items()
    with pytest.raises(ConfigError, match=f'{name}={value}: must be at least'):
        BadStepsConfig(**values)
