import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.core import resize as core_resize
from fv_jax.data import numpy_resize


@pytest.mark.parametrize(
    ('before', 'after'), [((37, 64), (9, 16)), ((9, 16), (37, 64)), ((20, 20), (30, 7)), ((20, 20), (20, 20))]
)
def test_resize_bilinear_equals_the_jax_resize(before: tuple[int, int], after: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).normal(size=(2, *before, 3)).astype(np.float32)
    expected = core_resize.resize(jnp.asarray(frames), *after)
    out = numpy_resize.resize_bilinear(frames, after)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, atol=5e-6)  # core evaluates the weights in float32: 3e-6


def test_resize_uint8_is_antialiased_and_centred() -> None:
    checkers = np.indices((64, 64)).sum(0) % 2 * 255
    small = numpy_resize.resize_uint8(np.repeat(checkers[None, ..., None], 3, -1).astype(np.uint8), (16, 16))
    np.testing.assert_allclose(small, 127.5, atol=2)
    ramp = np.broadcast_to(np.arange(0, 256, 2, dtype=np.uint8)[None, None, :, None], (1, 32, 128, 3))
    out = numpy_resize.resize_uint8(ramp, (16, 32))
    np.testing.assert_allclose(out[0, 3, 2:-2, 0], 8 * np.arange(32)[2:-2] + 3, atol=1)


def test_crop_to_aspect() -> None:
    assert numpy_resize.crop_to_aspect(np.zeros((1, 720, 1280, 3)), (256, 480)).shape == (1, 683, 1280, 3)
    assert numpy_resize.crop_to_aspect(np.zeros((1, 1280, 720, 3)), (256, 480)).shape == (1, 384, 720, 3)
    assert numpy_resize.crop_to_aspect(np.zeros((1, 1080, 1920, 3)), (1072, 1920)).shape == (1, 1072, 1920, 3)
    left = numpy_resize.crop_to_aspect(np.arange(10)[None, None, :, None], (1, 4))
    assert left.shape == (1, 1, 4, 1) and left[0, 0, 0, 0] == 3
