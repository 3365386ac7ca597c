"""What is compared of the files that the command `sample` writes."""

import json

from fv_jax.core.files import list_files
from fv_jax.core.paths import StoragePath


def content(folder: StoragePath) -> dict[str, bytes]:
    """Every file by its path."""
    return {name: _read(folder / name) for name in list_files(folder)}


def _read(path: StoragePath) -> bytes:
    data = path.read_bytes()
    if path.suffix == '.safetensors':  # its header lists the metadata in an order of its own in every file
        size = 8 + int.from_bytes(data[:8], 'little')
        return json.dumps(json.loads(data[8:size]), sort_keys=True).encode() + data[size:]
    return data
