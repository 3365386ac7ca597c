"""Strips: the place of the crop, lines, labels, sizes."""

import numpy as np
import pytest

from fv_jax.evaluation.strips import find_detail, strip


def video(height=64, width=96, frames=3, detail=None):
    made = np.full((frames, height, width, 3), 90, np.uint8)
    if detail:
        row, column = detail
        made[frames // 2, row : row + 8 : 2, column : column + 8] = 250
    return made


def test_detail_is_found_where_gradients_are():
    frame = video(detail=(40, 70))[1]
    row, column = find_detail(frame, (16, 24))
    assert 40 - 8 <= row <= 40 and 70 - 16 <= column <= 70
    assert find_detail(frame, (64, 96)) == (0, 0)


def test_crop_is_of_the_truth_s_place_in_every_video():
    videos = {'a': video(detail=(5, 5)), 'ground truth': video(detail=(40, 70))}
    sheet = np.asarray(strip(videos))
    crops = sheet[22 + 64 + 4 :]
    left, right = crops[:64, :96], crops[:64, 100:]
    assert (left == 90).all() and (right == 250).any()
    (rows,) = np.nonzero((right == 250).all(-1).any(1))
    assert np.bincount(rows // 4).max() == 4, 'enlarged four times by whole pixels'


def test_without_a_truth_the_first_video_gives_the_place():
    sheet = np.asarray(strip({'a': video(detail=(40, 70)), 'b': video()}))
    assert (sheet[22 + 64 + 4 :, :96] == 250).any()


@pytest.mark.parametrize(('number', 'columns', 'lines'), [(1, 1, 1), (4, 4, 1), (5, 3, 2), (6, 3, 2), (7, 4, 2)])
def test_long_lists_are_wrapped(number, columns, lines):
    sheet = strip({f'v{i}': video() for i in range(number)})
    assert sheet.size == (columns * 100 - 4, lines * (22 + 64 + 4 + 64 + 4))


def test_large_frames_are_reduced():
    sheet = strip({f'v{i}': video(1080, 1920, 1) for i in range(8)})
    assert sheet.width == 2012 and sheet.height == 2 * (22 + 281 + 4 + 281 + 4)


def test_crop_of_large_frames_has_the_video_s_own_pixels():
    frame = np.zeros((1, 1080, 1920, 3), np.uint8)
    frame[0, 500:504, 800:804:2] = 255
    crop = np.asarray(strip({'a': frame}))[22 + 281 + 4 : -4]
    (columns,) = np.nonzero((crop == 255).all(-1).any(0))
    assert len(columns) == 2 * 4


def test_sizes_must_agree():
    with pytest.raises(ValueError, match=r"videos of one size are needed, got .*'b': \(32, 96, 3\)"):
        strip({'a': video(), 'b': video(32)})
