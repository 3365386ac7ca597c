"""Provenance check of cached latents: which VAE encoded them. `text_provenance.py` does the same for text embeddings.

`prepare` writes the fingerprint of the VAE's encoder and its chunks in time to NAME.json, under `latents`. Latents of
another VAE have the same shapes, so that nothing else reveals them.
"""

from collections.abc import Sequence
from typing import Any

from fv_jax.core.checks import require
from fv_jax.data.loader import DataSource, WeightedSource
from fv_jax.data.shards.source import Shards


def shard_indexes(source: DataSource) -> dict[str, dict[str, Any]]:
    """Reads the NAME.json of every set of shards in a source; returns them by the path of one shard of each set."""
    shards = source if isinstance(source, Shards) else None
    if shards is None:
        inner = getattr(source, 'sources', ())
        return {path: index for one in inner for path, index in shard_indexes(one).items()}
    found = {}
    for one in shards.sets:
        if one.paths and one.index not in found.values():
            found[one.paths[0]] = one.index
    return found


def is_latent_source(source: DataSource) -> bool:
    """Returns whether the records of a source are latents. Raises ValueError for a mixture of latents and clips."""
    kinds = {path: 'latents' in index for path, index in shard_indexes(source).items()}
    if len(set(kinds.values())) > 1:
        latents = next(path for path, kind in kinds.items() if kind)
        clips = next(path for path, kind in kinds.items() if not kind)
        raise ValueError(f'{latents} holds latents and {clips} clips; give them weights, or keep them in folders apart')
    return any(kinds.values())


def check_latents(parts: Sequence[WeightedSource], vae: dict[str, Any] | None) -> None:
    """Checks that latents were encoded by the VAE of this run.

    Args:
      parts: sources, of clips or latents.
      vae: provenance of this run's latents, as in NAME.json; None for a run without a VAE.

    Raises:
      ValueError: latents of another VAE; the message names the shards.
    """
    for part in parts:
        for path, index in shard_indexes(part.source).items():
            stored = index.get('latents')
            if stored is None:
                continue
            for key in vae or {'vae': None}:
                require(
                    stored.get(key) == (vae or {}).get(key),
                    f'{path}: its latents have {key} {stored.get(key)}, but this run has '
                    f'{(vae or {}).get(key)}; prepare them again',
                )
