"""What made the latents that shards hold; of their text embeddings, `text_provenance.py`.

`prepare` writes into NAME.json, under `latents`, the digest of the VAE and how it cut the clips in time. Latents of
another VAE are numbers like any other: only the stamp tells.
"""

from collections.abc import Sequence
from typing import Any

from fv_jax.core.checks import require
from fv_jax.data.loader import Part, Shards, Source
from fv_jax.data.shards.records import index_of


def of(source: Source) -> dict[str, dict[str, Any]]:
    """The NAME.json of every set of shards behind a source, by one of its shards' paths."""
    shards = source if isinstance(source, Shards) else None
    if shards is None:
        inner = getattr(source, 'sources', ())
        return {path: index for one in inner for path, index in of(one).items()}
    found = {}
    for path in shards.paths:
        index = index_of(path)
        if index not in found.values():
            found[path] = index
    return found


def holds_latents(source: Source) -> bool:
    """Whether a source's records are latents. Raises ValueError when some are and some are not."""
    kinds = {path: 'latents' in index for path, index in of(source).items()}
    if len(set(kinds.values())) > 1:
        latents = next(path for path, kind in kinds.items() if kind)
        clips = next(path for path, kind in kinds.items() if not kind)
        raise ValueError(f'{latents} holds latents and {clips} clips; give them weights, or keep them in folders apart')
    return any(kinds.values())


def check_latents(parts: Sequence[Part], vae: dict[str, Any] | None) -> None:
    """Raises ValueError, naming the shards, when their latents were not made by `vae` (its stamp; None is no VAE)."""
    for part in parts:
        for path, index in of(part.source).items():
            made_by = index.get('latents')
            if made_by is None:
                continue
            for key in vae or {'vae': None}:
                require(
                    made_by.get(key) == (vae or {}).get(key),
                    f'{path}: its latents were made with {key} {made_by.get(key)}, and this run has '
                    f'{(vae or {}).get(key)}; prepare them again',
                )
