"""Cropping and padding: a circle remains a circle, and what is reported is what is done."""

import re

import numpy as np
import pytest

from fv_jax.core.resize import resize
from fv_jax.data.transforms import to_float
from fv_jax.models.vae import OFFICIAL
from fv_jax.sampling.framing import Framing, scaled_size

SPEC = OFFICIAL.latent_spec


def draw_circle(height, width, radius):
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.hypot(y - height / 2, x - width / 2) < radius
    return np.where(inside, 255, 100).astype(np.uint8)[None, ..., None].repeat(3, -1)


def fit(framing, video):
    enlarged = resize(to_float(framing.apply(video)), *framing.size, ratio=framing.ratio)
    return framing.make_bars_black(np.asarray(enlarged))


def extent(levels):
    """Height and width of the circle in pixels, from sums over its columns and rows."""
    inside = np.clip((levels - levels[levels > -0.9].min()) / (1 - levels[levels > -0.9].min()), 0, 1)
    return inside.sum(0).max(), inside.sum(1).max()


@pytest.mark.parametrize('mode', ['crop', 'pad'])
@pytest.mark.parametrize('source', [(90, 160), (160, 90), (120, 120), (97, 131)])
@pytest.mark.parametrize('size', [(256, 480), (480, 256), (320, 320)])
def test_a_circle_remains_round(source, size, mode):
    framing = Framing(source, size, mode)
    circle = draw_circle(*source, radius=22)
    small = extent(to_float(circle)[0, ..., 0])
    height, width = extent(fit(framing, circle)[0, ..., 0])
    assert height == pytest.approx(width, rel=0.01)
    assert height == pytest.approx(small[0] / framing.ratio, rel=0.01)


@pytest.mark.parametrize(
    ('source', 'size', 'mode', 'shown', 'content', 'words'),
    [
        ((90, 160), (320, 320), 'crop', (90, 90), (320, 320), '90x160 is cropped to 90x90, its centre, for 320x320'),
        ((90, 160), (320, 320), 'pad', (90, 160), (180, 320), '90x160 is padded to 320x320.*140 rows and 0 columns'),
        ((160, 90), (320, 320), 'pad', (160, 90), (320, 180), '0 rows and 140 columns are black'),
        ((270, 480), (1072, 1920), 'crop', (268, 480), (1072, 1920), '270x480 is cropped to 268x480'),
        ((270, 480), (1088, 1920), 'pad', (270, 480), (1080, 1920), '8 rows and 0 columns are black'),
        ((64, 120), (256, 480), 'crop', (64, 120), (256, 480), '^$'),
        ((64, 120), (256, 480), 'pad', (64, 120), (256, 480), '^$'),
        ((10, 13), (32, 48), 'crop', (9, 13), (32, 48), '10x13 is cropped to 9x13'),
    ],
)
def test_what_is_shown(source, size, mode, shown, content, words):
    framing = Framing(source, size, mode)
    rows, columns = framing.content
    assert framing.shown == shown and (rows.stop - rows.start, columns.stop - columns.start) == content
    assert re.search(words, framing.describe())
    assert framing.is_exact == (words == '^$')
    frames = fit(framing, np.full((1, *source, 3), 200, np.uint8))
    black = np.ones(size, bool)
    black[framing.content] = False
    assert (frames[0, ..., 0][black] == -1).all() and np.allclose(frames[0, ..., 0][~black], 200 / 127.5 - 1, atol=1e-6)


def test_crop_takes_the_centre():
    video = np.zeros((1, 90, 160, 3), np.uint8)
    video[:, :, 35:125] = np.arange(90, dtype=np.uint8)[:, None]
    np.testing.assert_array_equal(Framing((90, 160), (320, 320), 'crop').apply(video), video[:, :, 35:125])


def test_scaled_size():
    assert scaled_size((270, 480), 4, 'crop', SPEC) == (1072, 1920) and scaled_size((270, 480), 4, 'pad', SPEC) == (
        1088,
        1920,
    )
    with pytest.raises(ValueError, match='too small'):
        scaled_size((10, 13), 1, 'crop', SPEC)
    assert scaled_size((10, 13), 1, 'pad', SPEC) == (16, 16)
