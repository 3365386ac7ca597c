"""The bytes, format and size of an image of a report."""

import base64
import dataclasses
import io

from PIL import Image

from fv_jax.core.checks import require
from fv_jax.core.paths import StoragePath

_FORMATS = ('PNG', 'JPEG', 'WEBP')


@dataclasses.dataclass(frozen=True)
class ImageData:
    """An image file in memory.

    Attributes:
      data: the bytes of the file.
      mime: its media type.
      suffix: of a file of this format, with the dot.
      height, width: pixels.
    """

    data: bytes
    mime: str
    suffix: str
    height: int
    width: int


def read_image(image: StoragePath | bytes) -> ImageData:
    """Reads an image. Raises ValueError for what is not a PNG, JPEG or WebP image, OSError for a missing file."""
    data = image if isinstance(image, bytes) else image.read_bytes()
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
            kind, (width, height) = opened.format, opened.size
    except Image.UnidentifiedImageError:
        kind = None
    name = f'<{len(image)} bytes>' if isinstance(image, bytes) else str(image)
    require(kind, f'{name}: not an image of the formats {", ".join(_FORMATS)}')
    return ImageData(data, f'image/{kind.lower()}', f'.{kind.lower()}', height, width)


def data_uri(mime: str, data: bytes) -> str:
    """Returns a data URI with the bytes in base64."""
    return f'data:{mime};base64,{base64.b64encode(data).decode("ascii")}'
