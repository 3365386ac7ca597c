"""The perceptual hash of a clip: three frames of it, 64 bits each.

A frame is shrunk to 32x32, transformed (DCT-II), and of the lowest 8x8 frequencies, without those of index 0 in both
directions, each bit states whether a coefficient is above the median of all (Zauner 2010). Scaling, another codec,
brightness and contrast change few bits; other content changes half of them. A frame without contrast has no hash.
"""

import cv2
import numpy as np

FRAMES = 3
BITS = 64
_SIDE, _LOW = 32, 8
_CONTRAST = 4.0  # levels: standard deviation below which a frame counts as one colour


def perceptual_hash(frames_FHW: np.ndarray) -> str:
    """Computes the hash of a clip.

    Args:
      frames_FHW: luma, uint8, all frames; they may be shrunk.

    Returns:
      48 hexadecimal digits; '' if one of the frames has no contrast.
    """
    places = (np.arange(FRAMES) + 0.5) / FRAMES * len(frames_FHW)
    hashes = [_hash_frame(frames_FHW[int(place)]) for place in places]
    return '' if None in hashes else ''.join(hashes)


def _hash_frame(frame_HW: np.ndarray) -> str | None:
    tiny = cv2.resize(frame_HW, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    if tiny.std() < _CONTRAST:
        return None
    low = cv2.dct(tiny)[: _LOW + 1, : _LOW + 1]
    values = low[1:, 1:].ravel()
    return np.packbits(values > np.median(values)).tobytes().hex()


def parse_hashes(hashes: list[str]) -> np.ndarray:
    """Parses hashes that are not empty to uint64 (n, 3)."""
    return np.frombuffer(bytes.fromhex(''.join(hashes)), '>u8').astype(np.uint64).reshape(-1, FRAMES)
