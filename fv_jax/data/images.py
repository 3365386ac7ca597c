"""Reads image files as they are meant to be shown: upright, in sRGB, 8 bits a channel, on a white background.

White is what browsers, viewers and paper put behind a transparent image, and what cut-outs are made for. Of an
animation the first frame is read.
"""

import io
import logging
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms

from fv_jax.core.checks import error_context, one_line
from fv_jax.core.paths import StoragePath

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.jpe', '.jfif')
# Of images that are not read; commands name them.
OTHER_IMAGE_SUFFIXES = (
    *('.heic', '.heif', '.avif', '.jxl', '.jp2', '.j2k', '.gif', '.bmp', '.tif', '.tiff', '.tga', '.exr', '.hdr'),
    *('.ppm', '.pgm', '.pnm', '.apng', '.psd', '.svg', '.dng', '.cr2', '.cr3', '.nef', '.arw', '.raf', '.orf', '.rw2'),
)
BACKGROUND = (255, 255, 255)
# Whatever the suffix of a file; Pillow's readers of other formats run other programs.
_FORMATS = ('PNG', 'JPEG', 'WEBP')
_PNG = b'\x89PNG\r\n\x1a\n'
# What shows the stored pixels upright, by EXIF orientation (Exif 3.0, 4.6.5.1.8); 1 is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TRANSPOSED = (5, 6, 7, 8)  # orientations that exchange height and width


def read_image(path: StoragePath) -> np.ndarray:
    """Reads an image of IMAGE_SUFFIXES as uint8 (H, W, 3). Raises ValueError, which names the file, if it cannot."""
    # Pillow's readers raise errors of many types for damaged files.
    with error_context(f'{path}: not an image that can be read: ', Exception):
        image = _open(io.BytesIO(path.read_bytes()))
        orientation = _read_orientation(image, path)
        image = _composite(_to_srgb(_to_8_bits(image), path))
        return np.asarray(image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image)


def read_size(path: StoragePath) -> tuple[int, int]:
    """Reads (height, width) as shown from an image's header. Raises ValueError, which names the file, if it cannot."""
    with error_context(f'{path}: not an image that can be read: ', Exception), path.open('rb') as file:
        image = _open(file, only_header=True)
        width, height = image.size
        return (width, height) if _read_orientation(image, path) in _TRANSPOSED else (height, width)


def _open(file: BinaryIO, *, only_header: bool = False) -> Image.Image:
    is_png = file.read(len(_PNG)) == _PNG
    file.seek(0)
    return Image.open(_reduce_png(file, only_header) if is_png else file, formats=_FORMATS)


def _reduce_png(file: BinaryIO, only_header: bool) -> io.BytesIO:
    """Copies a PNG without its texts, which Pillow refuses above 1 MB, and with EXIF data ahead of the pixels."""
    first, rest = [_PNG], []
    for kind, chunk in _png_chunks(file, b'IDAT' if only_header else b''):
        if kind in (b'IHDR', b'eXIf'):
            first.append(chunk)
        elif kind not in (b'tEXt', b'zTXt', b'iTXt'):
            rest.append(chunk)
    return io.BytesIO(b''.join(first + rest))


def _png_chunks(file: BinaryIO, skipped: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the chunks of a PNG as (kind, all of its bytes); of the skipped kind without their content."""
    file.seek(len(_PNG))
    while len(header := file.read(8)) == 8:
        length, kind = int.from_bytes(header[:4], 'big'), header[4:]
        if kind == skipped:
            file.seek(length + 4, io.SEEK_CUR)
            yield kind, bytes(4) + kind + bytes(4)
        else:
            yield kind, header + file.read(length + 4)


def _read_orientation(image: Image.Image, path: StoragePath) -> int:
    """Reads the EXIF orientation, 1 to 8; 1 for an image without. EXIF data that cannot be read is named."""
    try:
        # Not the method of PNG, which decodes the image to look for EXIF data behind its pixels.
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, OSError, ValueError, struct.error) as error:
        log.warning(f'{path}: its EXIF data cannot be read ({one_line(error)}); shown as stored')
        return 1


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Converts 16-bit grey, whose levels Pillow clips at 255, and colour tables."""
    if image.mode.startswith('I'):
        levels = np.asarray(image).astype(np.int64)
        grey = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
        grey.info = image.info
        transparent = image.info.get('transparency')
        if transparent is not None:
            grey.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)))
        return grey
    if image.has_transparency_data:
        return image.convert('RGBA') if image.mode != 'LA' else image
    if image.mode not in ('L', 'RGB', 'CMYK'):
        return image.convert('L' if image.mode == '1' else 'RGB')
    return image


def _to_srgb(image: Image.Image, path: StoragePath) -> Image.Image:
    """Converts L, LA, RGB, RGBA and CMYK to RGB or RGBA in sRGB, by the ICC profile if there is one."""
    alpha = image.getchannel('A') if image.mode in ('LA', 'RGBA') else None
    colours = image.convert(image.mode[:-1]) if alpha is not None else image
    colours = _apply_profile(colours, image.info.get('icc_profile'), path).convert('RGB')
    if alpha is not None:
        colours.putalpha(alpha)
    return colours


def _apply_profile(image: Image.Image, data: bytes | None, path: StoragePath) -> Image.Image:
    """Converts L, RGB or CMYK to RGB in sRGB by an ICC profile. A profile that cannot be used is named."""
    if not data:
        if image.mode == 'CMYK':
            log.info(f'note: {path}: CMYK without a colour profile; converted by the plain formula')
        return image
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        # Saves time, and the rounding.
        if image.mode == 'RGB' and ImageCms.getProfileDescription(profile).startswith('sRGB'):
            return image
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile('sRGB'), outputMode='RGB')
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        log.warning(f'{path}: its colour profile does not fit and is not applied ({one_line(error)})')
        return image


def _composite(image: Image.Image) -> Image.Image:
    """Puts a transparent image on the background."""
    if image.mode == 'RGB':
        return image
    return Image.alpha_composite(Image.new('RGBA', image.size, (*BACKGROUND, 255)), image).convert('RGB')
