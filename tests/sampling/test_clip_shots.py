"""Cuts of a clip: planted between clips of the package, and nothing that only looks like one."""

import functools
import itertools

import numpy as np
import pytest

from fv_jax.data import sources
from fv_jax.data.video import decoding
from fv_jax.sampling.clip_shots import describe_cuts, find_clip_shots
from tests.data import sample_videos


@functools.cache
def heldout(index: int) -> np.ndarray:
    return decoding.decode(sources.open_embedded_shards(heldout=True)[index]['video']).frames[:, ::2, ::2]


@functools.cache
def train() -> tuple[np.ndarray, ...]:
    source = sources.open_embedded_shards(heldout=False)
    return tuple(decoding.decode(source[i]['video']).frames[:, ::2, ::2] for i in range(0, len(source), 4))


def cuts(frames, detector='adaptive', threshold=None) -> list[int]:
    shots = find_clip_shots(iter(frames), detector, threshold)
    assert shots[0][0] == 0 and shots[-1][1] == len(frames)
    assert all(end == first for (_, end), (first, _) in itertools.pairwise(shots))
    return [first for first, _ in shots[1:]]


@pytest.mark.parametrize('lengths', [(20, 13), (5, 9, 4), (1, 20, 3, 9), (3, 1)])
def test_planted_cuts_are_found_also_beside_the_ends(lengths):
    for first in range(4):
        clips = [heldout((first + 2 * i) % 8)[3 : 3 + length] for i, length in enumerate(lengths)]
        assert cuts(np.concatenate(clips)) == [*itertools.accumulate(lengths)][:-1]


def test_clips_of_one_shot_have_no_cuts():
    for clip in (*map(heldout, range(8)), *train()):
        assert cuts(clip) == []


def test_repeated_frames_are_no_cuts():
    """Animation on threes, and a frozen image."""
    found = [cuts(np.repeat(heldout(i)[::2], 3, axis=0)) for i in range(8)]
    assert found == [[]] * 8
    assert cuts(np.repeat(heldout(0)[:1], 40, axis=0)) == []
    still = np.repeat(heldout(0)[:1], 9, axis=0)
    assert cuts(np.concatenate([still, heldout(3)[:9]])) == [9]


def test_detector_and_threshold():
    frames = np.concatenate([heldout(0)[:9], heldout(3)[:9]])
    assert cuts(frames, 'none') == [] and cuts(frames, 'content') == [9]
    assert cuts(frames, 'content', 250.0) == [] and cuts(frames, 'adaptive', 200.0) == []


def test_shots_of_short_and_of_invalid_clips():
    frames = sample_videos.pattern(2, 10, 13)
    assert find_clip_shots(iter(frames), 'adaptive') == ((0, 2),)
    assert find_clip_shots(iter(frames[:1]), 'adaptive') == ((0, 1),)
    with pytest.raises(ValueError, match='no frames'):
        find_clip_shots(iter(()), 'adaptive')
    with pytest.raises(ValueError, match='frame 1 is 13x10, the ones before 10x13'):
        find_clip_shots(iter([frames[0], frames[0].swapaxes(0, 1)]), 'adaptive')


def test_describe_cuts():
    assert describe_cuts(((0, 9),)) == ''
    assert describe_cuts(((0, 9), (9, 12))).startswith('1 cut(s), at frame 9, each')
    many = [(i, i + 1) for i in range(9)]
    assert describe_cuts(many).startswith('8 cut(s), at frame 1, 2, 3, 4, 5, ..., each')
