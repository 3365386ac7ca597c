"""HEVC of 10 bits: the codes of BT.709, without a detour over 8 bits, and a file that players accept."""

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from fv_jax.data.transforms import to_float, to_uint8
from fv_jax.data.video import audio, decoding, encoding, ten_bits
from tests.data import sample_videos


def planes(frame: av.VideoFrame) -> list[np.ndarray]:
    return [np.frombuffer(p, '<u2').reshape(p.height, -1)[:, : p.width].astype(int) for p in frame.planes]


@pytest.mark.parametrize(
    ('rgb', 'codes'),
    [  # ITU-R BT.709-6, 4.6 and table 3 of BT.2111 for the bars of 100 %
        ((0, 0, 0), (64, 512, 512)),
        ((1, 1, 1), (940, 512, 512)),
        ((1, 0, 0), (250, 409, 960)),
        ((0, 1, 0), (691, 167, 105)),
        ((0, 0, 1), (127, 960, 471)),
        ((1, 1, 0), (877, 64, 553)),
    ],
)
def test_codes_of_bt709(rgb, codes):
    frame = np.broadcast_to(np.float32(rgb) * 2 - 1, (8, 12, 3)).astype(np.float32)
    for plane, code in zip(planes(ten_bits.to_yuv(frame)), codes, strict=True):
        assert (plane == code).all()


def test_frames_are_not_rounded_to_8_bits():
    """A ramp over three levels of 8 bits has eleven codes."""
    ramp = np.broadcast_to(
        np.linspace(128 / 127.5 - 1, 131 / 127.5 - 1, 96, dtype=np.float32)[:, None], (8, 96, 3)
    ).copy()
    assert len(np.unique(planes(ten_bits.to_yuv(ramp))[0])) == 11
    assert len(np.unique(planes(ten_bits.to_yuv(to_float(to_uint8(ramp))))[0])) == 4


def test_chroma_has_the_position_of_every_second_sample_of_luma():
    """A ramp along the rows, and one along the columns."""
    x = np.linspace(-1, 1, 64, dtype=np.float32)
    across, down = np.zeros((16, 64, 3), np.float32), np.zeros((64, 16, 3), np.float32)
    across[..., 2], down[..., 2] = x, x[:, None]
    wanted = 512 + 448 * (1 - 0.0722) / 1.8556 * x
    np.testing.assert_allclose(planes(ten_bits.to_yuv(across))[1][0, 1:], wanted[2::2], atol=0.51)
    np.testing.assert_allclose(planes(ten_bits.to_yuv(down))[1][:, 4], (wanted[::2] + wanted[1::2]) / 2, atol=0.51)


def test_encode_hevc_of_10_bits(tmp_path):
    video, path = sample_videos.pattern(5), tmp_path / 'a.mp4'
    encoding.encode(path, to_float(video), 24, crf=8, comment='made by', codec='hevc10')
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.codec_tag, stream.format.name) == ('hevc', 'hvc1', 'yuv420p10le')
        assert container.metadata['comment'] == 'made by'
        frame = next(container.decode(stream))
        assert (frame.colorspace, frame.color_range) == (Colorspace.ITU709, ColorRange.MPEG)
        assert (frame.color_primaries, frame.color_trc) == (ColorPrimaries.BT709, ColorTrc.BT709)
    assert sample_videos.psnr(decoding.decode(path).frames, video) > 38
    sample_videos.write_with_audio(tmp_path / 'sound.mp4', 1.0)
    assert audio.copy_audio(tmp_path / 'sound.mp4', path)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.codec_tag == 'hvc1'


def test_encode_of_10_bits_takes_floats(tmp_path):
    with pytest.raises(ValueError, match=r'frame 0: expected float32 \(H, W, 3\), got uint8'):
        encoding.encode(tmp_path / 'a.mp4', sample_videos.pattern(1), 24, codec='hevc10')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('size', [(32, 96), (200, 62)])
def test_frames_smaller_than_the_blocks_of_x265_are_refused(tmp_path, size):
    with pytest.raises(ValueError, match=r'HEVC needs 64 pixels along both sides; choose h264'):
        encoding.encode(tmp_path / 'a.mp4', np.zeros((4, *size, 3), np.float32), 24, codec='hevc10')
    assert not list(tmp_path.iterdir())
