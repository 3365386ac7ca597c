"""Sound is in time with the first frame that is shown, within 5 ms; `full_sync` tries all kinds."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from fv_jax.data.video import audio, decoding
from tests.data.video import made_times
from tests.data.video.made_times import CASES, Sound, even

TOLERANCE = 5e-3
# Codec of the sound, container, codec of the video, codec of the sound in the mp4.
KINDS = (
    ('aac', 'mp4', 'libx264', 'aac'),
    ('aac', 'mkv', 'libx264', 'aac'),
    ('aac', 'ts', 'libx264', 'aac'),
    ('libmp3lame', 'mp4', 'libx264', 'mp3float'),
    ('libmp3lame', 'mkv', 'libx264', 'mp3float'),
    ('libmp3lame', 'ts', 'mpeg2video', 'mp3float'),
    ('libopus', 'webm', 'libvpx', 'opus'),
    ('libopus', 'mp4', 'libx264', 'opus'),
    ('ac3', 'mp4', 'libx264', 'ac3'),
    ('ac3', 'mkv', 'libx264', 'ac3'),
    ('ac3', 'ts', 'mpeg2video', 'ac3'),
    ('pcm_s16le', 'mov', 'libx264', 'pcm_s16le'),
    ('pcm_s16le', 'mkv', 'libx264', 'pcm_s16le'),
    ('flac', 'mkv', 'libx264', 'flac'),
    ('pcm_u8', 'mkv', 'libx264', 'aac'),
    ('mp2', 'mpg', 'mpeg2video', 'aac'),
    ('mp2', 'mkv', 'libx264', 'aac'),
)
TIME_BASE = {'mpeg2video': Fraction(1, 30)}
OFFSETS = (0.0, 0.4, -0.4)  # seconds by which the sound begins later than the frames


def assert_beep_is_on_the_flash(tmp_path: Path, kind: tuple[str, ...], offset: float, notes: list[str]) -> None:
    codec, suffix, video, copied = kind
    path, out = tmp_path / f'a.{suffix}', tmp_path / 'out.mp4'
    first = max(-offset, 0)
    made_times.write(
        path,
        even(30, 45, first),
        sounds=[Sound(codec, max(offset, 0))],
        codec=video,
        time_base=TIME_BASE.get(video, Fraction(1, 90000)),
    )
    shown = made_times.copy_clip(path, out)
    assert shown.flash == pytest.approx(1 - first, abs=1e-3)
    assert shown.beep == pytest.approx(shown.flash, abs=TOLERANCE)
    assert shown.end == pytest.approx(1.5, abs=1e-3) and shown.sound_end <= shown.end + 0.033  # a packet
    with av.open(str(out)) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.name == copied
    name = {'pcm_u8': 'pcm_u8', 'mp2': 'mp2float'}.get(codec)
    converted = [note for note in notes if 'AAC' in note]
    assert bool(converted) == (name is not None) and all('is converted to AAC' in note for note in converted)


@pytest.mark.parametrize(('kind', 'offset'), [(0, 0.4), (5, -0.4), (6, 0.0), (11, 0.4), (14, -0.4)])
def test_beep_is_on_the_flash(tmp_path: Path, kind: int, offset: float, log_lines: list[str]) -> None:
    assert_beep_is_on_the_flash(tmp_path, KINDS[kind], offset, log_lines)


@pytest.mark.parametrize(
    ('name', 'flash', 'frames'), [('cfr.mp4', 2.0, 90), ('audio_late.mp4', 2.0, 90), ('trim_copy.mp4', 0.6, 48)]
)
def test_cases(tmp_path: Path, name: str, flash: float, frames: int) -> None:
    shown = made_times.copy_clip(CASES / 'sync' / name, tmp_path / 'out.mp4')
    assert len(shown.times) == frames == decoding.probe(CASES / 'sync' / name).frames
    assert shown.flash == pytest.approx(flash, abs=1e-3)
    assert shown.beep == pytest.approx(shown.flash, abs=TOLERANCE)
    assert shown.end == pytest.approx(frames / 30, abs=1e-3) and shown.sound_end <= shown.end + 0.022


def trim(source: Path, target: Path, first: float) -> None:
    """Copies packets from the key frame before `first` on; an edit list hides those before, as `ffmpeg -ss -c copy`."""
    with av.open(str(source)) as container, av.open(str(target), 'w') as out:
        kept = [container.streams.video[0], container.streams.audio[0]]
        outputs = {stream.index: out.add_stream_from_template(stream) for stream in kept}
        for packet in sorted(
            (packet for packet in container.demux(kept) if packet.size),
            key=lambda packet: packet.dts * packet.time_base,
        ):
            shift = round(first / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = outputs[packet.stream.index]
            out.mux(packet)


def assert_trim_is_in_sync(tmp_path: Path, codec: str, first: float) -> None:
    made_times.write(tmp_path / 'a.mp4', even(30, 45), sounds=[Sound(codec)])
    path = tmp_path / 'b.mp4'
    trim(tmp_path / 'a.mp4', path, first)
    shown = made_times.copy_clip(path, tmp_path / 'out.mp4')
    assert len(shown.times) == 45 - round(first * 30)
    assert shown.flash == pytest.approx(1 - first, abs=1e-3)
    assert shown.beep == pytest.approx(shown.flash, abs=TOLERANCE)
    assert shown.end == pytest.approx(1.5 - first, abs=1e-3)


@pytest.mark.parametrize(('codec', 'first'), [('aac', 0.7), ('pcm_s16le', 0.5)])
def test_lossless_trim(tmp_path: Path, codec: str, first: float) -> None:
    assert_trim_is_in_sync(tmp_path, codec, first)


def test_gap_in_converted_sound_is_silent(tmp_path: Path) -> None:
    """Packets of silence are not stored by some recorders."""
    made_times.write(tmp_path / 'a.mkv', even(30, 45), sounds=[Sound('mp2')])
    path = tmp_path / 'b.mkv'
    with av.open(str(tmp_path / 'a.mkv')) as source, av.open(str(path), 'w') as out:
        outputs = {stream.index: out.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            is_sound = packet.stream.type == 'audio'
            if packet.size and not (is_sound and 0.3 < packet.pts * packet.time_base < 0.6):
                packet.stream = outputs[packet.stream.index]
                out.mux(packet)
    shown = made_times.copy_clip(path, tmp_path / 'out.mp4')
    assert shown.beep == pytest.approx(shown.flash, abs=TOLERANCE)


def test_sound_that_ends_early_or_begins_after_the_end(tmp_path: Path) -> None:
    made_times.write(tmp_path / 'a.mkv', even(30, 45), sounds=[Sound('aac')])
    made_times.write(tmp_path / 'b.mkv', even(30, 20), flash=None, sounds=[])
    made_times.copy_clip(tmp_path / 'b.mkv', tmp_path / 'out.mp4')
    assert audio.copy_audio(tmp_path / 'a.mkv', tmp_path / 'out.mp4')  # longer than the video
    assert made_times.play(tmp_path / 'out.mp4').sound_end == pytest.approx(20 / 30, abs=0.033)
    made_times.write(tmp_path / 'c.mkv', even(30, 60), flash=0.5, sounds=[Sound('aac', 0.4)])
    with av.open(str(tmp_path / 'c.mkv')) as container:
        ends = [frame.time for frame in container.decode(audio=0)]
    assert np.all(np.diff(ends) > 0)
    shown = made_times.copy_clip(tmp_path / 'c.mkv', tmp_path / 'out2.mp4')
    assert shown.beep == pytest.approx(shown.flash, abs=TOLERANCE)
