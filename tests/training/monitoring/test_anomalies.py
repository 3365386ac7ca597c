"""Counting what goes wrong, and what is a spike."""

import pytest

from fv_jax.core.config import ConfigError
from fv_jax.training.monitoring.anomalies import LEAST, WINDOW, AnomalyGuard, BadStepsConfig
from fv_jax.training.progress import Progress

GOOD = {'loss': 1.0, 'grad_norm': 1.0, 'update_norm': 1.0, 'param_norm': 1.0}
NAN = float('nan')


def test_bad_steps_are_counted_in_a_row_and_in_all():
    guard = AnomalyGuard(BadStepsConfig(in_a_row=2), progress := Progress())
    found = [guard.look(GOOD | more) for more in ({}, {'loss': NAN}, {}, {'grad_norm': NAN}, {'loss': NAN}, {})]
    assert [finding and (finding.reason, finding.enough) for finding in found] == [
        None, ('loss is nan', False), None, ('grad_norm is nan', False), ('loss is nan', True), None,
    ]  # fmt: skip
    assert (progress.bad_steps, guard.in_a_row) == (3, 0)


def test_parameters_that_are_not_finite_are_enough():
    found = AnomalyGuard(BadStepsConfig(in_a_row=9), Progress()).look(GOOD | {'param_norm': float('inf')})
    assert found.enough and found.reason == 'param_norm is inf'


def test_spikes():
    guard = AnomalyGuard(BadStepsConfig(spike_sigmas=10.0), progress := Progress())
    losses = [1.0 + 0.01 * (i % 5) for i in range(LEAST)]
    assert guard.look(GOOD | {'loss': 50.0}) is None  # too early to know
    assert all(guard.look(GOOD | {'loss': loss}) is None for loss in losses)
    assert guard.look(GOOD | {'loss': 1.1}) is None  # the spread is about 0.015
    assert guard.look(GOOD | {'loss': 0.1}) is None  # lower is no spike
    found = guard.look(GOOD | {'loss': 1.3})
    assert found.kind == 'spike' and not found.enough and 'loss 1.3 beside a median of 1.02' in found.reason
    assert progress.spikes == 1 and 1.3 not in progress.losses  # or the next would be none
    for loss in 3 * losses * 10:
        guard.look(GOOD | {'loss': loss})
    assert len(progress.losses) == WINDOW


def test_the_first_losses_are_too_few_to_tell_a_spike():
    guard = AnomalyGuard(BadStepsConfig(), progress := Progress())
    for step in range(LEAST):
        assert guard.look(GOOD | {'loss': 1.0 if step else 100.0}) is None
    assert guard.look(GOOD | {'loss': 100.0}).kind == 'spike' and progress.spikes == 1
    guard = AnomalyGuard(BadStepsConfig(), Progress(losses=[1.0] * (LEAST - 1)))
    assert guard.look(GOOD | {'loss': 100.0}) is None


def test_losses_that_are_all_alike_make_no_spike_of_the_next():
    guard = AnomalyGuard(BadStepsConfig(spike_sigmas=10.0), Progress(losses=[2.0] * WINDOW))
    assert guard.look(GOOD | {'loss': 2.19}) is None  # a tenth: ten times LEAST_SPREAD of the median
    assert guard.look(GOOD | {'loss': 2.21}).kind == 'spike'


def test_progress_goes_there_and_back_and_knows_less_from_older_checkpoints():
    progress = Progress(order=2, bad_steps=3, losses=[1.0], best={'a': 1.0})
    assert Progress.of(progress.to_dict()) == progress
    assert Progress.of({}) == Progress() and Progress.of({'order': 1, 'of_later': 1}) == Progress(order=1)


@pytest.mark.parametrize(
    'values', [{'in_a_row': 0}, {'max_rollbacks': -1}, {'spike_sigmas': -1.0}, {'spike_sigmas': NAN}, {'bundles': -1}]
)
def test_what_cannot_be_is_refused(values):
    ((name, value),) = values.items()
    with pytest.raises(ConfigError, match=f'{name}={value}: must be at least'):
        BadStepsConfig(**values)
