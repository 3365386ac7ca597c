"""300 random videos, decoded by us and by FFmpeg's own conversion: equal, or refused for a reason that holds.

python -m pytest -q tests/data/video/full_random_videos.py (20 seconds)
"""

import collections

from tests.data.video import random_videos

COUNT = 300


def test_random_videos_are_shown_as_ffmpeg_does_or_refused() -> None:
    results, differences = collections.Counter(), []
    for seed in range(1000, 1000 + COUNT):
        try:
            results[random_videos.check(seed)] += 1
        except AssertionError as error:
            differences.append(f'seed {seed}: {error}: {random_videos.draw_case(seed)}')
    assert not differences, '\n'.join(differences)
    assert results['refused'] > 3 and results.total() == COUNT, results
