"""The clips of an evaluation: layouts, crops, and what does not match."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from configs import degradations as published
from fv_jax.core.command_line import UsageError
from fv_jax.core.config import build
from fv_jax.data.degradation.configs import StrongConfig
from fv_jax.data.video import encoding
from fv_jax.evaluation import clip_sources
from fv_jax.evaluation.clip_sources import Reading

STRONG = build(StrongConfig, published.strong())
READING = Reading(multiple=16, max_frames=4, seed=7)


def noise(frames, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


def write_frames(folder, frames, names='{}.png'):
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / names.format(i))


def write_video(path, frames):
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding.encode(path, frames, 12)


def test_pairs_of_frames_videos_and_images(tmp_path):
    truth, low = noise(3, 36, 52), noise(3, 9, 13)
    write_frames(tmp_path / 'GT' / 'a', truth)
    write_frames(tmp_path / 'LQ' / 'a', low)
    write_video(tmp_path / 'GT' / 'b.mp4', noise(6, 32, 48))
    write_video(tmp_path / 'LQ' / 'b.mp4', noise(6, 8, 12))
    Image.fromarray(truth[0]).save(tmp_path / 'GT' / 'c.png')
    Image.fromarray(low[0]).save(tmp_path / 'LQ' / 'c.jpg')
    loaders, others = clip_sources.pair_clips(tmp_path, READING)
    a, b, c = (load() for load in loaders)
    assert others == [] and [clip.name for clip in (a, b, c)] == ['a', 'b', 'c']
    assert a.size == (32, 48)  # 36x52 has no larger part of multiples of 16
    np.testing.assert_array_equal(a.truth, truth[:, :32, :48])
    np.testing.assert_array_equal(a.low_quality, low[:, :8, :12])
    assert (a.seed, b.seed, a.fps, b.fps) == (7, 8, 24, 12)
    assert len(b.truth) == len(b.low_quality) == READING.max_frames and c.truth.shape == (1, 32, 48, 3)


def test_frames_are_in_natural_order(tmp_path):
    frames = noise(12, 16, 16)
    write_frames(tmp_path / 'clip', frames, 'frame{}.png')
    np.testing.assert_array_equal(clip_sources.read_video(tmp_path / 'clip', 99).frames, frames)


def test_other_folders_of_pairs_are_results(tmp_path):
    truth = noise(2, 36, 52)
    for name, frames in {'GT': truth, 'LQ': noise(2, 9, 13), 'Other': truth // 2}.items():
        write_frames(tmp_path / name / 'a', frames)
    ((load,), others) = clip_sources.pair_clips(tmp_path, READING)
    assert others == ['Other']
    np.testing.assert_array_equal(load().results['Other'](), truth[:, :32, :48] // 2)


@pytest.mark.parametrize(
    ('low', 'high', 'expected'),
    [
        ((135, 240), (540, 960), ((132, 240), (528, 960))),  # SPMCS
        ((180, 320), (720, 1280), ((180, 320), (720, 1280))),
        ((64, 96), (96, 144), ((64, 96), (96, 144))),
    ],
)
def test_common_crop_is_the_largest_that_fits(low, high, expected):
    assert clip_sources.common_crop(low, high, 16, 'x') == expected


def test_ground_truth_is_degraded_and_videos_are_not(tmp_path):
    write_video(tmp_path / 'a.mp4', noise(6, 70, 100))
    (load,) = clip_sources.truth_clips(tmp_path, READING)
    clip = load()
    assert clip.truth.shape == (4, 64, 96, 3) and clip.low_quality.shape == (4, 16, 24, 3)
    (load,) = clip_sources.video_clips(tmp_path, READING)
    clip = load()
    assert clip.truth is None and clip.low_quality.shape == (4, 70, 100, 3) and clip.size == (272, 400)


def test_strong_degradation_has_a_fixed_seed():
    truth = np.repeat(noise(1, 64, 96), 2, axis=0)
    one, again, other = (clip_sources.degrade(truth, 4, seed, STRONG) for seed in (1, 1, 2))
    assert one.shape == (2, 16, 24, 3) and one.dtype == np.uint8
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


@pytest.mark.parametrize(
    ('folders', 'message'),
    [
        ({'GT': {'a': (2, 32, 32)}}, 'LQ: no such folder'),
        ({'GT': {'a': (2, 32, 32), 'b': (2, 32, 32)}, 'LQ': {'a': (2, 8, 8)}}, "LQ: has no 'b', which GT has"),
        ({'GT': {'a': (2, 32, 32)}, 'LQ': {'a': (2, 8, 8), 'b': (2, 8, 8)}}, "LQ: has 'b', which GT has not"),
        ({'GT': {'a': (3, 32, 32)}, 'LQ': {'a': (2, 8, 8)}}, 'a: 2 frame(s), the ground truth 3'),
        ({'GT': {'a': (2, 32, 32)}, 'LQ': {'a': (2, 8, 16)}}, 'GT is 32x32, LQ 8x16; both sides must have'),
        ({'GT': {'a': (2, 33, 33)}, 'LQ': {'a': (2, 32, 32)}}, 'no part of it has sides that are multiples of 16'),
        (
            {'GT': {'a': (2, 32, 32)}, 'LQ': {'a': (2, 8, 8)}, 'X': {'a': (2, 16, 32)}},
            'a: is 16x32, the ground truth 32x32',
        ),
    ],
)
def test_pairs_that_do_not_match(tmp_path, folders, message):
    for folder, clips in folders.items():
        for name, shape in clips.items():
            write_frames(tmp_path / folder / name, noise(*shape))
    with pytest.raises((UsageError, ValueError)) as caught:
        loaders, others = clip_sources.pair_clips(tmp_path, READING)
        clip = loaders[0]()
        [clip.results[name]() for name in others]
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_folders_without_videos_and_damaged_frames(tmp_path):
    for wrong, message in ((tmp_path / 'none', 'no such folder'), (tmp_path, 'holds no videos')):
        with pytest.raises(UsageError, match=message):
            clip_sources.list_videos(wrong)
    (tmp_path / 'a').mkdir()
    with pytest.raises(ValueError, match='a: holds no frames'):
        clip_sources.read_video(tmp_path / 'a', 9)
    (tmp_path / 'a' / '0.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match=r'0\.png: not an image'):
        clip_sources.read_video(tmp_path / 'a', 9)
    for number, size in enumerate(((16, 16), (16, 32))):
        Image.fromarray(noise(1, *size)[0]).save(tmp_path / 'a' / f'{number}.png')
    with pytest.raises(ValueError, match=r'1\.png: is 16x32, the first frame 16x16'):
        clip_sources.read_video(tmp_path / 'a', 9)
    Image.fromarray(noise(1, 16, 16)[0]).save(tmp_path / 'a.png')
    with pytest.raises(UsageError, match='has the same name'):
        clip_sources.list_videos(tmp_path)


def test_odd_files_of_folders(tmp_path, log_lines):
    """Trash is not read, media of other formats are named, and what cannot be read is an error of its clip alone."""
    for name in ('b.mp4', '._b.mp4', 'c.swf', 'd.heic', 'notes.txt'):
        (tmp_path / name).write_bytes(b'no video')
    for name in ('@eaDir', '.git', '__MACOSX'):
        write_frames(tmp_path / name, noise(2, 32, 32))
    write_frames(tmp_path / 'a', noise(2, 32, 32))
    (tmp_path / 'a' / '._0.png').write_bytes(b'no image')
    (tmp_path / 'lost.mp4').symlink_to('nowhere.mp4')
    (tmp_path / 'big.png').write_bytes(png_header(60000, 60000))
    assert list(clip_sources.list_videos(tmp_path)) == ['a', 'b', 'big', 'lost']
    assert f'note: {tmp_path}: 2 file(s) are of formats that are not read: c.swf, d.heic' in log_lines
    good, *odd = clip_sources.truth_clips(tmp_path, READING)
    assert good().truth.shape == (2, 32, 32, 3)
    messages = 'b.mp4: not a video', 'big.png: not an image', 'lost.mp4: no such file'
    messages = 'b.mp4: not a video', 'big.png: not an image', 'lost.mp4: no such file'
    for load, message in zip(odd, messages, strict=True):
        with pytest.raises(clip_sources.ClipError, match=f'^{tmp_path}/{message}'):
            load()


def png_header(width, height):
    chunk = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + chunk + struct.pack('>I', zlib.crc32(chunk))
