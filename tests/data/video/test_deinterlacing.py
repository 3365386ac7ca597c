"""Interlaced video: no combing, one frame for each frame at its time, or refused."""

import io
import logging
import re
from fractions import Fraction

import av
import numpy as np
import pytest

from fv_jax.data.video import clips, decoding
from fv_jax.data.video.frame import DisplayConfig
from tests.data.video import made_videos
from tests.data.video.made_charts import CASES

CASE = CASES / 'shape' / 'interlaced.mp4'
STEP = 6  # pixels that the bar moves in a frame, half of it in a field


def combing(image: np.ndarray) -> float:
    """How much more neighbouring rows differ than those two apart: positive where two fields are interleaved."""
    grey = image.astype(float).mean(-1)
    return float(np.abs(np.diff(grey, axis=0)).mean() - np.abs(grey[2:] - grey[:-2]).mean() / 2)


def draw_bar(left: int) -> np.ndarray:
    image = np.full((96, 160, 3), 40, np.uint8)
    image[:, left : left + 24] = 220
    return image


def interlaced_frames(count: int, *, top_first: bool) -> list[np.ndarray]:
    """Frames whose second field shows the bar half a step later."""
    frames = []
    for index in range(count):
        first, second = draw_bar(10 + STEP * index), draw_bar(10 + STEP * index + STEP // 2)
        frame = first.copy()
        frame[int(top_first) :: 2] = second[int(top_first) :: 2]
        frames.append(frame)
    return frames


def encode_interlaced(codec: str, container: str, *, top_first: bool, options: dict, count: int = 8, **rest) -> bytes:
    """Encodes frames with 4:2:2 chroma at first, whose rows belong to one field each, and marks their field order."""
    filters = ['setfield=' + ('tff' if top_first else 'bff'), 'scale=interl=1:flags=bilinear', 'format=yuv420p']
    images = interlaced_frames(count, top_first=top_first)
    frames = [made_videos.through(made_videos.to_yuv(image, 5, 'yuv422p'), filters) for image in images]
    return made_videos.encode(frames, codec, container, options=options, **rest)


X264 = {'flags': '+ildct+ilme', 'crf': '6'}
MPEG2 = {'flags': '+ildct+ilme', 'qmax': '3', 'g': '1'}


def bar_position(image: np.ndarray) -> float:
    return float(np.flatnonzero(image.mean((0, 2)) > 130).min())


def test_case_is_shown_without_combing_at_its_times(caplog) -> None:
    caplog.set_level(logging.INFO)
    frames = list(decoding.iter_frames(CASE))
    with av.open(str(CASE)) as container:
        stored = list(container.decode(video=0))
    assert len(frames) == len(stored) == 25
    np.testing.assert_allclose([frame.seconds for frame in frames], np.arange(25) / 25, atol=1e-6)
    before = max(combing(frame.to_ndarray(format='rgb24')) for frame in stored)
    after = max(combing(frame.pixels()) for frame in frames)
    assert before > 3 and after < 0.2, (before, after)
    decoding.probe(CASE)
    assert f'{CASE}: no colour matrix is stated, BT.601 assumed; interlaced, and deinterlaced' in caplog.text


@pytest.mark.parametrize('top_first', [True, False])
@pytest.mark.parametrize('container', ['mp4', 'mpegts', 'matroska'])
def test_h264_of_either_field_order(container, top_first) -> None:
    data = encode_interlaced('libx264', container, top_first=top_first, options=X264)
    video = decoding.decode(data)
    assert len(video.frames) == 8 and max(combing(frame) for frame in video.frames) < 0.5
    # The first field of each frame is shown.
    positions = [bar_position(frame) for frame in video.frames]
    np.testing.assert_allclose(positions, 10 + STEP * np.arange(8), atol=1)


def test_rotation_and_aspect_of_interlaced_video_are_kept() -> None:
    one = 1 << 16
    data = encode_interlaced(
        'libx264',
        'mp4',
        top_first=True,
        options=X264,
        aspect=Fraction(4, 3),
        display_matrix=[0, one, 0, -one, 0, 0, 0, 0, 1 << 30],
    )
    frames = decoding.decode(data).frames
    assert frames.shape[1:] == (214, 96, 3)
    for frame in frames:
        upright = np.rot90(frame)
        assert combing(upright) < 0.5 and upright[:, -4:].max() < 80


def test_progressive_frames_stay_as_they_are() -> None:
    frames = [made_videos.to_yuv(draw_bar(10 + STEP * index), 5) for index in range(6)]
    data = made_videos.encode(frames, options={'crf': '6'})
    with av.open(io.BytesIO(data)) as container:
        stored = [frame.to_ndarray() for frame in container.decode(video=0)]
    shown = [frame.decoded.to_ndarray() for frame in decoding.iter_frames(data)]
    np.testing.assert_array_equal(shown, stored)


@pytest.mark.parametrize('codec', ['libx264', 'mpeg2video'])
def test_video_that_becomes_interlaced_is_deinterlaced_from_there(codec, tmp_path, caplog) -> None:
    """Broadcasts change between the two."""
    caplog.set_level(logging.INFO)
    still = [made_videos.to_yuv(draw_bar(10), 5)] * 5
    options = {'libx264': X264, 'mpeg2video': MPEG2}[codec]
    first = made_videos.encode(still, codec, 'mpegts', options=options | {'flags': '+low_delay'}, rate=25)
    second = encode_interlaced(codec, 'mpegts', top_first=True, options=options, rate=25)
    (tmp_path / 'a.ts').write_bytes(first + second)
    with av.open(str(tmp_path / 'a.ts')) as container:
        stored = list(container.decode(video=0))
    assert not stored[0].interlaced_frame and stored[-1].interlaced_frame
    frames = decoding.decode(tmp_path / 'a.ts').frames
    assert len(frames) == len(stored) >= 13
    assert max(combing(frame.to_ndarray(format='rgb24')) for frame in stored) > 3
    assert max(combing(frame) for frame in frames) < 0.7
    assert re.search(r'a\.ts: interlaced from frame [56] on, and deinterlaced', caplog.text)


def test_refused_by_config(tmp_path) -> None:
    with pytest.raises(ValueError, match=r'interlaced\.mp4: is interlaced, which interlaced=refuse refuses'):
        next(decoding.iter_frames(CASE, display=DisplayConfig(interlaced='refuse')))
    config = clips.ClipsConfig(frames=9, height=64, width=96, interlaced='refuse')
    with pytest.raises(ValueError, match='is interlaced'):
        clips.scan_file(CASE, config, decoding.probe(CASE))
    assert clips.scan_file(CASE, clips.ClipsConfig(frames=9, height=64, width=96), decoding.probe(CASE)).clips
