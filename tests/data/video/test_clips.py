import itertools
from pathlib import Path

import numpy as np
import pytest

from fv_jax.core.config import ConfigError
from fv_jax.data.video import clips, decoding, encoding, shots
from fv_jax.data.video.clips import ClipsConfig
from fv_jax.data.video.shots import Timeline
from tests.data import sample_videos

SMALL = {'height': 32, 'width': 48, 'frames': 9, 'crf': 4.0, 'preset': 'ultrafast'}


def timeline(frames: int, fps: float = 24, cuts: tuple[int, ...] = ()) -> Timeline:
    bounds = (0, *cuts, frames)
    return Timeline(np.arange(frames) / fps, tuple(itertools.pairwise(bounds)))


def selected(video: Timeline, **config) -> list[tuple[int, list[int]]]:
    plan = clips.select_clips(video, 24.0, ClipsConfig(**{**SMALL, **config}))
    return [(start, list(source)) for start, source in plan.clips]


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('frames', 0, 'frames=0: must be at least 1'),
        ('height', 0, 'height=0: must be at least 1'),
        ('width', -8, 'width=-8: must be at least 1'),
        ('fps', 0.0, 'fps=0.0: must be positive'),
        ('margin', -1, 'margin=-1: must be at least 0'),
        ('crf', 60.0, 'crf=60.0: must be from 0'),
        ('preset', 'best', 'preset=best: must be one of ultrafast.*medium'),
        ('name', 'a/b', "name='a/b': use letters"),
        ('ranges', ((3.0, 2.0),), r'ranges=\(3.0, 2.0\)'),
        ('ranges', ((3.0, 5.0), (4.0, 6.0)), 'ranges: 4.0 comes after 5.0'),
    ],
)
def test_clips_config_refuses_invalid_values(field: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClipsConfig(**{field: value})


def test_clips_are_consecutive_within_a_shot_without_margins() -> None:
    assert selected(timeline(40, cuts=(21,)), margin=2) == [
        (0, list(range(0, 9))),
        (9, list(range(9, 18))),
        (23, list(range(23, 32))),
    ]
    assert [start for start, _ in selected(timeline(40, cuts=(21,)), margin=0)] == [0, 9, 21, 30]
    assert selected(timeline(8)) == [] and selected(timeline(9, cuts=(4,))) == []


def test_clips_per_shot_are_spread_evenly() -> None:
    assert [start for start, _ in selected(timeline(100), clips_per_shot=1)] == [46]
    assert [start for start, _ in selected(timeline(100), clips_per_shot=2)] == [20, 70]
    assert [start for start, _ in selected(timeline(20), clips_per_shot=5)] == [0, 9]


def test_clips_within_time_ranges() -> None:
    video = timeline(200, cuts=(100,))
    ranges = ((10 / 24, 19 / 24), (90 / 24, 120 / 24))
    assert [start for start, _ in selected(video, ranges=ranges, margin=0)] == [10, 90, 100, 109]
    assert [start for start, _ in selected(video, ranges=ranges, margin=2)] == [10, 102, 111]
    assert selected(video, ranges=((500.0, 600.0),)) == []


def test_clips_fps_drops_or_repeats_frames_by_timestamp() -> None:
    ((start, source), *_) = selected(timeline(60, 24), fps=12.0)
    assert start == 0 and source == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    ((_, source), *_) = selected(timeline(20, 12), fps=24.0)
    assert source == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    ((_, source), *_) = selected(timeline(60, 30), fps=24.0)
    np.testing.assert_allclose(np.array(source) / 30, np.arange(9) / 24, atol=0.5 / 30 + 1e-9)
    uneven = Timeline(np.array([0, 0.1, 0.2, 0.9, 1.0, 1.1]), ((0, 6),))  # a frame was held for 0.7 s
    ((_, source), *_) = selected(uneven, fps=8.0)
    assert source == [0, 1, 2, 2, 2, 2, 2, 3, 4]


def test_clips_refuse_a_small_video() -> None:
    info = decoding.VideoInfo(720, 1280, 24, 100, 0, False)
    clips.check_size(info, ClipsConfig(height=256, width=480))
    with pytest.raises(ValueError, match=r'720x1280 is too small for clips of 1072x1920; .* allow max_upscale=1.5'):
        clips.check_size(info, ClipsConfig())
    clips.check_size(info, ClipsConfig(max_upscale=1.5))


def run(path: Path, **config) -> list[dict | None]:
    config = ClipsConfig(**{**SMALL, **config})
    plan = clips.scan_file(path, config, decoding.probe(path))
    return list(clips.extract_clips(path, plan, config))


def test_clips_do_not_cross_shot_boundaries(tmp_path: Path) -> None:
    sample_videos.write_two_shots(tmp_path / 'a.mp4')
    info = decoding.probe(tmp_path / 'a.mp4')
    for detector in ('adaptive', 'content'):
        assert shots.scan(tmp_path / 'a.mp4', info, detector).shots == ((0, 24), (24, 48))
    seen = []
    video = shots.scan(tmp_path / 'a.mp4', info, 'none', on_frame=lambda: seen.append(1))
    assert video.shots == ((0, 48),) and len(seen) == 48
    np.testing.assert_allclose(video.seconds, np.arange(48) / 24, atol=1e-6)


def test_clip_records_have_the_selected_frames(tmp_path: Path) -> None:
    encoding.encode(tmp_path / 'a.mp4', sample_videos.numbered_frames(30, 64, 96), 24, crf=4)
    records = run(tmp_path / 'a.mp4', detector='none', fps=12.0)
    (record,) = records
    assert (record['frames'], record['height'], record['width'], record['fps']) == (9, 32, 48, 12.0)
    assert sample_videos.frame_numbers(decoding.decode(record['video']).frames) == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    doubled = run(tmp_path / 'a.mp4', detector='none', fps=48.0)
    numbers = [sample_videos.frame_numbers(decoding.decode(r['video']).frames) for r in doubled]
    assert len(doubled) == 6 and [r['start_frame'] for r in doubled] == [0, 9, 18, 27, 36, 45]
    np.testing.assert_allclose(np.concatenate(numbers), np.arange(54) / 2, atol=0.5)


def test_clips_are_centre_cropped_to_the_aspect_ratio(tmp_path: Path) -> None:
    wide = np.zeros((9, 32, 96, 3), np.uint8)
    wide[:, :, 24:72] = sample_videos.pattern(9, 32, 48)
    encoding.encode(tmp_path / 'a.mp4', wide, 24, crf=4)
    (record,) = run(tmp_path / 'a.mp4', detector='none')
    frames = decoding.decode(record['video']).frames.astype(int)
    assert np.abs(frames - wide[:, :, 24:72]).mean() < 4


@pytest.mark.parametrize(('height', 'cropped'), [(24, True), (64, False)])
def test_bars_are_cropped_where_what_is_left_is_large_enough(tmp_path: Path, height: int, cropped: bool) -> None:
    rng = np.random.default_rng(0)
    frames = np.zeros((9, 64, 96, 3), np.uint8)
    frames[:, 12:-12] = rng.integers(60, 255, (9, 40, 96, 3))
    path = tmp_path / 'bars.mp4'
    path.write_bytes(encoding.encode_bytes(list(frames), 24.0, 4.0, 'ultrafast'))
    for bars in ('keep', 'crop'):
        (record,) = run(path, bars=bars, height=height, width=height * 96 // 64, detector='none')
        clip = decoding.decode(record['video']).frames
        assert clip.shape == (9, height, height * 96 // 64, 3)
        assert (clip[:, 0].mean() > 60) == (cropped and bars == 'crop')


def test_black_clips_are_dropped_and_reported(tmp_path: Path) -> None:
    video = sample_videos.pattern(27)
    video[9:14] = 0
    encoding.encode(tmp_path / 'a.mp4', video, 24)
    records = run(tmp_path / 'a.mp4', detector='none')
    assert [record is None for record in records] == [False, True, False]
    assert None not in run(tmp_path / 'a.mp4', detector='none', drop_black=False)
