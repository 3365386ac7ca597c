"""Direction and monotony of every metric under known distortions (tests/evaluation/behaviour.py)."""

import itertools

import numpy as np
import pytest

from fv_jax.evaluation.weight_files import MissingPackageError
from tests.evaluation import behaviour

ALL = frozenset(behaviour.DISTORTIONS)
FULL_REFERENCE_UP = {'PSNR', 'PSNR Y', 'SSIM', 'VMAF', 'VMAF-NEG', 'XPSNR'}
FULL_REFERENCE_DOWN = {'LPIPS AlexNet', 'LPIPS VGG16', 'DISTS', 'flicker'}
# metric -> distortions that lower it, that raise it, that leave it
LOWER = dict.fromkeys(FULL_REFERENCE_UP, ALL) | {
    'warping error': {'blur'},
    'sharpness': {'blur', 'JPEG'},
    'noise level': {'blur', 'JPEG'},
}
RAISE = dict.fromkeys(FULL_REFERENCE_DOWN, ALL) | {
    'warping error': {'noise', 'JPEG', 'shuffling'},
    'sharpness': {'noise'},
    'noise level': {'noise'},
    'blockiness': {'JPEG'},
}
LEAVE = {
    'warping error': {'colour shift', 'pixel shift'},
    'sharpness': {'shuffling', 'colour shift', 'pixel shift'},
    'noise level': {'shuffling', 'colour shift', 'pixel shift'},
    'blockiness': {'blur', 'noise', 'shuffling', 'colour shift', 'pixel shift'},
}
HIGHER_IS_BETTER = FULL_REFERENCE_UP | {'sharpness'}
LEFT = 0.1  # relative change that counts as none


def check(found: dict[str, dict[str, list[float]]]) -> None:
    for metric, rows in found.items():
        assert rows.keys() == ALL
        for distortion, values in rows.items():
            shown = metric, distortion, values
            assert not np.isnan(values).any(), shown
            steps = [after - before for before, after in itertools.pairwise(values) if after != before]
            if distortion in LOWER.get(metric, ()):
                assert steps and max(steps) < 0, shown
            if distortion in RAISE.get(metric, ()):
                assert steps and min(steps) > 0, shown
            if distortion in LEAVE.get(metric, ()):
                np.testing.assert_allclose(values, values[0], rtol=LEFT, err_msg=str(shown))


def check_noise(found: dict[str, dict[str, list[float]]]) -> None:
    """Noise improves nothing but sharpness. Blockiness is a ratio of sums over pixels: 2 % is nothing."""
    for metric, rows in found.items():
        unchanged, *noisy = rows['noise']
        if metric == 'sharpness':
            assert min(noisy) > unchanged
        elif metric in HIGHER_IS_BETTER:
            assert max(noisy) < unchanged, (metric, noisy)
        else:
            assert min(noisy) > unchanged * 0.98, (metric, noisy)


def test_metrics_without_packages() -> None:
    found = behaviour.measure(behaviour.cheap_metrics())
    check(found)
    check_noise(found)


def test_metrics_of_packages() -> None:
    """NIQE has no expected order: the clip is animated, and has few patches."""
    try:
        metrics = behaviour.package_metrics()
    except MissingPackageError as error:
        pytest.skip(str(error))
    found = behaviour.measure(metrics)
    check(found)
    check_noise(found)


def test_every_metric_has_an_expectation() -> None:
    """A metric that is added must be added to the table of expectations."""
    try:
        names = {*behaviour.cheap_metrics(), *behaviour.package_metrics()}
    except MissingPackageError as error:
        pytest.skip(str(error))
    assert names - {'NIQE'} == {*LOWER, *RAISE, *LEAVE}
    for name in names - {'NIQE'}:
        assert {*LOWER.get(name, ()), *RAISE.get(name, ()), *LEAVE.get(name, ())} == ALL, name
