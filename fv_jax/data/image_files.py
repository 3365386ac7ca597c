"""Writes images with a comment in their EXIF data, which says how they were made."""

import io

import numpy as np
from PIL import ExifTags, Image

from fv_jax.core.checks import error_context
from fv_jax.core.files import write_bytes
from fv_jax.core.paths import StoragePath

# By suffix: Pillow's format and options. Only PNG is lossless.
_JPEG = 'JPEG', {'quality': 95, 'subsampling': 0}
_FORMATS = {
    '.png': ('PNG', {}),
    '.webp': ('WEBP', {'quality': 95}),
    **dict.fromkeys(('.jpg', '.jpeg', '.jpe', '.jfif'), _JPEG),
}


def write_image(path: StoragePath, frame_HWC: np.ndarray, comment: str = '') -> None:
    """Writes an image, uint8 RGB, atomically, in the format of the path's suffix. Raises OSError."""
    kind, options = _FORMATS[path.suffix.lower()]
    exif = Image.Exif()
    if comment:
        exif[ExifTags.Base.ImageDescription] = comment
    data = io.BytesIO()
    Image.fromarray(frame_HWC).save(data, kind, exif=exif, **options)
    write_bytes(path, data.getvalue())


def read_comment(path: StoragePath) -> str:
    """Reads the comment of an image that `write_image` wrote; '' if there is none. Raises ValueError."""
    formats = tuple({kind for kind, _ in _FORMATS.values()})
    with error_context(f'{path}: not an image that can be read: ', Exception), path.open('rb') as file:
        return str(Image.open(file, formats=formats).getexif().get(ExifTags.Base.ImageDescription, ''))
