"""Previews on disk, to be looked at now and enhanced later. A run's folder:

contact_sheet.png       all of them, a row each
N/preview.mp4           to look at; never read
N/latents.safetensors   what is enhanced, and the record of how it was made, with their digest
N/video.mp4             once it is enhanced
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fv_jax.core.checks import error_context, require
from fv_jax.core.files import atomic_write
from fv_jax.data.video import contact_sheet
from fv_jax.sampling import metadata
from fv_jax.sampling.results import Preview, Stored

PREVIEW, LATENTS, VIDEO, SHEET = 'preview.mp4', 'latents.safetensors', 'video.mp4', 'contact_sheet.png'
_RECORD, _DIGEST = 'record', 'sha256'


def store(folder: Path, preview: Preview, *, fps: float, crf: float) -> None:
    """Writes a preview as the folder N; it appears when it is whole. Raises OSError."""
    with atomic_write(folder) as partial:
        partial.mkdir()
        preview.save(partial / PREVIEW, fps=fps, crf=crf)
        latents = np.ascontiguousarray(preview.latents, np.float32)
        text = preview.record.to_json()
        header = {_RECORD: text, _DIGEST: _digest(text, latents)}
        (partial / LATENTS).write_bytes(save({'latents': latents}, header))


def load(folder: Path) -> Stored:
    """What was stored, but for what is to be looked at.

    Raises ValueError: there is none, or it is not as it was stored.
    """
    path = folder / LATENTS
    if not path.is_file():
        run = folder if folder.is_dir() else folder.parent
        found = sorted(run.glob(f'*/{LATENTS}'))
        hint = f'; there is {found[0].parent}' if found else ''
        raise ValueError(f'{folder}: holds no stored preview (no {LATENTS}){hint}')
    changed = f'{folder}: was changed since it was stored'
    try:
        with safe_open(str(path), framework='numpy') as file:
            header, latents = file.metadata() or {}, file.get_tensor('latents')
    except (SafetensorError, OSError) as error:
        raise ValueError(f'{changed}: {LATENTS} cannot be read ({error}); make the preview again') from None
    require(_RECORD in header and _DIGEST in header, f'{changed}: {LATENTS} has no record; make the preview again')
    if _digest(header[_RECORD], latents) != header[_DIGEST]:
        raise ValueError(f'{changed}: its latents or its record are not those of its digest; make the preview again')
    with error_context(f'{folder}: '):
        return Stored(latents, metadata.from_json(header[_RECORD]))


def _digest(record_text: str, latents: np.ndarray) -> str:
    """The SHA-256 of both together."""
    together = hashlib.sha256(record_text.encode())
    together.update(np.ascontiguousarray(latents).tobytes())
    return together.hexdigest()


def remove_from(run: Path, first: int) -> None:
    """Removes the previews that are stored under the numbers `first` and above."""
    for path in run.glob(f'*/{LATENTS}'):
        if path.parent.name.isdecimal() and int(path.parent.name) >= first:
            shutil.rmtree(path.parent)


def write_sheet(path: Path, previews: Sequence[tuple[str, Preview]]) -> None:
    """A contact sheet of (name, preview); it appears when it is whole."""
    rows = [(f'{name}: {preview.prompt} (seed {preview.seed})', preview.frames) for name, preview in previews]
    with atomic_write(path) as partial:
        contact_sheet.preview_sheet(rows).save(partial, format='PNG')
