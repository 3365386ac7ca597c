"""True resolution: up to which share of the Nyquist frequency a clip has content.

Enlarging by s leaves the spectrum above 1 / s of Nyquist empty but for noise of the codec. Natural images have less
power at high frequencies too, and most of a frame may be out of focus. So only the most detailed segments count:

  1. rows and columns are cut into segments of N = 64 pixels; those whose second differences have the most energy, 2 %,
     are windowed (Hann) and transformed; P(k) is the mean power of their transforms, in dB, in 16 bands        (1)
  2. P_0 = mean of bands 1 to 3, where every clip has content; P_n = mean of the last two bands, its noise      (2)
  3. the bandwidth is the first frequency, as a share of Nyquist, where
       P(k) < max(P_0 - 18, min(P_n, 4) + 2)                                                                    (3)
  4. clips that were not enlarged have a bandwidth of 0.76 (the median of those in the table), as cameras and renderers
     attenuate the highest frequencies, and enlarged ones (b / 0.76)^(3/2) = 1 / s, nearly:
       true height = height min(1, (b / 0.76)^(3/2))                                                            (4)

The constants of (3) and (4) were fitted to 25 clips (rendered, filmed and panned photographs), enlarged by 1.25, 1.5, 2
and 3 with bilinear, bicubic and Lanczos interpolation and encoded by x264 with crf 18 and 26.

Sharp edges that were added later, such as text in an enlarged video, count as content.
"""

import numpy as np

_SEGMENT = 64  # pixels
_BANDS = 16
_SHARE = 0.02  # of segments: the most detailed
_LEAST = 32  # segments
_ROW_STEP = 2  # every second row is read: adjacent ones are alike
_LIMIT_DB, _NOISE_DB, _MARGIN_DB = 18.0, 4.0, 2.0  # of (3)
_NATIVE, _POWER = 0.76, 1.5  # of (4)
_EPSILON = 1e-6
_FREQUENCIES = (np.arange(_BANDS) * 2 + 1.5) / (2 * _BANDS)  # of the bands, as shares of Nyquist


def measure_bandwidth(frames_FHW: np.ndarray) -> float | None:
    """Computes the bandwidth by (3), the mean of that of rows and that of columns.

    Args:
      frames_FHW: luma, uint8.

    Returns:
      A share of Nyquist, at most 1; None where frames are too small or have no content.
    """
    if min(frames_FHW.shape[1:]) < _SEGMENT:
        return None
    spectra = [_spectrum(frames_FHW), _spectrum(frames_FHW.swapaxes(1, 2))]
    found = [_cutoff(spectrum) for spectrum in spectra if spectrum is not None]
    return float(np.mean(found)) if found else None


def true_height(bandwidth: float | None, height: int) -> float | None:
    """Estimates by (4) the height, in rows, at which a clip had been before it was enlarged to `height`."""
    return None if bandwidth is None else height * min(1.0, (bandwidth / _NATIVE) ** _POWER)


def _spectrum(frames_FHW: np.ndarray) -> np.ndarray | None:
    """Computes P(k) of (1) along the last axis, in dB (bands,); None for frames without detail."""
    window = np.hanning(_SEGMENT).astype(np.float32)
    power = np.zeros(_SEGMENT // 2 + 1)
    for frame_HW in frames_FHW:
        rows = np.ascontiguousarray(frame_HW[::_ROW_STEP], dtype=np.float32)
        segments = np.lib.stride_tricks.sliding_window_view(rows, _SEGMENT, axis=1)[:, :: _SEGMENT // 2]
        second = np.diff(rows, 2, axis=1)
        energy = np.lib.stride_tricks.sliding_window_view(np.cumsum(second**2, axis=1), _SEGMENT - 2, axis=1)
        energy = (energy[:, :: _SEGMENT // 2, -1] - energy[:, :: _SEGMENT // 2, 0]).ravel()
        count = min(max(int(len(energy) * _SHARE), _LEAST), len(energy))
        chosen = segments.reshape(-1, _SEGMENT)[np.argpartition(-energy, count - 1)[:count]]
        chosen = (chosen - chosen.mean(axis=1, keepdims=True)) * window
        power += (np.abs(np.fft.rfft(chosen, axis=1)) ** 2).mean(axis=0) / (window**2).sum()
    power /= len(frames_FHW)
    if power.max() < 1:  # below the noise of rounding to 8 bits: frames of one colour
        return None
    return 10 * np.log10(power[1:].reshape(_BANDS, 2).mean(axis=1) + _EPSILON)


def _cutoff(spectrum: np.ndarray) -> float:
    """Finds the frequency of (3), interpolated between bands."""
    low = 1
    limit = max(spectrum[low : low + 3].mean() - _LIMIT_DB, min(spectrum[-2:].mean(), _NOISE_DB) + _MARGIN_DB)
    below = np.flatnonzero(spectrum[low:] < limit) + low
    if not len(below):
        return 1.0
    band = below[0]
    fall = max(spectrum[band - 1] - spectrum[band], _EPSILON)
    part = min(max((spectrum[band - 1] - limit) / fall, 0.0), 1.0)
    return float(_FREQUENCIES[band - 1] + part * (_FREQUENCIES[band] - _FREQUENCIES[band - 1]))
