"""Cutting and blending, with clips whose frames hold their own number."""

import itertools

import numpy as np
import pytest

from fv_jax.core.config import ConfigError
from fv_jax.models.vae import OFFICIAL
from fv_jax.sampling.windows import Window, Windows, check_sizes, crossfade, split_windows

SPEC = OFFICIAL.latent_spec
SIZES = [(9, 1), (9, 5), (17, 1), (17, 5), (17, 13), (49, 9), (1, 0)]


def clip(frames):
    """Frames of one pixel, lazily."""
    return (np.full((1, 1, 1), i, np.float32) for i in range(frames))


def numbers(video_FHWC):
    return video_FHWC[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(('frames', 'overlap'), SIZES)
def test_windows_are_aligned_and_cover_every_clip(frames, overlap):
    windows = Windows(frames, overlap, SPEC)
    for length in [1, 2, 5, *range(frames - 1, frames + 2 * windows.stride + 2), 100]:
        got = list(split_windows(clip(length), windows)) if length else []
        if not got:
            continue
        assert len(got) == windows.count(length)
        assert [w.last for w in got] == [False] * (len(got) - 1) + [True]
        for window in got:
            assert window.start % windows.alignment == 0
            assert numbers(window.video_FHWC) == list(range(window.start, window.start + len(window.video_FHWC)))
        for window in got[:-1]:
            assert len(window.video_FHWC) == frames
        last = got[-1]
        assert last.start + len(last.video_FHWC) == length
        if len(got) > 1:  # so that every window takes the same executable
            assert frames - windows.alignment < len(last.video_FHWC) <= frames
            assert all(b.start - a.start == windows.stride for a, b in itertools.pairwise(got[:-1]))
            assert 0 < last.start - got[-2].start <= windows.stride


@pytest.mark.parametrize(('frames', 'overlap'), SIZES)
def test_crossfade_of_equal_windows_is_the_clip(frames, overlap):
    windows = Windows(frames, overlap, SPEC)
    for length in (1, 4, frames, frames + 1, frames + windows.stride, 60):
        blocks = list(crossfade(split_windows(clip(length), windows), overlap))
        assert len(blocks) == windows.count(length)
        np.testing.assert_allclose(np.concatenate(blocks)[:, 0, 0, 0], np.arange(length), rtol=1e-6)


def test_crossfade_is_linear():
    def piece(start, length, value, last=False):
        return Window(start, np.full((length, 1, 1, 1), value, np.float32), last)

    # 23 frames in windows of 17 with 5 of overlap: the second would start at 12 and is moved back to 8.
    assert [w.start for w in split_windows(clip(23), Windows(17, 5, SPEC))] == [0, 8]
    blocks = list(crossfade([piece(0, 17, 0), piece(8, 15, 6, last=True)], 5))
    assert [len(b) for b in blocks] == [12, 11]
    assert numbers(np.concatenate(blocks)) == pytest.approx([0] * 12 + [1, 2, 3, 4, 5] + [6] * 6)


def test_windows_read_frames_lazily():
    read = []

    def frames():
        for i, frame in enumerate(clip(1000)):
            read.append(i)
            yield frame

    blocks = crossfade(split_windows(frames(), Windows(17, 5, SPEC)), 5)
    for done in range(3):
        assert len(next(blocks)) == 12
        assert len(read) <= 17 + 12 * (done + 1)


def test_crossfade_does_not_hold_windows_in_memory():
    windows = (w._replace(video_FHWC=w.video_FHWC.copy()) for w in split_windows(clip(40), Windows(17, 5, SPEC)))
    blocks = list(crossfade(windows, 5))
    assert sum(len(b) for b in blocks) == 40


@pytest.mark.parametrize(('frames', 'overlap'), [(1, 0), (9, 5), (17, 5), (33, 5), (49, 9), (97, 17)])
def test_windows_default_overlap(frames, overlap):
    assert Windows.create(frames, None, SPEC) == Windows(frames, overlap, SPEC)
    assert Windows.create(17, 9, SPEC) == Windows(17, 9, SPEC)


@pytest.mark.parametrize(
    ('frames', 'overlap', 'fix'),
    [
        (17, 6, 'use 5 or 9'),
        (17, 0, 'use 1'),
        (17, -3, 'use 1'),
        (17, 17, 'use 13'),
        (17, 400, 'use 13'),
        (1, 1, 'use 0'),
    ],
)
def test_windows_refuse_an_unaligned_overlap(frames, overlap, fix):
    with pytest.raises(ConfigError, match=f'^overlap={overlap}: .*; {fix}$'):
        Windows(frames, overlap, SPEC)


def test_crossfade_refuses_windows_of_another_length():
    with pytest.raises(ConfigError, match='frames=16'):
        Windows(16, 5, SPEC)
    with pytest.raises(ValueError, match='no frames'):
        next(split_windows(iter(()), Windows(17, 5, SPEC)))
    with pytest.raises(ValueError, match='frame 1 is 3x4, the ones before 2x4'):
        list(check_sizes([np.zeros((2, 4, 3)), np.zeros((3, 4, 3))]))
