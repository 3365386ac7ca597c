"""Converts wide gamuts and high dynamic range (PQ, HLG) to BT.709 of standard dynamic range.

Light is computed as displays emit it, in units of SDR white, which is the reference white of HDR, 203 cd/m2
(ITU-R BT.2408, 2.1). The steps are those of FFmpeg's `zscale=t=linear:npl=203, zscale=p=bt709,
tonemap=mobius:param=0.8:desat=0, zscale=t=bt709`: light below 0.8 of white keeps its level, and only what is brighter
is compressed, by the same curve in every frame, so that brightness does not change from frame to frame.
"""

import functools
from collections.abc import Callable

import numpy as np

from fv_jax.data.video.colours import Colours

WHITE = 203.0  # cd/m2
HLG_PEAK = 1000.0  # cd/m2, of the display that system gamma 1.2 is for (BT.2100, table 5)
KNEE = 0.8  # of white

# Chromaticities x, y of red, green and blue: BT.709, BT.2020, SMPTE EG 432-1; white is D65 in all of them.
CHROMATICITIES = {
    '': ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)),
    'BT.2020': ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    'Display P3': ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
_D65 = (0.3127, 0.3290)
_LUMA_2020 = (0.2627, 0.6780, 0.0593)
_ROWS = 32  # converted at a time: their light fits in the processor's cache
_STEPS = 65535


def pq_eotf(signal: np.ndarray) -> np.ndarray:
    """Computes the luminance in cd/m2 of PQ signals 0 to 1 (SMPTE ST 2084; BT.2100, table 4)."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = np.power(signal, 1 / m2)
    return 10000 * np.power(np.maximum(power - c1, 0) / (c2 - c3 * power), 1 / m1)


def hlg_inverse_oetf(signal: np.ndarray) -> np.ndarray:
    """Computes the scene light 0 to 1 of HLG signals 0 to 1 (BT.2100, table 5)."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def bt1886_eotf(signal: np.ndarray) -> np.ndarray:
    """Computes the light of SDR signals, both relative to white (BT.1886, with a black of no light)."""
    return np.power(signal, 2.4)


def compress_highlights(light: np.ndarray, peak: float) -> np.ndarray:
    """Maps light from [0, peak] to [0, 1]: the identity below KNEE, then FFmpeg's Möbius curve (`vf_tonemap.c`).

    Args:
      light: relative to white.
      peak: the brightest light, relative to white; up to 1 nothing is changed.
    """
    if peak <= 1:
        return light
    a = -(KNEE**2) * (peak - 1) / (KNEE**2 - 2 * KNEE + peak)
    b = (KNEE**2 - 2 * KNEE * peak + peak) / (peak - 1)
    curve = (b**2 + 2 * b * KNEE + KNEE**2) / (b - a) * (light + a) / (light + b)
    return np.where(light <= KNEE, light, curve)


def rgb_to_xyz(primaries: str) -> np.ndarray:
    """Computes the matrix from linear RGB to CIE XYZ (SMPTE RP 177)."""
    red, green, blue, white = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in (*CHROMATICITIES[primaries], _D65))
    columns = np.stack([red, green, blue], axis=1)
    return columns * np.linalg.solve(columns, white)


def to_bt709(primaries: str) -> np.ndarray:
    """Computes the matrix to linear BT.709, which is that of ITU-R BT.2407, 2, for BT.2020."""
    return np.linalg.solve(rgb_to_xyz(''), rgb_to_xyz(primaries))


@functools.cache
def _light_table(transfer: str, white_level: int) -> np.ndarray:
    """Tabulates the light of 16-bit signals: relative to white, but of HLG that of the scene."""
    eotf: Callable[[np.ndarray], np.ndarray] = {
        'PQ': lambda signal: pq_eotf(signal) / WHITE,
        'HLG': hlg_inverse_oetf,
        '': bt1886_eotf,
    }[transfer]
    return eotf(np.minimum(np.arange(_STEPS + 1) / white_level, 1)).astype(np.float32)


@functools.cache
def _root_table(exponent: float, scale: float) -> np.ndarray:
    """Tabulates scale * light ** exponent by the root of the light, which dark levels need."""
    return (scale * np.power(np.arange(_STEPS + 1) / _STEPS, 2 * exponent)).astype(np.float32)


@functools.cache
def _level_table() -> np.ndarray:
    """Tabulates the 8-bit levels of light by its root."""
    return np.rint(_root_table(1 / 2.4, 255)).astype(np.uint8)


def _root_index(light: np.ndarray) -> np.ndarray:
    return (np.sqrt(np.clip(light, 0, 1)) * np.float32(_STEPS) + np.float32(0.5)).astype(np.uint16)


def to_sdr(image: np.ndarray, white_level: int, colours: Colours) -> np.ndarray:
    """Converts uint16 (H, W, 3), RGB of these colours from 0 to the level of white, to uint8 RGB of BT.709."""
    result = np.empty(image.shape, np.uint8)
    for row in range(0, len(image), _ROWS):
        channels = np.ascontiguousarray(np.moveaxis(image[row : row + _ROWS], -1, 0))
        light = _convert_light(_light_table(colours.transfer, white_level)[channels], colours)
        result[row : row + _ROWS] = np.moveaxis(_level_table()[_root_index(light)], 0, -1)
    return result


def _convert_light(light: np.ndarray, colours: Colours) -> np.ndarray:
    """Converts (3, ...) of `_light_table` to the light of an SDR display, relative to its white."""
    peak = colours.peak / WHITE
    if colours.transfer == 'HLG':
        # The OOTF (BT.2100, table 5): the system gamma of 1.2 applies to the luminance of the scene. FFmpeg's zscale
        # applies it to each channel, an approximation that makes colours more saturated.
        luma = sum(np.float32(weight) * channel for weight, channel in zip(_LUMA_2020, light, strict=True))
        peak = HLG_PEAK / WHITE
        light = light * _root_table(0.2, peak)[_root_index(luma)]
    if colours.primaries:
        matrix = to_bt709(colours.primaries).astype(np.float32)
        light = np.stack([r * light[0] + g * light[1] + b * light[2] for r, g, b in matrix])
    if not colours.transfer:
        return light
    largest = np.maximum(light.max(0), np.float32(1e-6))
    return light * (compress_highlights(largest, peak) / largest).astype(np.float32)
