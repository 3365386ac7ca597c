"""Pixels that are not square, display matrices, transparent video."""

import io
import logging
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from fv_jax.data.video import clips, decoding, encoding
from fv_jax.data.video.display import Orientation
from fv_jax.data.video.frame import Frame
from tests.data.video import made_videos
from tests.data.video.made_charts import CASES, draw_chart, find_mark

SHAPE = CASES / 'shape'
ONE, W = 1 << 16, 1 << 30  # FFmpeg's fixed point of a display matrix


def diameters(image: np.ndarray) -> tuple[int, int]:
    """The height and the width of a bright circle, in pixels."""
    bright = image.mean(-1) > 128
    return int(bright.any(1).sum()), int(bright.any(0).sum())


def draw_circle(height: int, width: int, aspect: Fraction) -> np.ndarray:
    """uint8 RGB: a circle as pixels of this aspect ratio show it."""
    y, x = np.mgrid[:height, :width] + 0.5
    radius = 0.4 * min(height, width * float(aspect))
    inside = np.hypot(y - height / 2, (x - width / 2) * float(aspect)) < radius
    return np.where(inside[..., None], 235, 16).astype(np.uint8).repeat(3, -1)


def test_circle_of_the_case_is_round(caplog) -> None:
    caplog.set_level(logging.INFO)
    path = SHAPE / 'sar_32_27.mp4'
    info = decoding.probe(path)
    assert (info.height, info.width) == (480, 854)
    assert f'{path}: ' in caplog.text and 'pixels of 32/27, shown with square ones as 480x854' in caplog.text
    frames = decoding.decode(path, max_frames=2).frames
    assert frames.shape == (2, 480, 854, 3)
    height, width = diameters(frames[1])
    assert abs(height / width - 1) < 0.01


@pytest.mark.parametrize(
    ('container', 'codec', 'aspect', 'shown'),
    [
        ('mp4', 'libx264', Fraction(16, 11), (288, 512)),
        ('matroska', 'libx264', Fraction(12, 11), (288, 384)),
        ('mpegts', 'mpeg2video', Fraction(16, 11), (288, 512)),
        ('mp4', 'mpeg4', Fraction(10, 11), (316, 352)),
        ('avi', 'libx264', Fraction(1, 2), (576, 352)),
        ('mp4', 'libx264', Fraction(1001, 1000), (288, 352)),
    ],
)
def test_circle_is_round_for_any_aspect(container, codec, aspect, shown) -> None:
    yuv = made_videos.to_yuv(draw_circle(288, 352, aspect), 5)
    data = made_videos.encode([yuv] * 3, codec, container, aspect=aspect)
    info, frames = decoding.probe(data), decoding.decode(data).frames
    assert (info.height, info.width) == frames.shape[1:3] == shown
    assert info.height % 2 == info.width % 2 == 0
    height, width = diameters(frames[0])
    assert abs(height / width - 1) < 0.01
    (first, *_) = decoding.iter_frames(data)
    assert first.pixels((36, 44)).shape == (36, 44, 3)


def test_clips_of_prepare_have_square_pixels(tmp_path) -> None:
    yuv = made_videos.to_yuv(draw_circle(144, 176, Fraction(16, 11)), 5)
    (tmp_path / 'a.mp4').write_bytes(made_videos.encode([yuv] * 9, aspect=Fraction(16, 11)))
    config = clips.ClipsConfig(frames=9, height=144, width=256, detector='none')
    selection = clips.scan_file(tmp_path / 'a.mp4', config, decoding.probe(tmp_path / 'a.mp4'))
    (record,) = clips.extract_clips(tmp_path / 'a.mp4', selection, config)
    height, width = diameters(decoding.decode(record['video']).frames[4])
    assert abs(height / width - 1) < 0.015


@pytest.mark.parametrize('codec', ['libx264', 'mpeg2video'])
def test_aspect_that_changes_is_followed(codec, tmp_path) -> None:
    """Broadcasts change between 4:3 and 16:9."""
    yuv, aspects = made_videos.to_yuv(draw_chart(288, 352), 5), (Fraction(16, 11), Fraction(12, 11))
    parts = [made_videos.encode([yuv] * 6, codec, 'mpegts', aspect=aspect, options={'g': '1'}) for aspect in aspects]
    (tmp_path / 'a.ts').write_bytes(b''.join(parts))
    info = decoding.probe(tmp_path / 'a.ts')
    assert (info.height, info.width) == (288, 512)
    widths = [frame.pixels().shape[1] for frame in decoding.iter_frames(tmp_path / 'a.ts')]
    assert widths[:5] == [512] * 5 and widths[6:] == [384] * 6
    with pytest.raises(ValueError, match=r'a\.ts: frame [56] is 288x384, the ones before 288x512'):
        decoding.decode(tmp_path / 'a.ts')


@pytest.mark.parametrize('aspect', [Fraction(20), Fraction(1, 30)])
def test_impossible_aspect_is_refused(aspect, tmp_path) -> None:
    yuv = made_videos.to_yuv(draw_chart(64, 96), 5)
    (tmp_path / 'a.mp4').write_bytes(made_videos.encode([yuv], aspect=aspect))
    with pytest.raises(ValueError, match=r'a\.mp4: states pixels of '):
        decoding.probe(tmp_path / 'a.mp4')


