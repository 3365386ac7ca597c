"""Converts frames to 10-bit Y'CbCr 4:2:0 of BT.709, limited range, without the rounding to 8 bits.

With R'G'B' in [0, 1] (ITU-R BT.709-6, 3.2 to 3.4, 4.6):

    Y'  = 0.2126 R' + 0.7152 G' + 0.0722 B'          code  64 + 876 Y'                          (1)
    C'b = (B' - Y') / 1.8556                         code 512 + 896 C'b                         (2)
    C'r = (R' - Y') / 1.5748                         code 512 + 896 C'r                         (3)

Chroma has the position of every second luma sample of a row, and is between two rows, the default of HEVC. FFmpeg's
scaler does the same with errors of up to 3 codes.
"""

import av
import cv2
import numpy as np

PIXEL_FORMAT = 'yuv420p10le'
_LUMA = np.array([0.2126, 0.7152, 0.0722])
_BLUE, _RED = ((np.eye(3)[i] - _LUMA) / scale for i, scale in ((2, 1.8556), (0, 1.5748)))
# Of (R, G, B, 1), for values in [-1, 1].
_MATRIX = np.column_stack([np.stack([438 * _LUMA, 448 * _BLUE, 448 * _RED]), [64 + 438, 512, 512]])
_LEFT = np.array([0.25, 0.5, 0.25], np.float32)


def to_yuv(frame_HWC: np.ndarray) -> av.VideoFrame:
    """Converts a frame, float32 RGB in [-1, 1], both sides even, by (1) to (3)."""
    codes = cv2.transform(np.clip(frame_HWC, -1, 1), _MATRIX)
    rows = (codes[::2, :, 1:] + codes[1::2, :, 1:]) / 2
    chroma = cv2.sepFilter2D(rows, -1, _LEFT, np.ones(1, np.float32), borderType=cv2.BORDER_REPLICATE)[:, ::2]
    frame = av.VideoFrame(frame_HWC.shape[1], frame_HWC.shape[0], PIXEL_FORMAT)
    for plane, samples in zip(frame.planes, (codes[..., 0], chroma[..., 0], chroma[..., 1]), strict=True):
        padded = np.zeros((plane.height, plane.line_size // 2), '<u2')
        padded[:, : plane.width] = np.rint(samples)
        plane.update(padded)
    return frame
