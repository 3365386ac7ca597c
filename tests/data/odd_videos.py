"""Videos with damage, made by FFmpeg from frames that tests know."""

from pathlib import Path

import av
import numpy as np

from tests.data import sample_videos

HEIGHT, WIDTH, FPS, GOP = 64, 96, 24, 24
# Codec, container: a chain of predicted frames with and without B-frames, and key frames only.
KINDS = (
    ('libx264', 'mp4'),
    ('libx264', 'mkv'),
    ('libvpx-vp9', 'webm'),
    ('mpeg4', 'avi'),
    ('mjpeg', 'mov'),
)


def write(path: Path, codec: str = 'libx264', frames: int = 96, gop: int = GOP) -> np.ndarray:
    """Writes a video whose index comes first, and returns its frames."""
    pixels = sample_videos.pattern(frames, HEIGHT, WIDTH)
    options = {'movflags': 'faststart'} if path.suffix in ('.mp4', '.mov') else {}
    with av.open(str(path), 'w', options=options) as out:
        stream = out.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.gop_size = WIDTH, HEIGHT, gop
        stream.pix_fmt = 'yuvj420p' if codec == 'mjpeg' else 'yuv420p'
        stream.bit_rate = 2_000_000
        for image in pixels:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format='rgb24')))
        out.mux(stream.encode())
    return pixels


def packets(path: Path) -> list[tuple[int, int]]:
    """Returns (position, bytes) of the packets in the order of the file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [(packet.pos, packet.size) for packet in container.demux(stream) if packet.size]


def corrupt(path: Path, packet: int) -> None:
    """Overwrites the content of one packet."""
    position, size = packets(path)[packet]
    data = bytearray(path.read_bytes())
    data[position + 10 : position + size] = np.random.default_rng(0).bytes(size - 10)
    path.write_bytes(data)


def cut_off(path: Path, packet: int) -> None:
    """Removes all that follows the first half of one packet."""
    position, size = packets(path)[packet]
    path.write_bytes(path.read_bytes()[: position + size // 2])
