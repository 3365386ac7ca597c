"""What is compared of the files that the command `sample` writes."""

import json
from pathlib import Path


def content(folder: Path) -> dict[str, bytes]:
    """Every file by its path."""
    return {str(path.relative_to(folder)): _read(path) for path in folder.rglob('*') if path.is_file()}


def _read(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == '.safetensors':  # its header lists the metadata in an order of its own in every file
        size = 8 + int.from_bytes(data[:8], 'little')
        return json.dumps(json.loads(data[8:size]), sort_keys=True).encode() + data[size:]
    return data
