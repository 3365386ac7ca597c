"""`prepare` with damaged videos of all kinds, and with a long one, as in `test_prepare_odd_files`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import test_prepare_odd_files as odd_files
from tests.data import odd_videos


@pytest.mark.parametrize(('codec', 'suffix'), odd_videos.KINDS)
@pytest.mark.parametrize('damage', [odd_videos.corrupt, odd_videos.cut_off])
def test_damage_costs_the_clips_that_touch_it(
    tmp_path: Path, capsys, codec: str, suffix: str, damage: Callable[[Path, int], None]
) -> None:
    odd_files.assert_damage_costs_the_clips_that_touch_it(tmp_path, capsys, codec, suffix, damage)


@pytest.mark.parametrize('fps', ['none', '24', '10'])
@pytest.mark.parametrize('packets', [[0], [3], [12], [30, 60], [95]])
def test_no_clip_spans_damage(tmp_path: Path, packets: list[int], fps: str) -> None:
    odd_files.assert_no_clip_spans_damage(tmp_path, packets, fps)


def test_video_of_600_frames(tmp_path: Path) -> None:
    odd_files.assert_video_is_prepared(tmp_path, 600)
