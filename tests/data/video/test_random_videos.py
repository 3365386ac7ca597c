"""Random videos, a few of those of `full_random_videos.py`."""

import pytest

from tests.data.video import random_videos


@pytest.mark.parametrize('seed', range(20))
def test_random_video_is_shown_as_ffmpeg_does_or_refused(seed) -> None:
    assert random_videos.check(seed) == ('refused' if random_videos.draw_case(seed).refused else 'equal')
