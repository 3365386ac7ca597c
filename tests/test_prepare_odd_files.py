"""One odd file never ends a job of `prepare`: it is skipped and named, and damage costs the clips that it touches.

`data/video/full_odd_files` has more kinds of damage.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from fv_jax import prepare
from fv_jax.core import exit_codes
from fv_jax.data.shards.record_writer import ShardWriter
from fv_jax.data.shards.shard_files import list_shards, read_records
from fv_jax.data.video import clips, decoding, encoding
from tests.data import odd_videos, sample_videos

CASES = Path(__file__).parent / 'data' / 'video' / 'cases'
FLAGS = [
    '--config.frames=9',
    '--config.height=64',
    '--config.width=96',
    '--config.preset=ultrafast',
    '--config.crf=4',
    '--config.detector=none',
]


def run(source: Path, output: Path, *more: str) -> int:
    return prepare.main([f'--input={source}', f'--output={output}', *FLAGS, *more])


def read_index(output: Path) -> dict:
    return json.loads((output / 'clips.json').read_text())


def sources(output: Path) -> list[str]:
    return sorted({record['source'] for record in read_records(list_shards(output))})


def test_colour_matrix_that_the_scaler_refuses_does_not_end_the_job(tmp_path: Path, capsys) -> None:
    (tmp_path / 'in').mkdir()
    shutil.copy(CASES / 'job' / 'a.mp4', tmp_path / 'in')
    shutil.copy(CASES / 'colour' / 'b_ycgco.mp4', tmp_path / 'in')
    code = run(tmp_path / 'in', tmp_path / 'out')
    used = sources(tmp_path / 'out')
    assert 'a.mp4' in used
    if 'b_ycgco.mp4' not in used:
        assert code == prepare.SKIPPED and '  b_ycgco.mp4: ' in capsys.readouterr().out


class OddFrame:
    """A decoded frame that cannot be converted."""

    def __init__(self, seconds: float, error: Exception):
        self.seconds, self._error = seconds, error

    def pixels(self, size: tuple[int, int] | None = None) -> np.ndarray:
        raise self._error


def fail_for_b(monkeypatch: pytest.MonkeyPatch, function: str, error: Exception) -> None:
    """Makes a function raise for the file b.mp4: when it is opened, scanned, or one of its frames converted."""
    module, name = {
        'open': (decoding, 'open_container'),
        'scan': (clips, 'scan'),
        'convert': (decoding, 'iter_frames'),
    }[function]
    original = getattr(module, name)

    def call(path: Path, *args, **kwargs):
        if path.name != 'b.mp4':
            return original(path, *args, **kwargs)
        if function == 'convert':
            return (OddFrame(frame.seconds, error) for frame in original(path, *args, **kwargs))
        raise error

    monkeypatch.setattr(module, name, call)


@pytest.mark.parametrize('function', ['open', 'scan', 'convert'])
@pytest.mark.parametrize(
    ('error', 'reason'),
    [
        (av.error.OSError(errno.EOPNOTSUPP, 'Operation not supported'), 'Operation not supported'),
        (av.error.InvalidDataError(1094995529, 'Invalid data found'), 'Invalid data found'),
        (OSError(errno.EIO, 'Input/output error'), 'Input/output error'),
        (MemoryError('Unable to allocate 12.4 GiB'), 'MemoryError: Unable to allocate 12.4 GiB'),
        (MemoryError(), 'MemoryError'),
        (AttributeError('no codec'), 'AttributeError: no codec'),
    ],
    ids=['scaler', 'decoder', 'disk', 'memory', 'memory without a message', 'codec'],
)
def test_any_error_of_a_reader_names_the_file(
    tmp_path: Path, capsys, monkeypatch, function: str, error: Exception, reason: str
) -> None:
    (tmp_path / 'in').mkdir()
    for name in 'abc':
        odd_videos.write(tmp_path / 'in' / f'{name}.mp4', frames=9)
    fail_for_b(monkeypatch, function, error)
    assert run(tmp_path / 'in', tmp_path / 'out') == prepare.SKIPPED
    assert read_index(tmp_path / 'out')['skipped'] == {'b.mp4': reason}
    assert f'  b.mp4: {reason}' in capsys.readouterr().out
    assert sources(tmp_path / 'out') == ['a.mp4', 'c.mp4']


def test_error_of_the_writer_ends_the_job(tmp_path: Path, capsys, monkeypatch) -> None:
    """No file is to blame for a full disk."""
    (tmp_path / 'in').mkdir()
    odd_videos.write(tmp_path / 'in' / 'a.mp4', frames=9)

    def write(self, record) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(ShardWriter, 'write', write)
    assert run(tmp_path / 'in', tmp_path / 'out') == exit_codes.FAILED
    assert 'prepare: [Errno 28] No space left' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def assert_damage_costs_the_clips_that_touch_it(
    tmp_path: Path, capsys, codec: str, suffix: str, damage: Callable[[Path, int], None]
) -> None:
    path = tmp_path / f'a.{suffix}'
    odd_videos.write(path, codec)
    original = decoding.decode(path).frames
    damage(path, 50)
    code = run(path, tmp_path / 'out', '--config.margin=0')
    firsts = first_frames(tmp_path / 'out', original)
    assert {0, 9, 18} <= set(firsts)  # what a damaged frame may be predicted from is not used
    after = [first for first in firsts if first > 50]
    if damage is odd_videos.cut_off:
        assert not after
    elif codec == 'mjpeg':
        assert after == [52, 61, 70, 79]
    else:
        assert len(after) == 2 and after[0] >= 72  # from the next key frame on
    assert code == prepare.SKIPPED and 'used in part: 1 damaged file(s)' in capsys.readouterr().out
    assert 'damaged at frame ' in read_index(tmp_path / 'out')['damaged'][path.name]


@pytest.mark.parametrize(('suffix', 'damage'), [('mkv', odd_videos.corrupt), ('mp4', odd_videos.cut_off)])
def test_damage_costs_the_clips_that_touch_it(
    tmp_path: Path, capsys, suffix: str, damage: Callable[[Path, int], None]
) -> None:
    assert_damage_costs_the_clips_that_touch_it(tmp_path, capsys, 'libx264', suffix, damage)


def assert_no_clip_spans_damage(tmp_path: Path, packets: list[int], fps: str) -> None:
    """Also at the start, where frames are read ahead to find how their times are stored, and at the end."""
    path = tmp_path / 'a.mp4'
    odd_videos.write(path)
    original = decoding.decode(path).frames
    for packet in packets:
        odd_videos.corrupt(path, packet)
    assert run(path, tmp_path / 'out', f'--config.fps={fps}', '--config.margin=0') == prepare.SKIPPED
    step = 24 / (10 if fps == '10' else 24)
    for first in first_frames(tmp_path / 'out', original, step):
        assert not any(first <= packet < first + 8 * step for packet in packets)


@pytest.mark.parametrize(('packets', 'fps'), [([0], '10'), ([12], 'none')])
def test_no_clip_spans_damage(tmp_path: Path, packets: list[int], fps: str) -> None:
    assert_no_clip_spans_damage(tmp_path, packets, fps)


def first_frames(output: Path, original: np.ndarray, step: float = 1) -> list[int]:
    """Returns the numbers of the clips' first frames; checks that all of their frames are right."""
    firsts = []
    for record in read_records(list_shards(output)):
        frames = decoding.decode(record['video']).frames.astype(int)
        first = int(np.abs(original - frames[0]).mean(axis=(1, 2, 3)).argmin())
        expected = [original[first + max(round(step * i + d), 0)] for i in range(9) for d in (-0.45, 0.45)]
        errors = np.abs(np.stack(expected).reshape(9, 2, *frames.shape[1:]) - frames[:, None]).mean(axis=(2, 3, 4))
        assert errors.min(axis=1).max() < 2.5
        firsts.append(first)
    return firsts


