import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.core import resize as core_resize
from fv_jax.data import resizing
from fv_jax.data.degradations import WeakConfig, WeakTwin, weak


@pytest.mark.parametrize(
    ('before', 'after'), [((37, 64), (9, 16)), ((9, 16), (37, 64)), ((20, 20), (30, 7)), ((20, 20), (20, 20))]
)
def test_bilinear_is_the_resize_between_the_stages(before: tuple[int, int], after: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).normal(size=(2, *before, 3)).astype(np.float32)
    expected = core_resize.resize(jnp.asarray(frames), *after)
    out = resizing.resize_bilinear(frames, after)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, atol=5e-6)  # core evaluates the weights in float32: 3e-6


def test_uint8_is_antialiased_and_does_not_shift() -> None:
    checkers = np.indices((64, 64)).sum(0) % 2 * 255
    small = resizing.resize_uint8(np.repeat(checkers[None, ..., None], 3, -1).astype(np.uint8), (16, 16))
    np.testing.assert_allclose(small, 127.5, atol=2)
    ramp = np.broadcast_to(np.arange(0, 256, 2, dtype=np.uint8)[None, None, :, None], (1, 32, 128, 3))
    out = resizing.resize_uint8(ramp, (16, 32))
    np.testing.assert_allclose(out[0, 3, 2:-2, 0], 8 * np.arange(32)[2:-2] + 3, atol=1)


def test_crop_to_aspect() -> None:
    assert resizing.crop_to_aspect(np.zeros((1, 720, 1280, 3)), (256, 480)).shape == (1, 683, 1280, 3)
    assert resizing.crop_to_aspect(np.zeros((1, 1280, 720, 3)), (256, 480)).shape == (1, 384, 720, 3)
    assert resizing.crop_to_aspect(np.zeros((1, 1080, 1920, 3)), (1072, 1920)).shape == (1, 1072, 1920, 3)
    left = resizing.crop_to_aspect(np.arange(10)[None, None, :, None], (1, 4))
    assert left.shape == (1, 1, 4, 1) and left[0, 0, 0, 0] == 3


def high_res(height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (3, height, width, 3)).astype(np.float32)


def test_the_weak_twin_is_down_and_up_by_one_factor() -> None:
    frames = high_res()
    twin = weak(frames, np.random.default_rng(1), WeakConfig(4, 4))
    small = core_resize.resize(jnp.asarray(frames), 12, 16)
    np.testing.assert_allclose(twin, core_resize.resize(small, 48, 64), atol=3e-6)
    # The same factor for all frames: equal frames stay equal, whatever is drawn.
    still = np.repeat(frames[:1], 3, axis=0)
    for seed in range(5):
        out = weak(still, np.random.default_rng(seed), WeakConfig(2, 8))
        assert (out == out[:1]).all() and out.shape == frames.shape and out.dtype == np.float32


def test_the_weak_twin_depends_on_the_generator_alone() -> None:
    frames, config = high_res(), WeakConfig(2, 8)
    a, b, c = (weak(frames, np.random.default_rng(seed), config) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0.01
    detail = [
        np.abs(np.diff(weak(frames, np.random.default_rng(0), WeakConfig(f, f)), axis=2)).mean() for f in (2, 4, 8)
    ]
    assert detail[0] > 2 * detail[1] > 4 * detail[2]


def test_the_transform_adds_the_twin() -> None:
    frames = high_res()
    record = WeakTwin(WeakConfig(4, 8))({'high_res_FHWC': frames}, np.random.default_rng(3))
    np.testing.assert_array_equal(record['low_res_FHWC'], weak(frames, np.random.default_rng(3), WeakConfig(4, 8)))
    assert record['high_res_FHWC'] is frames


@pytest.mark.parametrize(('low', 'high'), [(0.5, 4), (8, 4), (1, float('inf'))])
def test_ranges_that_make_no_sense_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match='1 <= low <= high'):
        WeakConfig(low, high)
    with pytest.raises(ValueError, match=r'a clip of 4x64 cannot be made 8.00 times smaller'):
        weak(high_res(4), np.random.default_rng(0), WeakConfig(8, 8))
