"""Of several streams the default one is read, or the largest; the others are named."""

import io
import logging
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest

from fv_jax.data.video import decoding
from tests.data.video import made_times
from tests.data.video.made_times import CASES, Sound, even


def notes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if 'reads stream' in message]


def test_default_audio_is_used_and_the_other_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = CASES / 'streams' / 'two_audio.mkv'
    caplog.set_level(logging.INFO)
    shown = made_times.copy_clip(path, tmp_path / 'out.mp4')
    assert shown.flash == pytest.approx(2.0, abs=1e-3) and shown.beep == pytest.approx(shown.flash, abs=5e-3)
    assert notes(caplog) == [f'note: {path}: reads streams 0 and 2, not audio 1 (aac, fra)']


def test_codec_that_ffmpeg_does_not_know_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = CASES / 'streams' / 'apac_first.mov'
    caplog.set_level(logging.INFO)
    shown = made_times.copy_clip(path, tmp_path / 'out.mp4')
    assert shown.beep == pytest.approx(2.0, abs=5e-3)
    assert notes(caplog) == [f'note: {path}: reads streams 0 and 2, not audio 1 (unknown codec)']


@pytest.mark.parametrize(
    ('suffix', 'sounds', 'used'),
    [
        ('mkv', [Sound(beeps=False, default=False), Sound('libmp3lame', default=True), Sound(beeps=False)], 2),
        ('mp4', [Sound('libmp3lame', beeps=False, default=False), Sound(default=True)], 2),
        ('mkv', [Sound(default=False), Sound(beeps=False, default=False)], 1),
        ('ts', [Sound('ac3'), Sound(beeps=False)], 1),
    ],
)
def test_choice_of_audio(tmp_path: Path, suffix: str, sounds: list[Sound], used: int, caplog) -> None:
    path = tmp_path / f'a.{suffix}'
    made_times.write(path, even(30, 45), sounds=sounds)
    caplog.set_level(logging.INFO)
    shown = made_times.copy_clip(path, tmp_path / 'out.mp4')
    assert shown.beep == pytest.approx(1.0, abs=5e-3)
    (note,) = notes(caplog)
    assert note.startswith(f'note: {path}: reads streams 0 and {used}, not audio ')
    assert note.count('audio ') == len(sounds) - 1


def hide_codec(path: Path, tag: bytes) -> None:
    """Makes the codec of a stream of a mov unknown."""
    data = path.read_bytes()
    place = data.index(tag, data.index(b'stsd'))
    path.write_bytes(data[:place] + b'zzzz' + data[place + 4 :])


def test_only_audio_of_an_unknown_codec_leaves_the_output_silent(tmp_path: Path, caplog) -> None:
    path = tmp_path / 'a.mov'
    made_times.write(path, even(30, 20), flash=None, sounds=[Sound('pcm_s16le')])
    hide_codec(path, b'sowt')
    caplog.set_level(logging.INFO)
    info = decoding.probe(path)
    assert not info.has_audio
    assert notes(caplog) == [f'note: {path}: reads stream 0, not audio 1 (unknown codec)']
    shown = made_times.copy_clip(path, tmp_path / 'out.mp4')
    assert shown.sound_end is None and len(shown.times) == 20


def test_video_of_an_unknown_codec_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / 'a.mov'
    made_times.write(path, even(30, 20), flash=None)
    hide_codec(path, b'avc1')
    for function in (decoding.probe, decoding.decode):
        with pytest.raises(ValueError, match=r'^[^\n]*a.mov: no decoder for its video format$'):
            function(path)


def write_two_videos(path: Path, sizes: list[tuple[int, int]], defaults: list[bool]) -> None:
    with av.open(str(path), 'w') as out:
        streams = []
        for (height, width), is_default in zip(sizes, defaults, strict=True):
            stream = out.add_stream('libx264', rate=30)
            stream.height, stream.width, stream.pix_fmt = height, width, 'yuv420p'
            stream.disposition = av.stream.Disposition.default if is_default else av.stream.Disposition(0)
            streams.append(stream)
        for stream in streams:
            for _ in range(5):
                image = np.zeros((stream.height, stream.width, 3), np.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format='rgb24')))
            out.mux(stream.encode())


@pytest.mark.parametrize(
    ('defaults', 'height'), [([False, False], 64), ([True, False], 32), ([False, True], 64), ([True, True], 64)]
)
def test_choice_of_video(tmp_path: Path, defaults: list[bool], height: int, caplog) -> None:
    path = tmp_path / 'a.mkv'
    write_two_videos(path, [(32, 48), (64, 96)], defaults)
    caplog.set_level(logging.INFO)
    assert decoding.probe(path).height == height and len(decoding.decode(path).frames) == 5
    used = 0 if height == 32 else 1
    assert notes(caplog) == [f'note: {path}: reads stream {used}, not video {1 - used} (h264)']


@pytest.mark.parametrize('suffix', ['mp4', 'mkv'])
def test_attached_cover_is_no_video(tmp_path: Path, suffix: str, caplog) -> None:
    path, image = tmp_path / f'a.{suffix}', np.zeros((480, 640, 3), np.uint8)
    with av.open(str(path), 'w') as out:
        cover = None
        if suffix == 'mkv':
            data = io.BytesIO()
            PIL.Image.fromarray(image).save(data, 'jpeg')
            out.add_attachment('cover.jpg', 'image/jpeg', data.getvalue())
        else:
            cover = out.add_stream('mjpeg', rate=1)
            cover.height, cover.width, cover.pix_fmt = 480, 640, 'yuvj420p'
            cover.disposition = av.stream.Disposition.attached_pic
        video = out.add_stream('libx264', rate=30)
        video.height, video.width, video.pix_fmt = 32, 48, 'yuv420p'
        for stream, frames in ((cover, 1), (video, 5)) if cover else ((video, 5),):
            for _ in range(frames):
                black = np.zeros((stream.height, stream.width, 3), np.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(black, format='rgb24')))
            out.mux(stream.encode())
    with av.open(str(path)) as container:
        assert [stream.height for stream in container.streams.video] in ([480, 32], [32, 480])
    caplog.set_level(logging.INFO)
    info = decoding.probe(path)
    assert (info.height, info.frames) == (32, 5) and not notes(caplog)
    assert len(decoding.decode(path).frames) == 5
