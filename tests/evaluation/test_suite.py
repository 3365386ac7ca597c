"""The suite: the values of each metric for a clip, and the reasons where there is none."""

import numpy as np
import pytest

from fv_jax.data.transforms import to_float
from fv_jax.evaluation import full_reference, suite, temporal, weight_files
from fv_jax.evaluation.suite import Metric, Suite, evenly_spaced

TRUTH = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), np.uint8)
VIDEO = np.clip(TRUTH.astype(int) + 9, 0, 255).astype(np.uint8)


def metric(name, per_frame, **fields):
    return Metric(name, name.upper(), 'higher', per_frame, 2, **fields)


PSNR = metric('psnr', full_reference.psnr)
WARPING = metric('warping', temporal.warping_error, needs_truth=False, window=2)


def test_measure_takes_means_over_frames_and_over_pairs(monkeypatch):
    expected = {
        'psnr': np.mean(full_reference.psnr(to_float(VIDEO), to_float(TRUTH))),
        'warping': np.mean(temporal.warping_error(to_float(VIDEO), to_float(TRUTH))),
    }
    for frames in (1, 2, 5):  # that are float at a time
        monkeypatch.setattr(suite, '_BLOCK_PIXELS', frames * 16 * 24)
        assert Suite([PSNR, WARPING]).measure(VIDEO, TRUTH, 'clip') == pytest.approx(expected, rel=1e-6)


def test_measure_without_ground_truth():
    found = Suite([PSNR, WARPING]).measure(VIDEO, None, 'clip')
    assert found['psnr'] is None
    assert found['warping'] == pytest.approx(np.mean(temporal.warping_error(to_float(VIDEO))))


def test_a_metric_of_few_frames_sees_them_evenly_spaced():
    seen = []

    def per_frame(video, truth):
        seen.append((video, truth))
        return np.zeros(len(video))

    Suite([metric('sparse', per_frame, sparse=True)], vgg_frames=2).measure(VIDEO, TRUTH, 'clip')
    ((video, truth),) = seen
    np.testing.assert_array_equal(video, to_float(VIDEO[[1, 3]]))
    np.testing.assert_array_equal(truth, to_float(TRUTH[[1, 3]]))
    assert evenly_spaced(49, 3).tolist() == [8, 24, 40] and evenly_spaced(2, 3).tolist() == [0, 1]


def test_a_clip_that_is_too_short_has_no_value_and_a_reason():
    measuring = Suite([PSNR, WARPING])
    found = measuring.measure(VIDEO[:1], TRUTH[:1], 'still')
    assert found['psnr'] > 0 and found['warping'] is None
    assert measuring.not_computed == {'WARPING, still': 'warping error: video: 1 frame(s); needs at least 2'}


def test_an_error_that_is_no_matter_of_size_is_raised():
    with pytest.raises(ValueError, match='differ in shape'):
        Suite([PSNR]).measure(VIDEO, TRUTH[:3], 'clip')


def test_load_says_which_packages_are_missing(monkeypatch):
    monkeypatch.setattr(weight_files.importlib.util, 'find_spec', lambda name: None)
    loaded = Suite.load()
    names = [each.name for each in loaded.metrics]
    assert names == ['psnr', 'ssim', 'sharpness', 'noise_level', 'blockiness', 'warping_error', 'flicker']
    missing = {label: reason for label, reason in loaded.not_computed.items() if 'is not installed' in reason}
    assert list(missing) == ['LPIPS AlexNet', 'LPIPS VGG16', 'DISTS', 'VMAF', 'VMAF-NEG', 'XPSNR', 'NIQE']
    assert all("pip install 'fv_jax[evaluation]'" in reason for reason in missing.values()) and not loaded.digests
    assert set(loaded.describe()) == set(names)


def test_load_refuses_a_changed_file_of_weights(monkeypatch):
    def changed(weights):
        raise ValueError(f'{weights.file}: SHA-256 is another')

    monkeypatch.setattr(weight_files, 'read_file', changed)
    with pytest.raises(ValueError, match='SHA-256'):
        Suite.load()
