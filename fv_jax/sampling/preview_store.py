"""Stores previews on disk, to be viewed now and enhanced later. The folder of a call of `sample preview` holds:

contact_sheet.png       every preview, one per row
N/preview.mp4           for viewing, with the metadata; never enhanced
N/latents.safetensors   what stage 2 starts from, the generation metadata, and a digest of both
N/video.mp4             the enhanced video, if there is one
"""

import dataclasses
import hashlib
from collections.abc import Collection, Sequence

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from fv_jax.core.checks import error_context, require
from fv_jax.core.files import atomic_write, is_file, partial_of, remove_folder
from fv_jax.core.local_copies import open_copy
from fv_jax.core.paths import StoragePath
from fv_jax.data.video import contact_sheet, containers, decoding
from fv_jax.sampling import metadata
from fv_jax.sampling.results import Preview, StoredPreview

PREVIEW, LATENTS, VIDEO, SHEET = 'preview.mp4', 'latents.safetensors', 'video.mp4', 'contact_sheet.png'
_METADATA, _DIGEST = 'record', 'sha256'
_MAX_LARGE_ROWS = 100  # of a contact sheet; 1,000 official previews in full size are an image of 0.5 gigapixels


def save(folder: StoragePath, preview: Preview, *, fps: float, crf: float) -> None:
    """Writes a preview to the folder N atomically. Raises OSError."""
    with atomic_write(folder, marker=LATENTS) as partial:
        partial.mkdir()
        preview.save(partial / PREVIEW, fps=fps, crf=crf)
        latents = np.ascontiguousarray(preview.latents, np.float32)
        text = preview.metadata.to_json()
        header = {_METADATA: text, _DIGEST: _digest(text, latents)}
        (partial / LATENTS).write_bytes(serialize({'latents': latents}, header))


def load(folder: StoragePath) -> StoredPreview:
    """Loads the latents and the metadata of a stored preview.

    Raises:
      ValueError: the folder holds no stored preview, or it was modified since it was stored.
    """
    path = folder / LATENTS
    if not is_file(path):
        run = folder if folder.is_dir() else folder.parent
        found = sorted(run.glob(f'*/{LATENTS}'))
        hint = f'; did you mean {found[0].parent}?' if found else ''
        raise ValueError(f'{folder}: holds no stored preview (no {LATENTS}){hint}')
    changed = f'{folder}: was modified since it was stored'
    with open_copy(path) as local:
        try:
            with safe_open(str(local), framework='numpy') as file:
                header, latents = file.metadata() or {}, file.get_tensor('latents')
        except (SafetensorError, OSError) as error:
            raise ValueError(f'{changed}: {LATENTS} cannot be read ({error}); run `sample preview` again') from None
    require(
        _METADATA in header and _DIGEST in header, f'{changed}: {LATENTS} has no metadata; run `sample preview` again'
    )
    if _digest(header[_METADATA], latents) != header[_DIGEST]:
        raise ValueError(f'{changed}: its latents or its metadata fail the integrity check; run `sample preview` again')
    with error_context(f'{folder}: '):
        return StoredPreview(latents, metadata.from_json(header[_METADATA]))


def _digest(metadata_json: str, latents: np.ndarray) -> str:
    """Returns the SHA-256 of the metadata and the latents together."""
    digest = hashlib.sha256(metadata_json.encode())
    digest.update(np.ascontiguousarray(latents).tobytes())
    return digest.hexdigest()


def read_metadata(folder: StoragePath) -> metadata.GenerationMetadata:
    """Reads the metadata of a stored preview, with `fps` and `crf` of its mp4. Raises ValueError as `load`, and if the
    mp4 has no metadata.
    """
    stored = load(folder).metadata
    shown = metadata.from_json(containers.read_comment(folder / PREVIEW))
    return dataclasses.replace(stored, fps=shown.fps, crf=shown.crf)


def list_stored(parent: StoragePath) -> set[str]:
    """Lists the names of the folders of stored previews in a folder."""
    return {path.parent.name for path in parent.glob(f'*/{LATENTS}')}


def belongs_to(path: StoragePath, count: int, stored: Collection[str]) -> bool:
    """Returns whether a path in the folder of a call is of its first `count` previews, or its contact sheet.

    Args:
      path: a file or folder there.
      count: of previews.
      stored: see `list_stored`.
    """
    name = partial_of(path) or path.name
    if name in (SHEET, SHEET.partition('.')[0]):
        return True
    numbered = name.isascii() and name.isdecimal() and name == str(int(name)) and int(name) < count
    return numbered and (name != path.name or name in stored or _is_incomplete(path))


def _is_incomplete(folder: StoragePath) -> bool:
    """Returns whether a folder is what a killed `save` left in object storage: the latents are stored last."""
    return {path.name for path in folder.iterdir()} == {PREVIEW}


def remove_from(parent: StoragePath, first: int) -> None:
    """Removes the stored previews with the numbers `first` and above, and the contact sheet that shows them."""
    for name in list_stored(parent):
        if name.isdecimal() and int(name) >= first:
            (parent / SHEET).unlink(missing_ok=True)
            remove_folder(parent / name, marker=LATENTS)


def write_sheet(path: StoragePath, folders: Sequence[StoragePath]) -> None:
    """Writes a contact sheet of stored previews atomically, from their mp4s, one at a time."""
    shrink = len(folders) > _MAX_LARGE_ROWS
    rows = ((_caption(folder), decoding.decode(folder / PREVIEW).frames) for folder in folders)
    with atomic_write(path) as partial:
        contact_sheet.preview_sheet(rows, shrink=shrink).save(partial, format='PNG')


def _caption(folder: StoragePath) -> str:
    made = metadata.from_json(containers.read_comment(folder / PREVIEW)).preview
    return f'{folder.name}: {made.prompt} (seed {made.seed})'
