"""Checksums of a checkpoint: the size and checksum of each of its files, stored beside them.

They detect what a disk or a copy did to a file, not what was wrong in memory before it was written. Local files are
read for it (CRC-32); an object store states the checksums that it has computed itself.
"""

from fv_jax.core import files
from fv_jax.core.paths import StoragePath

CHECKSUMS = 'checksums.json'  # in a checkpoint's folder


def write_checksums(folder: StoragePath) -> None:
    """Writes the checksums of all files in a folder. Raises OSError."""
    found = files.checksums(folder)
    files.write_json(folder / CHECKSUMS, {name: found[name] for name in found if not name.startswith(CHECKSUMS)})


def verify_checksums(folder: StoragePath) -> str | None:
    """Compares the files in a folder with the stored checksums.

    Returns:
      The first difference; None if there is none, or if no checksums exist.
    """
    try:
        stored = (folder / CHECKSUMS).read_bytes()
    except FileNotFoundError:
        return None
    try:
        expected, found = files.parse_json(stored), files.checksums(folder)
        for name, (size, checksum) in expected.items():
            if name not in found:
                return f'{name} is missing'
            if found[name][0] != size:
                return f'{name} has {found[name][0]} bytes instead of {size}'
            if _kind(found[name][1]) == _kind(checksum) and found[name][1] != checksum:
                return f'{name} differs from what was written ({_kind(checksum)})'
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f'{CHECKSUMS} or a file that it names cannot be read ({" ".join(str(error).split())})'
    return None


def _kind(checksum: int | str) -> str:
    """Returns which checksum it is: a checkpoint that was copied from a disk to a bucket, or back, has others."""
    return 'CRC-32' if isinstance(checksum, int) else checksum.partition(':')[0]
