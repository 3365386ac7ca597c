"""Clips encoded once, before training: their latents and those of several low-quality twins, kept as shards.

The shards are stamped with everything that made them; those of another VAE or other settings are refused.
"""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fv_jax.core import config as config_lib
from fv_jax.data.degradations import weak
from fv_jax.data.loader import Shards, Source
from fv_jax.data.pipeline import DataConfig
from fv_jax.data.records import RecordWriter, list_shards
from fv_jax.data.transforms import Transform
from fv_jax.inference.jitted import JittedVAE

FOLDER = 'latents'  # in a run's folder
NAME = 'latents'  # of the shards in it
_PROGRESS_S = 5.0  # seconds between two lines of progress


def cached_latents(
    folder: Path,
    records: Source,
    transform: Transform,
    vae: JittedVAE,
    config: DataConfig,
    vae_digest: str,
    *,
    progress: Callable[[str], None],
) -> Source:
    """Records `z_high` (F, H, W, C) and `z_low` (K, F, H, W, C), float16, one for each of `records`.

    Args:
      folder: where the shards are, or will be.
      records, transform: `transform` gives high_res_FHWC. It is drawn once for each record, the weak twin once for
        each low variant of what it gave.
      vae_digest: `file_digest` of the VAE's weights.
      progress: receives a line every few seconds.

    Raises:
      ValueError: the folder holds latents that something else made.
    """
    stamp = _stamp(config, len(records), vae_digest)
    path = folder / f'{NAME}.json'
    if path.exists():
        if (found := json.loads(path.read_text()).get('stamp')) != stamp:
            raise ValueError(f'{folder}: holds latents of another VAE or other data ({found}, not {stamp}); delete it')
        return Shards(list_shards(folder, NAME))
    variants = config.cache.low_variants
    progress(f'encoding {len(records)} clips and {variants} low-quality twin(s) of each, once; kept in {folder}')
    said = time.monotonic()
    with RecordWriter(folder, NAME) as writer:
        for i in range(len(records)):
            writer.write(_encode(records[i], transform, vae, config, i))
            if i + 1 == len(records) or time.monotonic() - said > _PROGRESS_S:
                progress(f'encoded {i + 1}/{len(records)} clips')
                said = time.monotonic()
        writer.summary = {'stamp': stamp}
    return Shards(list_shards(folder, NAME))


def _encode(
    record: dict[str, Any], transform: Transform, vae: JittedVAE, config: DataConfig, index: int
) -> dict[str, Any]:
    rng = np.random.default_rng([config.loader.seed, index])
    clip = transform(record, rng)
    high_res = clip['high_res_FHWC']

    def latents(video_FHWC: np.ndarray) -> np.ndarray:
        return np.asarray(jax.device_get(vae.latents(video_FHWC[None])[0]), np.float16)

    text = {'text': clip['text_LD']} if 'text_LD' in clip else {}
    z_low = np.stack([latents(weak(high_res, rng, config.weak)) for _ in range(config.cache.low_variants)])
    return {'z_high': latents(high_res), 'z_low': z_low, **text}


def _stamp(config: DataConfig, records: int, vae_digest: str) -> str:
    """Everything that the latents depend on, in 16 hexadecimal digits."""
    others = ('loader', 'in_memory', 'heldout', 'heldout_size', 'eval_clips')
    values = {k: v for k, v in config_lib.to_dict(config).items() if k not in others}
    values |= {'cache': config.cache.low_variants, 'seed': config.loader.seed, 'records': records}
    text = json.dumps([values, vae_digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
