"""Units of footage: in order, cut by time where that is possible, and grouped to shards by bytes."""

import math
from pathlib import Path

import pytest

from fv_jax.data.preparation import units as units_lib
from fv_jax.data.preparation.units import Footage, Unit, group_units, plan_units
from fv_jax.data.video.clips import ClipsConfig
from tests.data import odd_videos, sample_videos

CONFIG = ClipsConfig(frames=9, height=64, width=96, unit_seconds=1)


def footage(folder: Path, caption: str | None = None) -> dict[str, Footage]:
    found = [path for path in folder.rglob('*') if path.is_file()]
    return {path.relative_to(folder).as_posix(): Footage(path, path.stat().st_size, caption) for path in found}


def test_units_are_in_the_order_of_names_and_carry_captions(tmp_path: Path) -> None:
    for name in ('b.mp4', 'a.mp4', 'a/z.mp4', 'a-b/c.mp4'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    units = plan_units(footage(tmp_path, 'a text'), CONFIG)
    assert [unit.source for unit in units] == ['a/z.mp4', 'a-b/c.mp4', 'a.mp4', 'b.mp4']
    assert units[0] == Unit('a/z.mp4', str(tmp_path / 'a/z.mp4'), 7, caption='a text')


def test_long_videos_are_cut_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample_videos.write_two_shots(tmp_path / 'a.mp4', frames=40)  # of 3.3 s
    sample_videos.write_two_shots(tmp_path / 'b.mkv', frames=17)  # of 1.4 s: less than one and a half units
    odd_videos.write(tmp_path / 'c.avi', 'mpeg4')  # cannot be read from the middle
    (tmp_path / 'd.mp4').write_text('not a video')
    videos = footage(tmp_path)
    assert [unit.source for unit in plan_units(videos, CONFIG)] == sorted(videos)  # too small to be opened
    monkeypatch.setattr(units_lib, '_LONG_BYTES', 0)
    units = plan_units(videos, CONFIG)
    assert [unit.source for unit in units] == ['a.mp4', 'a.mp4', 'a.mp4', 'b.mkv', 'c.avi', 'd.mp4']
    parts = units[:3]
    assert parts[0].first == 0 and parts[-1].last == math.inf and [part.part for part in parts] == [0, 1, 2]
    assert [part.last for part in parts[:-1]] == [part.first for part in parts[1:]] == pytest.approx([10 / 9, 20 / 9])
    assert sum(part.bytes for part in parts) == videos['a.mp4'].bytes
    whole = plan_units(videos, ClipsConfig(frames=9, height=64, width=96, unit_seconds=None))
    assert [unit.source for unit in whole] == sorted(videos) and whole[0].last == math.inf


@pytest.mark.parametrize(
    ('megabytes', 'shard_mb', 'expected'),
    [
        ([1] * 9, 256, [0] * 4 + [1] * 4 + [2]),  # shards of at least 4 MB
        ([10] * 5, 256, [0, 1, 2, 3, 4]),
        ([1] * 9, 2, [0, 0, 1, 1, 2, 2, 3, 3, 4]),
        ([100] * 640, 256, [i // 3 for i in range(640)]),
        ([10] * 1280, 256, [i // 20 for i in range(1280)]),  # 64 shards
        ([3, 1000, 1, 1, 1, 1], 256, [0, 0, 1, 1, 1, 1]),  # a 64th is 16 MB
        ([], 256, []),
    ],
)
def test_shards_have_consecutive_units_of_some_size(megabytes: list[int], shard_mb: float, expected: list[int]) -> None:
    units = [Unit(str(i), str(i), size * 1_000_000) for i, size in enumerate(megabytes)]
    assert group_units(units, shard_mb) == expected
