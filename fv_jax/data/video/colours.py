"""The colours that a frame's tags state, or that are assumed without tags: matrix, primaries, transfer curve.

The numbers are those of ITU-T H.273, which FFmpeg uses. Of standard dynamic range, the transfer curves of BT.709,
BT.601, SMPTE 240M, sRGB, xvYCC and gamma 2.2 and 2.8 are taken for one, and the primaries of BT.601, BT.470 and EBU for
those of BT.709: players show them so, and the differences are of the order of those between displays.
"""

import dataclasses
import struct
from collections.abc import Mapping

import av
from av.sidedata.sidedata import Type
from av.video.reformatter import Colorspace

from fv_jax.core.checks import require

# Video without a stated matrix is BT.709 from these columns, or above these rows, and BT.601 otherwise, as in mpv.
HD_WIDTH, SD_HEIGHT = 1280, 576

_UNSPECIFIED = 2
_MATRIX_2020 = 9
_PRIMARIES_2020 = 9
_PQ, _HLG = 16, 18
# What FFmpeg's scaler converts to RGB: 3 is reserved, and read as unspecified.
_MATRICES = (0, 1, 2, 3, 4, 5, 6, 7, _MATRIX_2020)
_MATRIX_NAMES = {8: 'YCgCo', 10: 'BT.2020 constant luminance', 14: 'ICtCp', 15: 'IPT-C2', 16: 'YCgCo-R', 17: 'YCgCo-R'}
_TRANSFER_NAMES = {8: 'linear', 9: 'logarithmic', 10: 'logarithmic', 17: 'SMPTE 428'}
_WIDE = {_PRIMARIES_2020: 'BT.2020', 12: 'Display P3'}
_PRIMARY_NAMES = {10: 'CIE XYZ', 11: 'DCI-P3'}

# FFmpeg 8's scaler exchanges the bytes of the first four wrongly, and aborts the process at the others.
_WRONG_FORMATS = ('rgb565be', 'rgb555be', 'bgr565be', 'bgr555be', 'yaf32be', 'yaf32le')

# cd/m2 of the brightest part of PQ video without metadata: what most is graded on.
_DEFAULT_PEAK = 1000.0
_LARGEST_PEAK = 10000.0


@dataclasses.dataclass(frozen=True)
class Colours:
    """How the values of a frame become colours.

    Attributes:
      matrix: from YUV to RGB, where it is not the stated one.
      assumed: the name of `matrix` if nothing states one, else ''.
      primaries: 'BT.2020' or 'Display P3'; '' for those of BT.709.
      transfer: 'PQ' or 'HLG'; '' for standard dynamic range.
      peak: the luminance in cd/m2 that high dynamic range is tone-mapped from.
    """

    matrix: Colorspace | None = None
    assumed: str = ''
    primaries: str = ''
    transfer: str = ''
    peak: float = _DEFAULT_PEAK

    @property
    def converted(self) -> bool:
        """Whether RGB must be converted to BT.709."""
        return bool(self.primaries or self.transfer)

    @property
    def name(self) -> str:
        return f'{self.primaries or "BT.709"} {self.transfer}'.strip()


def read_colours(frame: av.VideoFrame) -> Colours:
    """Reads the tags of a frame. Raises ValueError for tags that are not supported."""
    matrix, transfer, primaries = int(frame.colorspace), int(frame.color_trc), int(frame.color_primaries)
    _check_supported(frame, Type.DOVI_METADATA in frame.side_data)
    curve = {_PQ: 'PQ', _HLG: 'HLG'}.get(transfer, '')
    if primaries == _UNSPECIFIED and (curve or matrix == _MATRIX_2020):
        primaries = _PRIMARIES_2020
    colours = Colours(primaries=_WIDE.get(primaries, ''), transfer=curve)
    if curve == 'PQ':
        colours = dataclasses.replace(colours, peak=_read_peak(frame.side_data))
    if matrix in (2, 3) and not frame.format.is_rgb and len(frame.format.components) >= 3:
        assumed, chosen = _assume_matrix(frame, primaries)
        colours = dataclasses.replace(colours, matrix=chosen, assumed=assumed)
    return colours


def _check_supported(frame: av.VideoFrame, dolby_vision: bool) -> None:
    matrix, transfer, primaries = int(frame.colorspace), int(frame.color_trc), int(frame.color_primaries)
    wrong = {
        f'its colour matrix, {_MATRIX_NAMES.get(matrix, f"number {matrix}")}, is': matrix not in _MATRICES,
        f'its pixel format, {frame.format.name}, is': frame.format.name in _WRONG_FORMATS,
        # The scaler converts frames in XYZ, of digital cinema, to BT.709.
        f'its transfer curve, {_TRANSFER_NAMES.get(transfer)}, is': transfer in _TRANSFER_NAMES,
        f'its primaries, {_PRIMARY_NAMES.get(primaries)}, are': primaries in _PRIMARY_NAMES,
        # Profile 5, whose colours only Dolby's decoders convert; the others are tagged as what they are without them.
        'Dolby Vision without a compatible base layer is': dolby_vision and transfer == matrix == _UNSPECIFIED,
    }
    for what, holds in wrong.items():
        require(not holds or frame.format.name.startswith('xyz'), f'{what} not supported; convert it to BT.709')


def _assume_matrix(frame: av.VideoFrame, primaries: int) -> tuple[str, Colorspace]:
    if primaries == _PRIMARIES_2020:
        return 'BT.2020', Colorspace.BT2020
    if frame.width >= HD_WIDTH or frame.height > SD_HEIGHT:
        return 'BT.709', Colorspace.ITU709
    return 'BT.601', Colorspace.ITU601


def _read_peak(side_data: Mapping) -> float:
    """Reads the content's largest luminance (MaxCLL, CTA-861.3), else that of the display it was graded on."""
    peak = 0.0
    if Type.CONTENT_LIGHT_LEVEL in side_data:
        peak = float(struct.unpack('=I', bytes(side_data[Type.CONTENT_LIGHT_LEVEL])[:4])[0])
    if not peak and Type.MASTERING_DISPLAY_METADATA in side_data:
        # AVMasteringDisplayMetadata: 9 rationals, the largest luminance, whether there are primaries and luminances.
        *_, above, below, _, stated = struct.unpack('=22i', bytes(side_data[Type.MASTERING_DISPLAY_METADATA])[:88])
        peak = above / below if stated and below else 0.0
    return min(peak or _DEFAULT_PEAK, _LARGEST_PEAK)
