"""Small generated videos for tests."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from fv_jax.data.video import encoding


def pattern(frames: int, height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    """uint8 FHWC: a smooth coloured pattern that moves to the right, at a position by seed."""
    rng = np.random.default_rng(seed)
    waves = rng.uniform(0.02, 0.08, (3, 2))
    phase = rng.uniform(0, 6, 3)
    y, x = np.mgrid[:height, :width]
    f = np.arange(frames)[:, None, None, None]
    angle = y[None, ..., None] * waves[:, 0] + (x[None, ..., None] - 2 * f) * waves[:, 1] + phase
    return np.rint(127.5 + 90 * np.sin(angle)).astype(np.uint8)


def numbered_frames(frames: int, height: int = 64, width: int = 96) -> np.ndarray:
    """uint8 FHWC: frame f is grey of level 16 + 4 f in the left half, which identifies a decoded frame."""
    video = np.full((frames, height, width, 3), 128, np.uint8)
    video[:, :, : width // 2] = (16 + 4 * np.arange(frames))[:, None, None, None]
    return video


def frame_numbers(frames: np.ndarray) -> list[int]:
    """Reads the numbers of decoded `numbered_frames`."""
    left = frames[:, 8:-8, 8 : frames.shape[2] // 2 - 8].astype(float).mean(axis=(1, 2, 3))
    return [round(float(level)) for level in (left - 16) / 4]


def write_two_shots(path: Path, frames: int = 24, fps: float = 24) -> None:
    """Writes a video of two shots of `frames` frames each."""
    encoding.encode(path, np.concatenate([pattern(frames, seed=1), 255 - pattern(frames, seed=2)]), fps)


def write_with_audio(path: Path, seconds: float = 2.0, video: bool = True, codec: str = 'aac') -> None:
    """Writes a video (or, without video, an audio file) with a sine tone."""
    with av.open(str(path), 'w') as out:
        stream = None
        if video:
            stream = out.add_stream('libx264', rate=24)
            stream.width, stream.height, stream.pix_fmt = 96, 64, 'yuv420p'
        sound = out.add_stream(codec, rate=44100, layout='mono')
        wave = np.sin(np.arange(int(seconds * 44100)) / 20).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(wave, format='fltp', layout='mono')
        frame.rate, frame.pts, frame.time_base = 44100, 0, Fraction(1, 44100)
        if stream is not None:
            for image in pattern(round(seconds * 24)):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format='rgb24')))
            out.mux(stream.encode())
        fifo = av.AudioFifo()
        fifo.write(frame)
        resampler = av.AudioResampler(sound.codec_context.format, 'mono', 44100)
        while (part := fifo.read(1024, partial=True)) is not None:
            for piece in resampler.resample(part):
                out.mux(sound.encode(piece))
        out.mux(sound.encode())


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a / 255.0 - b / 255.0) ** 2)))