def test_mark_of_the_cases() -> None:
    (plain,) = decoding.decode(SHAPE / 'plain.mp4', 1).frames
    (mirrored,) = decoding.decode(SHAPE / 'hflip.mp4', 1).frames
    assert find_mark(plain) == ('upper', 'left') and find_mark(mirrored) == ('upper', 'right')
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])
    assert decoding.probe(SHAPE / 'hflip.mp4').rotation == 0


# (a, b, c, d) of the display matrix, and what it does to an image: each as a rotation of it, mirrored or not.
MATRICES = {
    (1, 0, 0, 1): lambda x: x,
    (0, 1, -1, 0): lambda x: np.rot90(x, -1),
    (-1, 0, 0, -1): lambda x: np.rot90(x, 2),
    (0, -1, 1, 0): lambda x: np.rot90(x),
    (-1, 0, 0, 1): lambda x: x[:, ::-1],
    (1, 0, 0, -1): lambda x: x[::-1],
    (0, 1, 1, 0): lambda x: x.swapaxes(0, 1),
    (0, -1, -1, 0): lambda x: np.rot90(x.swapaxes(0, 1), 2),
}


@pytest.mark.parametrize('terms', list(MATRICES))
@pytest.mark.parametrize('aspect', [None, Fraction(4, 3)])
def test_display_matrix_of_every_kind(terms, aspect) -> None:
    """FFmpeg's numbers: (x, y) is shown at (a x + c y, b x + d y)."""
    upright = np.full((64, 96, 3), 100, np.uint8)
    upright[:24, :24], upright[40:, :24] = 255, (200, 30, 30)
    a, b, c, d = terms
    matrix = [a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, W]
    yuv = made_videos.to_yuv(upright, 5)
    data = made_videos.encode([yuv] * 2, options={'crf': '4'}, display_matrix=matrix, aspect=aspect)
    plain = made_videos.encode([yuv] * 2, options={'crf': '4'}, aspect=aspect)
    shown, expected = decoding.decode(data).frames[0], MATRICES[terms](decoding.decode(plain).frames[0])
    np.testing.assert_array_equal(shown, expected)
    info = decoding.probe(data)
    assert (info.height, info.width) == shown.shape[:2]
    turned = np.rot90(np.arange(6).reshape(2, 3), info.rotation // 90)
    shown_small = MATRICES[terms](np.arange(6).reshape(2, 3))
    assert any(np.array_equal(x, shown_small) for x in (turned, turned[:, ::-1]))


def test_rotation_by_other_angles_is_refused(tmp_path) -> None:
    with io.BytesIO() as buffer:
        with av.open(buffer, 'w', format='mp4') as out:
            stream = out.add_stream('libx264', rate=24)
            stream.width, stream.height, stream.pix_fmt = 96, 64, 'yuv420p'
            stream.set_display_rotation(30)
            out.mux(stream.encode(made_videos.to_yuv(draw_chart(64, 96), 5)))
            out.mux(stream.encode())
        (tmp_path / 'a.mp4').write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r'a\.mp4: is shown rotated by -?30 degrees; only multiples of 90'):
        decoding.decode(tmp_path / 'a.mp4')


def test_orientation_of_sizes() -> None:
    assert Orientation(transposed=True).size(2, 3) == (3, 2) and Orientation(flipped=True).size(2, 3) == (2, 3)


@pytest.mark.parametrize('pixels', ['bgra', 'yuva444p', 'yuva444p10le'])
def test_transparent_video_is_shown_on_white(pixels) -> None:
    rgba = np.dstack([draw_chart(64, 96), np.where(np.arange(96) < 48, 255, 0).astype(np.uint8)[None].repeat(64, 0)])
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgba), format='rgba').reformat(format=pixels)
    (shown,) = decoding.decode(made_videos.encode([frame], 'ffv1', 'matroska')).frames
    np.testing.assert_allclose(shown[:, :48].astype(int), draw_chart(64, 96)[:, :48], atol=0 if pixels == 'bgra' else 3)
    assert (shown[:, 48:] == 255).all()


def test_transparent_gif_is_shown_on_white() -> None:
    buffer = io.BytesIO()
    image = Image.fromarray(np.where(np.arange(96) < 48, 1, 0).astype(np.uint8)[None].repeat(64, 0), 'P')
    image.putpalette([9, 9, 9, 200, 30, 30])
    image.save(buffer, 'gif', transparency=0, save_all=True, append_images=[image])
    frames = decoding.decode(buffer.getvalue()).frames
    assert (frames[:, :, :48] == (200, 30, 30)).all() and (frames[:, :, 48:] == 255).all()


def test_formats_that_the_scaler_does_not_convert_name_the_file() -> None:
    with pytest.raises(ValueError, match=r'^a\.mov: its frames, y210be, cannot be converted to RGB: '):
        Frame('a.mov', 0.0, av.VideoFrame(96, 64, 'y210be')).pixels()
    for wrong in ('rgb555be', 'yaf32le'):
        with pytest.raises(ValueError, match=rf'^a\.mov: its pixel format, {wrong}, is not supported'):
            Frame('a.mov', 0.0, av.VideoFrame(96, 64, wrong)).pixels()


def test_own_videos_are_shown_without_conversion(caplog, tmp_path) -> None:
    caplog.set_level(logging.INFO)
    encoding.encode(tmp_path / 'a.mp4', [draw_chart(64, 96)] * 2, 24)
    decoding.probe(tmp_path / 'a.mp4')
    decoding.decode(tmp_path / 'a.mp4')
    assert not caplog.text
