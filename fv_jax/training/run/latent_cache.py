"""Clips encoded once, before training: their latents and those of several low-quality twins, kept as shards.

The shards are stamped with everything that made them; those of another VAE or other settings are refused.
"""

import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fv_jax.core import config as config_lib
from fv_jax.core.hashing import fingerprint
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.data.loader import Part, Shards, Source, Stream
from fv_jax.data.pipeline import DataConfig, Group, training_pixels
from fv_jax.data.shards.bad_records import BadRecords
from fv_jax.data.shards.records import RecordWriter, list_shards
from fv_jax.data.transforms import Latents, Transform, chain, keep_arrays
from fv_jax.models import vae_chunking
from fv_jax.stages.frozen_vae import JittedVAE
from fv_jax.text.encoder import TextEncoder

log = logging.getLogger(__name__)

FOLDER = 'latents'  # in a run's folder
NAME = 'latents'  # of the shards in it
_PROGRESS_S = 5.0  # seconds between two reports of progress


def cached_streams(
    folder: Path,
    groups: Sequence[Group],
    vae: JittedVAE,
    config: DataConfig,
    vae_digest: str,
    *,
    bad: BadRecords,
    text: TextEncoder | None = None,
) -> list[Stream]:
    """What is drawn of each group: z_high_FHWC and z_low_FHWC, from latents encoded once, and text_LD as in
    `pipeline.pixels`. See `cached_latents`.
    """
    transform = chain(Latents(config.cache.crop), keep_arrays)
    made_by = vae_digest if text is None else f'{vae_digest} {text.fingerprint.digest}'
    alone = len(groups) == 1 and len(groups[0].parts) == 1
    streams = []
    for group in groups:
        pixels = training_pixels(config, group.bucket, low_res=False, text=text)
        parts = []
        for i, part in enumerate(group.parts):
            where = folder if alone else folder / f'{group.bucket}-{i}'
            source = cached_latents(where, part, pixels, vae, config, made_by, bad=bad)
            parts.append(Part(part.name, source, weight=part.weight))
        streams.append(Stream(tuple(parts), transform, group.batch_size, group.share))
    return streams


def cached_latents(
    folder: Path,
    records: Part,
    transform: Transform,
    vae: JittedVAE,
    config: DataConfig,
    made_by: str,
    *,
    bad: BadRecords,
) -> Source:
    """Records `z_high` (F, H, W, C) and `z_low` (K, F, H, W, C), float16, one for each of `records` that is not bad.

    Args:
      folder: where the shards are, or will be.
      records, transform: `transform` gives high_res_FHWC. It is drawn once for each record, the low-quality twin once
        for each low variant of what it gave.
      made_by: the digests of the VAE and, where words are embedded, of the text encoder.
      bad: where records that cannot be used are counted.

    Raises:
      ValueError: the folder holds latents that something else made.
    """
    stamp = _stamp(config, folder.name, len(records), made_by)
    path = folder / f'{NAME}.json'
    if path.exists():
        if (found := json.loads(path.read_text()).get('stamp')) != stamp:
            raise ValueError(f'{folder}: holds latents of another VAE or other data ({found}, not {stamp}); delete it')
        return Shards(list_shards(folder, NAME))
    variants = config.cache.low_variants
    twins = f' and {variants} low-quality twin(s) of each' if variants else ''
    log.info(f'encoding {len(records)} clips{twins}, once; kept in {folder}')
    reported = time.monotonic()
    made = _made_ahead(records, transform, config)
    with RecordWriter(folder, NAME) as writer, contextlib.closing(made):
        for i, (name, clip_and_twins) in enumerate(made):
            try:
                clip, twins = clip_and_twins.result()
                text = {'text': clip['text_LD']} if 'text_LD' in clip else {}
                writer.write(encode_pair(clip['high_res_FHWC'], twins, vae) | text)
            except ValueError as error:
                bad.report(name, error)
            if i + 1 == len(records) or time.monotonic() - reported > _PROGRESS_S:
                log.info(f'encoded {i + 1}/{len(records)} clips')
                reported = time.monotonic()
        writer.summary = {'stamp': stamp}
    return Shards(list_shards(folder, NAME))


def cached_shards(folder: Path) -> list[str]:
    """All shards that `cached_streams` wrote there."""
    folders = (
        [folder] if (folder / f'{NAME}.json').exists() else sorted(path for path in folder.iterdir() if path.is_dir())
    )
    return [shard for found in folders for shard in list_shards(found, NAME)]


def vae_stamp(digest: str, latent_spec: LatentSpec) -> dict[str, Any]:
    """What latents depend on besides their clip: the VAE's parameters and the clip's chunks (model guide 4.3)."""
    return {'vae': digest, 'chunks': list(vae_chunking.encode_chunks(latent_spec))}


def encode_pair(high_res: np.ndarray, twins: Iterable[np.ndarray], vae: JittedVAE) -> dict[str, Any]:
    """The latents of a clip FHWC in [-1, 1] and of its K low-quality twins, float16: z_high (F', H', W', C) and z_low
    (K, F', H', W', C); and the clip's size, as `frames`, `height` and `width`.
    """

    def latents(video_FHWC: np.ndarray) -> np.ndarray:
        return np.asarray(jax.device_get(vae.latents(video_FHWC[None])[0]), np.float16)

    z_high, z_low = latents(high_res), [latents(twin) for twin in twins]
    z_lows = np.stack(z_low) if z_low else np.empty((0, *z_high.shape), z_high.dtype)
    size = dict(zip(('frames', 'height', 'width'), high_res.shape[:3], strict=True))
    return {'z_high': z_high, 'z_low': z_lows, **size}


def _made_ahead(records: Part, transform: Transform, config: DataConfig) -> Iterator[tuple[str, Future]]:
    """The name of each record and, in the making while others are encoded, its clip and low-quality twins."""

    def make(index: int, read: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], list[np.ndarray]]:
        rng = np.random.default_rng([config.loader.seed, index])
        clip = transform(read(), rng)
        return clip, [config.degradation.twin(clip['high_res_FHWC'], rng) for _ in range(config.cache.low_variants)]

    threads = max(config.loader.num_threads, 1)
    waiting: deque[tuple[str, Future]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for i in range(len(records)):
                name, read = records.record(i)
                waiting.append((name, pool.submit(make, i, read)))
                if len(waiting) > threads:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, future in waiting:
                future.cancel()


def _stamp(config: DataConfig, name: str, records: int, made_by: str) -> str:
    """Everything that the latents depend on, in 16 hexadecimal digits."""
    others = ('loader', 'in_memory', 'heldout', 'heldout_size', 'eval_clips', 'token_budget', 'batch_multiple')
    values = {k: v for k, v in config_lib.to_dict(config).items() if k not in others}
    values |= {'cache': config.cache.low_variants, 'seed': config.loader.seed, 'name': name, 'records': records}
    return fingerprint([json.dumps([values, made_by], sort_keys=True)])
