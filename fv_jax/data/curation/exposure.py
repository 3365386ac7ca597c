"""Black, white and grey: brightness, the shares of black and white frames, and colorfulness."""

import numpy as np

BLACK, WHITE = 6.0, 249.0  # mean levels (of 255) below and above which a frame counts as black or white


def brightness(frames_FHW: np.ndarray) -> float:
    """Computes the mean luma, in 8-bit levels; frames_FHW: uint8."""
    return float(frames_FHW.mean())


def black_share(frames_FHW: np.ndarray) -> float:
    """Computes the share of black frames; frames_FHW: luma, uint8."""
    return float((frames_FHW.mean(axis=(1, 2)) < BLACK).mean())


def white_share(frames_FHW: np.ndarray) -> float:
    """Computes the share of white frames; frames_FHW: luma, uint8."""
    return float((frames_FHW.mean(axis=(1, 2)) > WHITE).mean())


def colorfulness(frames_FHWC: np.ndarray) -> float:
    """Computes the colorfulness of Hasler and Suesstrunk (2003), the mean over frames.

    0 is black and white, 15 slightly colorful, 45 quite, 80 extremely.

    Args:
      frames_FHWC: uint8 RGB.
    """
    red, green, blue = np.moveaxis(frames_FHWC.astype(np.float32), -1, 0)
    first, second = red - green, (red + green) / 2 - blue
    axes = (1, 2)
    deviation = np.hypot(first.std(axis=axes), second.std(axis=axes))
    offset = np.hypot(first.mean(axis=axes), second.mean(axis=axes))
    return float((deviation + 0.3 * offset).mean())
