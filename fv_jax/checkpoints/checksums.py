"""Checksums of a checkpoint: the size and CRC-32 of each of its files, stored beside them.

They detect what a disk or a copy did to a file, not what was wrong in memory before it was written.
"""

import json
import zlib
from pathlib import Path

from fv_jax.core.files import write_json

CHECKSUMS = 'checksums.json'  # in a checkpoint's folder
_BLOCK_BYTES = 2**22


def write_checksums(folder: Path) -> None:
    """Writes the checksums of all files in a folder. Raises OSError."""
    sums = {str(path.relative_to(folder)): [path.stat().st_size, _crc(path)] for path in _files(folder)}
    write_json(folder / CHECKSUMS, sums)


def verify_checksums(folder: Path) -> str | None:
    """Compares the files in a folder with the stored checksums.

    Returns:
      The first difference; None if there is none, or if no checksums exist.
    """
    path = folder / CHECKSUMS
    if not path.is_file():
        return None
    try:
        sums = json.loads(path.read_text())
        expected = {name: (size, crc) for name, (size, crc) in sums.items()}
        for name, (size, crc) in expected.items():
            if not (file := folder / name).is_file():
                return f'{name} is missing'
            if (found := file.stat().st_size) != size:
                return f'{name} has {found} bytes instead of {size}'
            if _crc(file) != crc:
                return f'{name} differs from what was written (CRC-32)'
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f'{CHECKSUMS} or a file that it names cannot be read ({" ".join(str(error).split())})'
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob('*') if path.is_file() and not path.name.startswith(CHECKSUMS))


def _crc(path: Path) -> int:
    value = 0
    with path.open('rb') as file:
        while block := file.read(_BLOCK_BYTES):
            value = zlib.crc32(block, value)
    return value
