"""Frames keep the times that they have in their file, whatever its header states; `full_times` tries more files."""

import dataclasses
import logging
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from fv_jax.data.video import clips, decoding, encoding, timing
from fv_jax.data.video.clips import ClipsConfig
from fv_jax.sampling import clips as sampling_clips
from tests.data.video import made_times
from tests.data.video.made_times import CASES, Sound, even

MILLISECONDS = Fraction(1, 1000)
# As browsers and phones record: 15 to 60 frames per second, in steps of a display's 60 Hz.
RECORDED = np.cumsum([0, *np.random.default_rng(0).choice([16, 17, 33, 34, 50, 67], 59)]) / 1000
DROPPED = [time for frame, time in enumerate(even(30, 60)) if frame % 7 or frame == 0]
HELD = [*even(25, 20), *even(25, 20, 2.0)]
CLOCK_WRAPS = 2**33 / 90000
# name -> (times, rate of the header, options of made_times.write, resampled fps)
MADE = {
    'live.webm': (RECORDED, {'codec': 'libvpx', 'time_base': MILLISECONDS, 'options': {'live': '1'}}, 29.97),
    'recorded.mkv': (RECORDED, {'time_base': MILLISECONDS}, 29.97),
    'recorded.mp4': (RECORDED, {}, 29.97),
    'fragments.mp4': (RECORDED, {'options': {'movflags': 'frag_keyframe+empty_moov'}}, 29.97),
    'recorded.flv': (RECORDED, {'time_base': MILLISECONDS}, 29.97),
    'dropped.ts': (DROPPED, {}, 30),
    'held.mov': (HELD, {}, 25),
}


CONSTANT = (
    ('a.mkv', Fraction(24000, 1001), {'time_base': MILLISECONDS}),
    ('a.mkv', Fraction(30000, 1001), {'time_base': MILLISECONDS, 'rate': 30}),  # the header is wrong
    ('a.mp4', Fraction(60000, 1001), {}),
    ('a.mkv', Fraction(240), {'time_base': MILLISECONDS}),
    ('a.mp4', Fraction(15, 2), {}),
    ('a.flv', Fraction(25), {'time_base': MILLISECONDS}),
    ('a.gif', Fraction(25), {'time_base': Fraction(1, 100), 'codec': 'gif', 'pix_fmt': 'rgb8'}),
    ('b.gif', Fraction(30), {'time_base': Fraction(1, 100), 'codec': 'gif', 'pix_fmt': 'rgb8'}),
    ('a.avi', Fraction(25), {'time_base': Fraction(1, 25), 'codec': 'mpeg4', 'rate': 25, 'encoder': {'bf': '2'}}),
    ('a.h264', Fraction(24), {'time_base': Fraction(1, 24), 'rate': 24}),
    ('a.mp4', Fraction(30), {'options': {'movflags': 'frag_keyframe+empty_moov'}}),
)


def frame_times(path: Path) -> np.ndarray:
    return np.array([frame.seconds for frame in decoding.iter_frames(path)])


