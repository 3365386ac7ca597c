"""The colours of a clip: the low frequencies of the input, and all others of the result."""

import functools

import numpy as np
import pytest

from fv_jax.data import sources
from fv_jax.data.numpy_resize import resize_bilinear
from fv_jax.data.transforms import to_float, to_uint8
from fv_jax.data.video import decoding
from fv_jax.sampling.color_fix import fix_colors
from fv_jax.sampling.framing import Framing

SIZE = (256, 480)


@functools.cache
def heldout(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Three frames, and a quarter of their size."""
    large = decoding.decode(sources.open_embedded_shards(heldout=True)[index]['video'], max_frames=3).frames
    return large, to_uint8(resize_bilinear(to_float(large), (64, 120)))


def mean_error(frames, video) -> float:
    """The largest difference of the mean of a channel in a frame, in levels of 255."""
    return float(np.abs(to_uint8(frames).mean((1, 2)) - video.mean((1, 2))).max())


def gradient(frames) -> float:
    return float(sum(np.abs(np.diff(frames, axis=axis)).mean() for axis in (1, 2)))


@pytest.mark.parametrize('index', range(8))
def test_colors_are_those_of_the_input(index):
    """A colour cast, and one that changes over the frame, vanish; what they were added to remains as sharp."""
    large, small = heldout(index)
    ramp = np.linspace(-0.12, 0.12, SIZE[1], dtype=np.float32)[:, None] * np.array([1, -1, 0.5], np.float32)
    sharp = to_float(large)
    shifted = np.clip(sharp * 0.93 + ramp + 0.04, -1, 1)
    assert mean_error(shifted, small) > 4
    fixed = fix_colors(shifted, small)
    assert fixed.dtype == np.float32 and np.abs(fixed).max() <= 1
    assert mean_error(fixed, small) < 0.5
    assert np.abs(fixed - sharp).mean() < 0.3 * np.abs(shifted - sharp).mean()
    assert gradient(fixed) > 0.98 * gradient(shifted)


@pytest.mark.parametrize('index', range(0, 8, 3))
def test_sharper_frames_keep_their_edges(index):
    """The ground truth has the colours of the input already: no blur, no halos, which would be of many levels."""
    large, small = heldout(index)
    fixed = fix_colors(to_float(large), small)
    assert np.abs(fixed - to_float(large)).max() < 8 * 2 / 255 and gradient(fixed) > 0.995 * gradient(to_float(large))


def test_an_edge_has_no_halo():
    """A sharp edge beside the blurred one of the input, as black as possible beside white."""
    edge = np.zeros((1, 64, 96, 3), np.uint8)
    edge[:, :, 48:] = 255
    small = to_uint8(resize_bilinear(to_float(edge), (16, 24)))
    assert np.abs(fix_colors(to_float(edge), small) - to_float(edge)).max() < 2 * 2 / 255


def test_colors_of_a_cropped_and_of_a_padded_clip():
    _, small = heldout(0)
    for fit in ('crop', 'pad'):
        framing = Framing((64, 120), (240, 240), fit)
        seen = framing.apply(small)
        fixed = fix_colors(np.full((3, 240, 240, 3), 0.3, np.float32), seen, framing.ratio)
        shown = framing.make_bars_black(fixed)[:, *framing.content]
        wanted = small[:, :, 28:92] if fit == 'crop' else small
        assert mean_error(shown, wanted) < 4  # of a result that is grey
        assert np.abs(to_uint8(shown).mean() - wanted.mean()) < 1.5
