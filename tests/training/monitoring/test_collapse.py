"""The collapse alarm: what rings, by which name, and what does not."""

import math

import pytest

from fv_jax.core.config import ConfigError
from fv_jax.training.monitoring.collapse import Alarm, AlarmConfig

GOOD = {
    'ratio_twin': 0.6,
    'ratio_mean': 0.3,
    'energy': 0.97,
    'detail': 0.9,
    'detail_twin': 0.4,
    'flicker': 1.1,
    'psnr': 27.0,
    'psnr_twin': 26.0,
    'loss_t/0': 0.2,
    'loss_t/9': 0.4,
    'update_ratio': 1e-3,
}


def rings(**figures: float) -> list[str]:
    alarm = Alarm(AlarmConfig(after_step=10))
    assert alarm.check(10, GOOD) == []
    return alarm.check(20, GOOD | {name.replace('__', '/'): value for name, value in figures.items()})


@pytest.mark.parametrize(
    ('name', 'value', 'words'),
    [
        ('ratio_twin', 1.1, 'ratio_twin 1.1 is above 1: no better than giving the low-res twin back'),
        ('ratio_mean', 1.3, 'ratio_mean 1.3 is above 1: no better than giving the mean'),
        ('energy', 0.31, 'energy 0.31 is below 0.6: the enhanced latents fade'),
        ('energy', 1.9, 'energy 1.9 is above 1.5: the enhanced latents blow up'),
        ('detail', 0.3, 'detail 0.3 is below 0.36: smoother than the low-res twin'),
        ('detail', 2.5, 'detail 2.5 is above 2: what is new is noise'),
        ('flicker', 4.0, 'flicker 4 is above 3: frames do not go together'),
        ('psnr', 21.0, 'psnr 21 is below 22: further from the truth than the low-res twin'),
        ('loss_t__9', 0.9, 'loss_t/9 0.9 is above 0.8: the run had 0.4 there'),
        ('update_ratio', 0.1, 'update_ratio 0.1 is above 0.05: a step changes the parameters too much'),
        ('psnr', math.nan, 'psnr is nan'),
    ],
)
def test_each_fault_is_named_by_the_figure_that_shows_it(name: str, value: float, words: str) -> None:
    assert rings(**{name: value}) == [words]


def test_nothing_rings_before_it_may_and_figures_may_be_missing() -> None:
    alarm = Alarm(AlarmConfig(after_step=100))
    assert alarm.check(99, GOOD | {'energy': 0.0}) == []
    assert len(alarm.check(100, {'energy': 0.0})) == 1
    # What was best is remembered from before.
    assert alarm.check(100, {'loss_t/0': 0.5}) == ['loss_t/0 0.5 is above 0.4: the run had 0.2 there']


def test_limits_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match='energy='):
        AlarmConfig(energy=(1.2, 1.5))
    with pytest.raises(ConfigError, match='after_step=-1'):
        AlarmConfig(after_step=-1)