def shown_at(times: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Returns the frame that a player shows at each time."""
    return np.searchsorted(times, seconds + 1e-6, side='right') - 1


def assert_times_are_kept(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    times, options, fps = MADE[name]
    path = tmp_path / name
    made_times.write(
        path, times, flash=times[30], sounds=[Sound('libopus' if name.endswith('webm') else 'aac')], **options
    )
    info = decoding.probe(path)
    assert not info.is_constant and info.frames == len(times)
    assert float(info.fps) == pytest.approx((len(times) - 1) / times[-1], rel=1e-3)
    np.testing.assert_allclose(frame_times(path), times, atol=6e-4)
    # Enhanced: the frames at their times.
    out = made_times.copy_clip(path, tmp_path / 'out.mp4')
    np.testing.assert_allclose(out.times, times, atol=6e-4)
    assert out.flash == pytest.approx(times[30], abs=6e-4) and out.beep == pytest.approx(out.flash, abs=5e-3)
    assert out.end - times[-1] < 0.1
    # Decoded: at a constant rate.
    caplog.set_level(logging.INFO)
    video = decoding.decode(path)
    assert video.fps == pytest.approx(fps, abs=1e-2)
    assert (
        caplog.messages[-1]
        == f'note: {path}: variable frame rate, resampled by time to {video.fps:g} frames per second'
    )
    assert abs(len(video.frames) / video.fps - times[-1]) < 0.1
    shown = made_times.numbers(video.frames)
    at = np.arange(len(shown)) / video.fps
    half = 0.5 / video.fps + timing.TIE
    firsts, lasts = (shown_at(times, np.clip(at + shift, 0, times[-1])) for shift in (-half, half))
    for number, first, last in zip(shown, firsts, lasts, strict=True):
        assert number in [-1 if frame >= 30 else frame % 24 for frame in range(first, last + 1)]
    assert decoding.decode(path, max_frames=7).frames.shape[0] == 7
    np.testing.assert_array_equal(decoding.decode(path, max_frames=7).frames, video.frames[:7])


@pytest.mark.parametrize('name', ['live.webm', 'held.mov'])
def test_variable_frame_rate(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert_times_are_kept(tmp_path, name, caplog)


def test_browser_recording_without_rate_or_duration(tmp_path: Path) -> None:
    path = CASES / 'time' / 'browser.webm'
    source = made_times.play(path)
    assert decoding.probe(path).frames == 90
    out = made_times.copy_clip(path, tmp_path / 'out.mp4')
    np.testing.assert_allclose(out.times, source.times, atol=1e-4)
    assert out.end == pytest.approx(3.60, abs=0.034) and out.sound_end == pytest.approx(3.60, abs=0.034)
    assert out.beep == pytest.approx(out.flash, abs=5e-3)
    video = decoding.decode(path)
    assert len(video.frames) / video.fps == pytest.approx(3.60, abs=1 / 30)


def test_frames_that_are_stored_in_the_order_of_decoding(tmp_path: Path) -> None:
    path = CASES / 'time' / 'h264_bframes.avi'
    info = decoding.probe(path)
    assert (info.fps, info.frames, info.is_constant) == (30, 90, True)
    video = decoding.decode(path)
    assert video.fps == 30 and len(video.frames) == 90
    np.testing.assert_allclose(frame_times(path), even(30, 90), atol=1e-6)
    assert int(np.argmax(video.frames.mean((1, 2, 3)) > 200)) == 60
    out = made_times.copy_clip(path, tmp_path / 'out.mp4')
    np.testing.assert_allclose(out.times, even(30, 90), atol=1e-4)
    assert out.end == pytest.approx(3.0, abs=1e-3) and out.flash == pytest.approx(2.0, abs=1e-3)


def test_phone_video_of_two_rates(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = CASES / 'time' / 'vfr.mp4'
    times = [*even(30, 60), *even(10, 20, 2.0)]
    out = made_times.copy_clip(path, tmp_path / 'out.mp4')
    np.testing.assert_allclose(out.times, times, atol=1e-4)
    assert out.end == pytest.approx(4.0, abs=1e-3) and out.flash == pytest.approx(3.0, abs=1e-4)
    assert out.beep == pytest.approx(3.0, abs=5e-3)
    # The clips of `prepare` have the rate that they say.
    caplog.set_level(logging.INFO)
    config = ClipsConfig(frames=15, height=32, width=48, detector='none', margin=0, crf=4, preset='ultrafast')
    selection = clips.scan_file(path, config, decoding.probe(path))
    average = 'variable frame rate, 20.26 per second on average'
    resampled = 'its clips are resampled by time to fps=30, the rate of most of its frames'
    assert f'note: {path}: {average}; {resampled}' in caplog.messages
    records = list(clips.extract_clips(path, selection, config))
    assert [record['fps'] for record in records] == [30.0] * 7  # 3.9 s
    video = np.concatenate([decoding.decode(record['video']).frames for record in records])
    assert int(np.argmax(video.mean((1, 2, 3)) > 200)) == 90  # 3.0 s
    assert decoding.decode(records[0]['video']).fps == 30
    # With a rate of the config there is nothing to say.
    caplog.clear()
    selection = clips.scan_file(path, dataclasses.replace(config, fps=10.0), decoding.probe(path))
    assert selection.fps == 10 and not [message for message in caplog.messages if 'rate' in message]


def test_clip_in_memory_is_saved_with_the_times_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / 'a.mp4'
    made_times.write(path, HELD, flash=None)
    clip = sampling_clips.open_clip(path, decoding.probe(path))
    data = encoding.encode_bytes(clip.frames(), clip.fps, times=clip.times())
    (tmp_path / 'out.mp4').write_bytes(data)
    np.testing.assert_allclose(made_times.play(tmp_path / 'out.mp4').times, HELD, atol=1e-4)
    made_times.write(path, even(25, 20), flash=None)
    assert sampling_clips.open_clip(path, decoding.probe(path)).times is None


def assert_rate_is_kept(tmp_path: Path, name: str, fps: Fraction, options: dict) -> None:
    path = tmp_path / name
    made_times.write(path, even(fps, 60), flash=None, **options)
    info = decoding.probe(path)
    assert (info.fps, info.frames) == (fps, 60)
    video = decoding.decode(path)
    assert video.fps == float(fps) and made_times.numbers(video.frames) == [number % 24 for number in range(60)]
    out = made_times.copy_clip(path, tmp_path / 'out.mp4')
    np.testing.assert_allclose(out.times, even(fps, 60), atol=0.25 / fps)


@pytest.mark.parametrize('index', [1, 6, 8])
def test_constant_rates_are_kept(tmp_path: Path, index: int) -> None:
    assert_rate_is_kept(tmp_path, *CONSTANT[index])


def test_clock_of_mpeg_ts_wraps(tmp_path: Path) -> None:
    first = CLOCK_WRAPS - 1
    path = tmp_path / 'a.ts'
    made_times.write(path, even(30, 60, first), flash=first + 1.5, sounds=[Sound(start=first)])
    np.testing.assert_allclose(frame_times(path), even(30, 60), atol=1e-4)
    out = made_times.copy_clip(path, tmp_path / 'out.mp4')
    np.testing.assert_allclose(out.times, even(30, 60), atol=1e-4)
    assert out.flash == pytest.approx(1.5, abs=1e-3) and out.beep == pytest.approx(1.5, abs=5e-3)


def test_clock_that_jumps_back_where_recordings_were_joined(tmp_path: Path) -> None:
    path = tmp_path / 'a.ts'
    made_times.write(path, even(30, 60), flash=None, sounds=[Sound()])
    path.write_bytes(path.read_bytes() * 2)
    info = decoding.probe(path)
    assert (info.fps, info.frames, info.is_constant) == (30, 120, True)
    np.testing.assert_allclose(frame_times(path), even(30, 120), atol=1e-4)
    out = made_times.copy_clip(path, tmp_path / 'out.mp4')
    assert out.end == pytest.approx(4.0, abs=1e-3) and out.sound_end == pytest.approx(4.0, abs=0.05)


def test_mp4_without_times_of_presentation(tmp_path: Path) -> None:
    """Some writers store the order of decoding only, although there are B-frames."""
    made_times.write(
        tmp_path / 'a.mp4', even(30, 60), flash=None, encoder={'x264-params': 'b-adapt=0:bframes=2:scenecut=0'}
    )
    path = tmp_path / 'b.mp4'
    with av.open(str(tmp_path / 'a.mp4')) as source, av.open(str(path), 'w') as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        assert [packet.pts for packet in packets] != sorted(packet.pts for packet in packets)
        shift = -packets[0].dts
        for packet in packets:
            packet.pts = packet.dts = packet.dts + shift
            packet.stream = stream
            out.mux(packet)
    np.testing.assert_allclose(frame_times(path), even(30, 60), atol=1e-4)
    assert made_times.numbers(decoding.decode(path).frames) == [number % 24 for number in range(60)]


@pytest.mark.parametrize('count', [0, 7, 5000])
def test_wrong_frame_count_and_rate_of_the_header(tmp_path: Path, count: int) -> None:
    path = tmp_path / 'a.avi'
    made_times.write(path, even(25, 60), flash=None, codec='mpeg4', time_base=Fraction(1, 25), rate=25)
    data = bytearray(path.read_bytes())
    header = data.index(b'avih') + 8
    data[header : header + 4] = (123456).to_bytes(4, 'little')  # microseconds per frame
    data[header + 16 : header + 20] = count.to_bytes(4, 'little')
    length = data.index(b'strh') + 8 + 32
    data[length : length + 4] = count.to_bytes(4, 'little')
    path.write_bytes(data)
    info = decoding.probe(path)
    assert (info.fps, info.frames) == (25, 60)
    assert made_times.numbers(decoding.decode(path).frames) == [number % 24 for number in range(60)]


def test_frames_that_are_hours_apart_have_a_rate() -> None:
    assert float(timing.measure([0.0, 7200.0, 14000.0], []).fps) == pytest.approx(1 / 7000)


@pytest.mark.parametrize('frames', [1, 2, 3])
def test_few_frames(tmp_path: Path, frames: int) -> None:
    path = tmp_path / 'a.mp4'
    made_times.write(path, even(30, frames), flash=None)
    assert decoding.probe(path).fps == 30
    out = made_times.copy_clip(path, tmp_path / 'out.mp4')
    assert out.end == pytest.approx(frames / 30, abs=1e-3)
    assert decoding.decode(path).fps == 30


def test_measured_rate() -> None:
    jitter = np.random.default_rng(0).uniform(-1, 1, 100)
    constant = np.arange(100) / 30
    assert timing.measure(constant, [Fraction(60), Fraction(30)]).fps == 30
    rounded = timing.measure(np.round(constant, 3), [])
    assert (rounded.fps, rounded.is_constant, rounded.is_even) == (30, True, True)
    uneven = timing.measure(constant + 0.006 * jitter, [])
    assert (uneven.fps, uneven.is_constant, uneven.is_even) == (30, False, True)
    assert timing.measure(np.arange(5) * 0.04, [Fraction(30)]).fps == 25
    odd = timing.measure(np.arange(50) / 13.7, [])
    assert float(odd.fps) == pytest.approx(13.7, rel=1e-4) and odd.is_constant
    assert timing.measure([0.0], [None, Fraction(24)]).fps == 24
    slow = timing.measure([0, 5, 10, 15, 21], [])
    assert float(slow.usual_fps) == pytest.approx(0.2, rel=0.1)


def test_frame_is_shown_until_the_next_one_begins() -> None:
    seconds = np.array([0, 0.1, 0.2, 0.9, 1.0])
    shown = timing.nearest_frames(seconds, np.arange(11) / 10)
    assert shown.tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 2, 3, 4]
    assert timing.nearest_frames(seconds, np.arange(5) / 4).tolist() == [0, 2, 2, 2, 4]
    assert list(timing.durations([(0, 1), (0.5, 1), (1.5, 0.25)])) == [(0, 0.5), (0.5, 1.0), (1.5, 0.25)]
    assert list(timing.durations([(0, 0), (0.5, 0)])) == [(0, 0.5), (0.5, 0.5)]


@pytest.mark.parametrize(('codec', 'dtype'), [('h264', np.uint8), ('hevc10', np.float32)])
def test_encoded_times(tmp_path: Path, codec: str, dtype: type) -> None:
    frames = np.zeros((4, 64, 96, 3), dtype)
    times = [(0.0, 0.5), (0.5, 0.01), (0.51, 0.99), (1.5, 2.0)]
    encoding.encode(tmp_path / 'a.mp4', iter(frames), 2, times=iter(times), codec=codec)
    with av.open(str(tmp_path / 'a.mp4')) as container:
        shown = [(frame.time, frame.duration / 90000) for frame in container.decode(video=0)]
        assert container.duration == pytest.approx(3.5e6, abs=2000)
    np.testing.assert_allclose(shown, times, atol=1e-4)
