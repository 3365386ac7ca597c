"""Whether a checkpoint's files are still those that were written: their sizes and CRC-32, kept beside them.

It finds what a disk or a copy did to a file. It does not find what was wrong in memory before the file was written.
"""

import json
import zlib
from pathlib import Path

from fv_jax.core.files import write_json

SUMS = 'checksums.json'  # in a checkpoint's folder
_BLOCK = 2**22


def seal(folder: Path) -> None:
    """Writes down what is there. Raises OSError."""
    sums = {str(path.relative_to(folder)): [path.stat().st_size, _crc(path)] for path in _files(folder)}
    write_json(folder / SUMS, sums)


def damage(folder: Path) -> str | None:
    """The first thing that is not as it was sealed, in words; None if all is, or nothing was sealed."""
    path = folder / SUMS
    if not path.is_file():
        return None
    try:
        sums = json.loads(path.read_text())
        wanted = {name: (size, crc) for name, (size, crc) in sums.items()}
        for name, (size, crc) in wanted.items():
            if not (file := folder / name).is_file():
                return f'{name} is missing'
            if (there := file.stat().st_size) != size:
                return f'{name} has {there} bytes and had {size}'
            if _crc(file) != crc:
                return f'{name} is not what was written (CRC-32)'
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f'{SUMS} or a file that it names cannot be read ({" ".join(str(error).split())})'
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob('*') if path.is_file() and not path.name.startswith(SUMS))


def _crc(path: Path) -> int:
    value = 0
    with path.open('rb') as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value