def test_damaged_file_without_any_whole_clip_is_skipped_with_its_reason(tmp_path: Path, capsys) -> None:
    path = tmp_path / 'in' / 'a.mp4'
    path.parent.mkdir()
    odd_videos.write(path, frames=24)
    odd_videos.corrupt(path, 12)
    assert run(path, tmp_path / 'out') == exit_codes.USAGE
    error = capsys.readouterr().err
    assert '1 of 1 files skipped (a.mp4: no shot is long enough: ' in error and 'damaged at frame ' in error


def test_video_that_gives_no_clip_is_named_with_its_reason(tmp_path: Path, capsys) -> None:
    folder = tmp_path / 'in'
    folder.mkdir()
    sample_videos.write_two_shots(folder / 'good.mp4')
    sample_videos.write_two_shots(folder / 'shots.mp4', frames=20)
    encoding.encode(folder / 'black.mp4', np.zeros((20, 64, 96, 3), np.uint8), 24)
    encoding.encode(folder / 'short.mp4', sample_videos.pattern(8), 24)
    encoding.encode(folder / 'one.mp4', sample_videos.pattern(1), 24)
    encoding.encode(folder / 'small.mp4', sample_videos.pattern(40, 32, 48), 24)
    (folder / 'empty.mp4').write_bytes(b'')
    (folder / 'text.mkv').write_text('not a video')
    flags = '--config.frames=17', '--config.detector=content', '--config.margin=2'
    assert run(folder, tmp_path / 'out', *flags) == prepare.SKIPPED
    skipped = read_index(tmp_path / 'out')['skipped']
    printed = capsys.readouterr().out
    for name, reason in {
        'black.mp4': 'all of its 1 clip(s) have black frames',
        'short.mp4': 'too short: 8 frame(s), and a clip has 17',
        'one.mp4': 'too short: 1 frame(s), and a clip has 17',
        'small.mp4': '32x48 is too small for clips of 64x96; choose a smaller height and width',
        'empty.mp4': 'not a video that can be read',
        'text.mkv': 'not a video that can be read',
    }.items():
        assert skipped[name].startswith(reason) and f'  {name}: {reason}' in printed
    assert set(skipped) == {'black.mp4', 'short.mp4', 'one.mp4', 'small.mp4', 'empty.mp4', 'text.mkv'}
    assert run(folder / 'shots.mp4', tmp_path / 'none', *flags, '--config.margin=4') == exit_codes.USAGE
    assert 'no shot is long enough: the longest has 16 frame(s), and a clip has 17' in capsys.readouterr().err


