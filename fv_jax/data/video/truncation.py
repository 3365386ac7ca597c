"""Finds out whether a video file was cut off, by the sizes that its container states.

A reader that comes to the end of a truncated file stops without an error. Here the elements of the file are followed
by their sizes, without reading what they hold; the last one must end where the file does.
"""

import itertools
import struct
from collections.abc import Iterator
from typing import BinaryIO

_TAIL = 1 << 17  # bytes; holds a whole page or pack of the containers that are read from their end
_MP4_TYPES = (b'ftyp', b'moov', b'mdat', b'free', b'skip', b'wide', b'styp', b'moof', b'pnot', b'sidx')
_EBML = b'\x1a\x45\xdf\xa3'
_EBML_SEGMENT, _EBML_CLUSTER = 0x18538067, 0x1F43B675
_ASF = bytes.fromhex('3026b2758e66cf11a6d900aa0062ce6c')
_ASF_FILE = bytes.fromhex('a1dcab8c47a9cf118ee400c00c205365')
_PS_PACK, _PS_END = b'\x00\x00\x01\xba', b'\x00\x00\x01\xb9'


def is_cut_off(file: BinaryIO, length: int) -> bool:
    """Returns whether a file of `length` bytes ends before its last element does; False for an unknown container."""
    head = _read(file, 0, 1024)
    if head[4:8] in _MP4_TYPES:
        return _mp4_end(file, length) > length
    if head.startswith(_EBML):
        return any(end > length for end in _ebml_ends(file, length))
    if head.startswith(b'RIFF') and head[8:12] == b'AVI ':
        return _riff_end(file, length) > length
    if head.startswith(b'FLV'):
        return not _is_flv_end(file, length)
    if head.startswith(b'OggS'):
        return _ogg_end(file, length) > length
    if head.startswith(_PS_PACK):
        return _ps_end(file, length) > length
    if head.startswith(_ASF):
        return _asf_length(head) > length
    if packet := _ts_packet(head):
        return length % packet != 0
    return False


def _read(file: BinaryIO, start: int, count: int) -> bytes:
    file.seek(start)
    return file.read(count)


def _mp4_end(file: BinaryIO, length: int) -> int:
    """Returns where the last box of a file ends; a fragment's header does not end one."""
    position = 0
    while len(header := _read(file, position, 16)) >= 8:
        size, kind = struct.unpack('>I4s', header[:8])
        if not kind.isalnum() or size == 0:  # bytes after the last box; a box that reaches to the end
            return position
        if size == 1:
            size = int.from_bytes(header[8:16].ljust(8, b'\xff'), 'big')
        if size < 8 or (position := position + size) >= length:
            return position + (kind == b'moof')
    return position + 8 if any(header) else position


def _ebml_ends(file: BinaryIO, length: int) -> Iterator[int]:
    """Yields where the elements of a Matroska file end; those within a segment or cluster of known size are not read.

    Recordings of browsers have segments and clusters of unknown size, which end where a file ends.
    """
    position = 0
    while position < length:
        header = _read(file, position, 12)
        kind, kind_length = _ebml_number(header, 4, keep_marker=True)
        size, size_length = _ebml_number(header[kind_length:], 8, keep_marker=False)
        if kind_length == 0 or size_length == 0:
            # Four zeros are padding or other bytes after the last element, not one whose header was cut.
            yield length + 1 if len(header) < 12 and any(header) else position
            return
        position += kind_length + size_length
        if size == (1 << 7 * size_length) - 1 and kind in (_EBML_SEGMENT, _EBML_CLUSTER):
            continue
        position += size
        yield position


def _ebml_number(data: bytes, longest: int, *, keep_marker: bool) -> tuple[int, int]:
    """Returns a number of variable length and its length in bytes, (0, 0) if there is none."""
    count = 9 - data[0].bit_length() if data and data[0] else 0
    if not 0 < count <= min(longest, len(data)):
        return 0, 0
    number = int.from_bytes(data[:count], 'big')
    return number if keep_marker else number & ((1 << 7 * count) - 1), count


def _riff_end(file: BinaryIO, length: int) -> int:
    """Returns where the last RIFF chunk ends; a file of more than 1 GB has several. 0: not known, never completed."""
    position = 0
    while len(header := _read(file, position, 8)) == 8 and header[:4] == b'RIFF':
        size = int.from_bytes(header[4:], 'little')
        if size in (0, 0xFFFFFFFF):
            break
        position += 8 + size
        if position >= length:
            break
        position += size % 2
    return position


def _is_flv_end(file: BinaryIO, length: int) -> bool:
    """Returns whether the file ends with a whole tag: its last four bytes are the size of the tag before them."""
    size = int.from_bytes(_read(file, max(length - 4, 0), 4), 'big')
    if not 11 <= size <= length - 4:
        return False
    tag = _read(file, length - 4 - size, 4)
    return int.from_bytes(tag[1:], 'big') == size - 11


def _ogg_end(file: BinaryIO, length: int) -> int:
    start = max(length - _TAIL, 0)
    tail = _read(file, start, _TAIL)
    page = tail.rfind(b'OggS')
    segments = tail[page + 26] if page + 26 < len(tail) else 255
    return start + page + 27 + segments + sum(tail[page + 27 : page + 27 + segments])


def _ps_end(file: BinaryIO, length: int) -> int:
    """Returns where the last packet of an MPEG program stream ends."""
    start = max(length - _TAIL, 0)
    tail = _read(file, start, _TAIL)
    position = tail.rfind(_PS_PACK)
    while tail[position : position + 3] == b'\x00\x00\x01' and tail[position : position + 4] != _PS_END:
        if len(tail) - position < 14:
            return start + position + 14
        if tail[position : position + 4] == _PS_PACK:
            is_mpeg2 = tail[position + 4] >> 6 == 1
            position += 14 + tail[position + 13] % 8 if is_mpeg2 else 12
        else:
            position += 6 + int.from_bytes(tail[position + 4 : position + 6], 'big')
    return start + position


def _asf_length(head: bytes) -> int:
    """Returns the length of the file that an ASF header states."""
    place = head.find(_ASF_FILE)
    return int.from_bytes(head[place + 40 : place + 48], 'little') if place >= 0 else 0


def _ts_packet(head: bytes) -> int:
    """Returns the bytes of a packet of an MPEG-TS file, 0 if it is none."""
    for first, size in ((0, 188), (4, 192), (0, 204)):
        places = range(first, len(head), size)
        if len(places) > 1 and all(head[place] == 0x47 for place in itertools.islice(places, 5)):
            return size
    return 0
