"""A shard is a function of its units; parts of a video give the clips that their times say, wherever reading begins."""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from fv_jax.core.hashing import fingerprint
from fv_jax.data.curation.scores import SCORES
from fv_jax.data.preparation.make_shard import ShardResult, make_shard
from fv_jax.data.preparation.units import Unit
from fv_jax.data.shards.records import encode_record
from fv_jax.data.shards.shard_files import read_records
from fv_jax.data.video import decoding
from fv_jax.data.video.clips import ClipsConfig
from fv_jax.data.video.seeking import Span
from tests.data import odd_videos, sample_videos

CONFIG = ClipsConfig(frames=9, height=64, width=96, detector='none', crf=4, preset='ultrafast', margin=0)
FRAMES = 96  # 4 seconds


def make(folder: Path, units: Sequence[Unit], config: ClipsConfig = CONFIG) -> tuple[ShardResult, list[dict]]:
    path = folder / 'shard.array_record'
    return make_shard(units, config, path), list(read_records([path]))


def unit(path: Path, first: float = 0.0, last: float = math.inf, caption: str | None = None) -> Unit:
    return Unit(path.name, str(path), path.stat().st_size, first, last, caption, part=int(first > 0))


def write(path: Path, codec: str = 'libx264', options: dict[str, str] | None = None, start: int = 0) -> np.ndarray:
    """Writes 4 seconds of different frames, with a key frame every second; returns the frames."""
    pixels = sample_videos.pattern(FRAMES)
    with av.open(str(path), 'w') as out:
        stream = out.add_stream(codec, rate=24, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 96, 64, 'yuv420p', 24
        stream.bit_rate = 2_000_000
        for i, image in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(image, format='rgb24')
            frame.pts, frame.time_base = i + start, Fraction(1, 24)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return pixels


def test_same_units_give_the_same_shard_and_rows_describe_it(tmp_path: Path) -> None:
    sample_videos.write_two_shots(tmp_path / 'a.mp4')
    sample_videos.write_two_shots(tmp_path / 'b.mkv', fps=12)
    (tmp_path / 'c.webm').write_text('not a video')
    units = [unit(tmp_path / 'a.mp4'), unit(tmp_path / 'c.webm'), unit(tmp_path / 'b.mkv', caption='two')]
    result, records = make(tmp_path, units)
    again, same = make(tmp_path, units)
    assert result == again and [r['video'] for r in records] == [r['video'] for r in same]
    assert result.bytes == (tmp_path / 'shard.array_record').stat().st_size
    assert [found.clips for found in result.units] == [5, 0, 5] and 'not a video' in result.units[1].failed
    assert len(result.rows) == len(records) and set(result.keys) == set(records[0]) | {'caption'}
    for row, record in zip(result.rows, records, strict=True):
        data = encode_record(record)
        assert set(SCORES) <= set(row)
        begin = record['start_frame'] / record['fps']
        assert {name: value for name, value in row.items() if name not in SCORES} == {
            **{name: record[name] for name in ('source', 'fps', 'frames', 'height', 'width')},
            **{
                'first_seconds': pytest.approx(begin),
                'last_seconds': pytest.approx(begin + 9 / record['fps']),
                'caption': record.get('caption'),
            },
            **{'bytes': len(data), 'fingerprint': fingerprint([data])},
        }


@pytest.mark.parametrize(
    ('suffix', 'codec', 'options'),
    [
        ('mp4', 'libx264', {'bf': '3'}),
        ('mkv', 'libx264', {'x264-params': 'open-gop=1:bframes=3'}),
        ('mp4', 'libx265', {'x265-params': 'log-level=error:open-gop=1:bframes=4'}),
        ('webm', 'libvpx-vp9', {'cpu-used': '8'}),
        ('ts', 'libx264', {'bf': '3'}),  # read from the start
    ],
)
def test_frames_of_a_span_are_those_of_the_whole(tmp_path: Path, suffix: str, codec: str, options: dict) -> None:
    path = tmp_path / f'a.{suffix}'
    write(path, codec, options, start=5)
    whole = [(frame.seconds, frame.pixels()) for frame in decoding.iter_frames(path)]
    assert len(whole) == FRAMES
    for first, last in ((0.0, 0.99), (0.99, 1.01), (2.0, 3.0), (2.3, math.inf), (5.0, math.inf)):
        part = [(frame.seconds, frame.pixels()) for frame in decoding.iter_frames(path, span=Span(first, last))]
        expected = [(time, pixels) for time, pixels in whole if first <= time < last]
        assert [time for time, _ in part] == [time for time, _ in expected]
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(part, expected, strict=True))
        info = decoding.probe(path, span=Span(first, last))
        assert info.frames == len(expected) or suffix == 'ts'


@pytest.mark.parametrize('fps', [None, 10.0])
def test_parts_of_a_video_share_its_frames(tmp_path: Path, fps: float | None) -> None:
    path, rate = tmp_path / 'a.mp4', fps or 24.0
    pixels = write(path).astype(int)
    bounds = [0.0, 1.3, 2.65, math.inf]
    config = ClipsConfig(frames=9, height=64, width=96, detector='none', crf=1, preset='ultrafast', fps=fps)
    result, records = make(tmp_path, [unit(path, bounds[i], bounds[i + 1]) for i in range(3)], config)
    starts = [record['start_frame'] for record in records]
    expected = []
    ends = [round(bound * rate) for bound in (*bounds[:-1], 4.0)]
    for first, last in itertools.pairwise(ends):
        expected += range(first, last - 8, 9)
    assert starts == expected and sum(found.clips for found in result.units) == len(starts)
    for record in records:
        frames = decoding.decode(record['video']).frames
        numbers = np.round((record['start_frame'] + np.arange(9)) * 24 / rate - 1e-6).astype(int)
        assert np.abs(frames - pixels[numbers]).mean() < 3


def test_damage_costs_the_clips_of_its_part_alone(tmp_path: Path) -> None:
    path = tmp_path / 'a.mp4'
    odd_videos.write(path, frames=192)
    odd_videos.corrupt(path, 60)
    result, records = make(tmp_path, [unit(path, 0, 4), unit(path, 4)])
    starts = [record['start_frame'] for record in records]
    assert result.units[0].damaged.startswith('damaged at frame ') and not result.units[1].damaged
    assert {0, 9, 18, 96, 105, 177} <= set(starts)
    # Frames that are missing do not count, but time does.
    after = next(row for row in result.rows if row['first_seconds'] > 1.75)
    assert after['first_seconds'] > 2.9 and after['last_seconds'] == pytest.approx(after['first_seconds'] + 0.375)
    damaged, _ = make(tmp_path, [unit(path, 2, 6)])
    assert damaged.units[0].damaged.startswith('damaged; nothing is taken from 1.')


def test_part_without_a_shot_that_is_long_enough_is_empty(tmp_path: Path) -> None:
    write(tmp_path / 'a.mp4')
    result, records = make(tmp_path, [unit(tmp_path / 'a.mp4', 3.8)])
    assert not records and not result.units[0].failed and 'a clip has 9' in result.units[0].empty
