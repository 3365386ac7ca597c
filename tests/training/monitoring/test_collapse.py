"""The collapse monitor reports each violated limit by the name of its metric, and nothing else."""

import math

import pytest

from fv_jax.core.config import ConfigError
from fv_jax.training.monitoring.collapse import CollapseMonitor, CollapseMonitorConfig

GOOD = {
    'loss_vs_copy': 0.6,
    'loss_vs_mean': 0.3,
    'energy': 0.97,
    'sharpness': 0.9,
    'sharpness_degraded': 0.4,
    'flicker': 1.1,
    'psnr': 27.0,
    'psnr_degraded': 26.0,
    'loss_t/0': 0.2,
    'loss_t/9': 0.4,
    'update_ratio': 1e-3,
}


def violations(**metrics: float) -> list[str]:
    monitor = CollapseMonitor(CollapseMonitorConfig(after_step=10))
    assert monitor.check(10, GOOD) == []
    return monitor.check(20, GOOD | {name.replace('__', '/'): value for name, value in metrics.items()})


@pytest.mark.parametrize(
    ('name', 'value', 'words'),
    [
        ('loss_vs_copy', 1.1, 'loss_vs_copy 1.1 is above 1: no better than predicting the low-quality input'),
        ('loss_vs_mean', 1.3, 'loss_vs_mean 1.3 is above 1: no better than predicting the mean'),
        ('energy', 0.31, 'energy 0.31 is below 0.6: sampled latents have too little energy'),
        ('energy', 1.9, 'energy 1.9 is above 1.5: sampled latents have too much energy'),
        ('sharpness', 0.3, 'sharpness 0.3 is below 0.36: smoother than the low-quality clip'),
        ('sharpness', 2.5, 'sharpness 2.5 is above 2: what was added is noise'),
        ('flicker', 4.0, 'flicker 4 is above 3: temporal flicker'),
        ('psnr', 21.0, 'psnr 21 is below 22: further from the reference than the low-quality clip'),
        ('loss_t__9', 0.9, 'loss_t/9 0.9 is above 0.8: the best so far was 0.4'),
        ('update_ratio', 0.1, 'update_ratio 0.1 is above 0.05: a step changes the parameters too much'),
        ('psnr', math.nan, 'psnr is nan'),
    ],
)
def test_collapse_is_reported_with_metric_value_and_limit(name: str, value: float, words: str) -> None:
    assert violations(**{name: value}) == [words]


def test_collapse_is_not_reported_before_after_step_and_metrics_may_be_missing() -> None:
    monitor = CollapseMonitor(CollapseMonitorConfig(after_step=100))
    assert monitor.check(99, GOOD | {'energy': 0.0}) == []
    assert len(monitor.check(100, {'energy': 0.0})) == 1
    # The best losses are remembered also from before `after_step`.
    assert monitor.check(100, {'loss_t/0': 0.5}) == ['loss_t/0 0.5 is above 0.4: the best so far was 0.2']


def test_collapse_monitor_config_refuses_invalid_limits() -> None:
    with pytest.raises(ConfigError, match='energy='):
        CollapseMonitorConfig(energy=(1.2, 1.5))
    with pytest.raises(ConfigError, match='after_step=-1'):
        CollapseMonitorConfig(after_step=-1)