@pytest.mark.parametrize(
    'name',
    ['a b.mp4', '-x.mp4', 'caf\u00e9.mp4', 'cafe\u0301.mp4', '100%.mp4', "it's #1.mp4", 'http:x.mp4', '日本.MP4'],
)
def test_odd_file_names(tmp_path: Path, name: str) -> None:
    (tmp_path / 'in').mkdir()
    odd_videos.write(tmp_path / 'in' / 'x.mp4', frames=9)
    (tmp_path / 'in' / 'x.mp4').rename(tmp_path / 'in' / name)
    assert run(tmp_path / 'in', tmp_path / 'out') == 0
    assert sources(tmp_path / 'out') == [name]


def test_file_name_that_is_not_utf8_is_skipped_and_named(tmp_path: Path, capfd) -> None:
    (tmp_path / 'in').mkdir()
    odd_videos.write(tmp_path / 'in' / 'x.mp4', frames=9)
    shutil.copy(tmp_path / 'in' / 'x.mp4', os.fsdecode(bytes(tmp_path / 'in') + b'/y\xff.mp4'))
    assert run(tmp_path / 'in', tmp_path / 'out') == prepare.SKIPPED
    assert sources(tmp_path / 'out') == ['x.mp4']
    assert [*read_index(tmp_path / 'out')['skipped']] == [r'y\udcff.mp4']
    assert r'  y\udcff.mp4: ' in capfd.readouterr().out


@pytest.mark.parametrize('frames', [1, 2, 9])
def test_video_of_few_frames(tmp_path: Path, frames: int) -> None:
    assert_video_is_prepared(tmp_path, frames)


def assert_video_is_prepared(tmp_path: Path, frames: int) -> None:
    (tmp_path / 'in').mkdir()
    encoding.encode(tmp_path / 'in' / 'a.mp4', sample_videos.pattern(frames, 32, 48), 24, preset='ultrafast')
    size = '--config.height=32', '--config.width=48', f'--config.frames={9 if frames >= 9 else 1}'
    assert run(tmp_path / 'in', tmp_path / 'out', *size) == 0
    assert len(list(read_records(list_shards(tmp_path / 'out')))) == frames // (9 if frames >= 9 else 1)
