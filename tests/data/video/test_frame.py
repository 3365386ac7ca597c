import io

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace

from fv_jax.data.video import decoding, encoding
from tests.data import sample_videos


def test_colour_matrix_is_stored_and_otherwise_assumed_by_height() -> None:
    with av.open(io.BytesIO(encoding.encode_bytes(sample_videos.pattern(1), 24))) as container:
        assert next(container.decode(video=0)).colorspace == Colorspace.ITU709
    red = np.zeros((1, 64, 96, 3), np.uint8) + np.array([200, 30, 30], np.uint8)
    for height, matrix in ((64, Colorspace.ITU601), (720, Colorspace.ITU709)):
        buffer = io.BytesIO()
        with av.open(buffer, 'w', format='mp4') as out:
            stream = out.add_stream('libx264', rate=24, options={'crf': '1'})
            stream.width, stream.height, stream.pix_fmt = 96, height, 'yuv420p'
            frame = np.broadcast_to(red[0, :1], (height, 96, 3))
            yuv = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format='rgb24')
            out.mux(stream.encode(yuv.reformat(format='yuv420p', dst_colorspace=matrix)))
            out.mux(stream.encode())
        decoded = decoding.decode(buffer.getvalue()).frames
        np.testing.assert_allclose(decoded.mean((0, 1, 2)), [200, 30, 30], atol=2.5)


@pytest.mark.parametrize('degrees', [90, 180, 270])
def test_rotation_is_applied(degrees: int) -> None:
    upright = sample_videos.pattern(1, 64, 96)
    upright[:, :32, :32] = 255  # a mark at the top left
    # A camera held on its side stores rotated frames and the rotation.
    stored = np.ascontiguousarray(np.rot90(upright[0], -degrees // 90))
    buffer = io.BytesIO()
    with av.open(buffer, 'w', format='mp4') as out:
        stream = out.add_stream('libx264', rate=24, options={'crf': '4'})
        stream.height, stream.width, stream.pix_fmt = *stored.shape[:2], 'yuv420p'
        stream.set_display_rotation(degrees)
        out.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format='rgb24')))
        out.mux(stream.encode())
    info = decoding.probe(buffer.getvalue())
    assert (info.height, info.width, info.rotation) == (64, 96, degrees)
    assert sample_videos.psnr(decoding.decode(buffer.getvalue()).frames, upright) > 30
    (frame,) = decoding.iter_frames(buffer.getvalue())
    assert frame.pixels((32, 48)).shape == (32, 48, 3)
