"""The latent cache: clips and several degraded variants of each, encoded once before training and stored as shards.

Everything that they depend on is stored beside the shards; with another VAE or other settings they are refused.
"""

import contextlib
import functools
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from fv_jax.core import config as config_lib
from fv_jax.core import files
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.core.paths import StoragePath
from fv_jax.data.config import DataConfig
from fv_jax.data.degradation.configs import DEGRADATION_FIELDS
from fv_jax.data.degradation.degradations import GuidedByModel, PreviewModel
from fv_jax.data.loader import BatchStream, DataSource, WeightedSource
from fv_jax.data.pipeline import BucketGroup, open_shards, training_transform
from fv_jax.data.shards.bad_records import BadRecordConfig, BadRecords
from fv_jax.data.shards.record_writer import RecordWriter
from fv_jax.data.shards.shard_cache import ShardCache
from fv_jax.data.shards.shard_files import list_shards
from fv_jax.data.streaming import read_in_order
from fv_jax.data.transforms import Latents, Transform, compose, keep_arrays
from fv_jax.models import vae_chunking
from fv_jax.stages.frozen_vae import JittedVAE
from fv_jax.text.encoder import TextEncoder
from fv_jax.training.monitoring.metric_writer import format_duration

log = logging.getLogger(__name__)

OpenModel = Callable[[], PreviewModel]

FOLDER = 'latents'  # in a run's folder
NAME = 'latents'  # first part of the names of its shards
MADE_WITH = 'made_with'  # in the JSON beside them: what they depend on
_PROGRESS_S = 5.0  # seconds between two reports of progress


def cached_streams(
    folder: StoragePath,
    groups: Sequence[BucketGroup],
    vae: JittedVAE,
    config: DataConfig,
    encoder_fingerprint: str,
    *,
    bad: BadRecords,
    text: TextEncoder | None = None,
    open_model: OpenModel | None = None,
) -> list[BatchStream]:
    """Returns a stream for each group with z_high_FHWC and z_low_FHWC, and text_LD as in `pipeline.pixels`.

    Groups are encoded where their shards do not exist yet. See `cached_latents`.
    """
    open_model = functools.cache(open_model) if open_model else None
    transform = compose(Latents(config.cache.crop), keep_arrays)
    made_by = encoder_fingerprint if text is None else f'{encoder_fingerprint} {text.fingerprint.digest}'
    alone = len(groups) == 1 and len(groups[0].parts) == 1
    shards = ShardCache(config.cache_gb)  # of the latents, where the folder is remote
    streams = []
    for group in groups:
        pixels = training_transform(config, group.bucket, low_res=False, text=text)
        parts = []
        for i, part in enumerate(group.parts):
            where = folder if alone else folder / f'{group.bucket}-{i}'
            source = cached_latents(
                where, part, pixels, vae, config, made_by, bad=bad, shards=shards, open_model=open_model
            )
            parts.append(WeightedSource(part.name, source, weight=part.weight))
        streams.append(BatchStream(tuple(parts), transform, group.batch_size, group.share))
    return streams


def cached_latents(
    folder: StoragePath,
    records: WeightedSource,
    transform: Transform,
    vae: JittedVAE,
    config: DataConfig,
    made_by: str,
    *,
    bad: BadRecords,
    shards: ShardCache | None = None,
    open_model: OpenModel | None = None,
) -> DataSource:
    """Returns records `z_high` (F, H, W, C) and `z_low` (K, F, H, W, C), float16, one for each readable record.

    Args:
      folder: where the shards are, or will be written.
      records: the clips.
      transform: returns high_res_FHWC. It is applied once to each record, and its output is degraded
        `cache.num_degraded_variants` times.
      made_by: the fingerprints of the VAE's encoder and, where captions are embedded, of the text encoder.
      bad: counts the records that cannot be used.
      shards: keeps the shards of latents in a remote folder; None makes one.
      open_model: opens the model of model-guided degradations, if the configuration has any.

    Raises:
      ValueError: the folder contains latents that were made with other settings, clips or networks.
    """
    made_with = _settings(config, folder.name, len(records), made_by)
    path = folder / f'{NAME}.json'
    if path.exists():
        _check_settings(folder, json.loads(path.read_text()).get(MADE_WITH, {}), made_with)
        return open_shards(folder, config, BadRecords(BadRecordConfig()), shards, NAME)
    variants = config.cache.num_degraded_variants
    degraded = f' and {variants} degraded variant(s) of each' if variants else ''
    log.info(f'encoding {len(records)} clips{degraded}, once; stored in {folder}')
    model = open_model() if config.model_guided_probability and variants else None
    started = reported = time.monotonic()
    clips = _degrade_ahead(records, transform, config)
    _remove_unfinished(folder)
    # Shards without their JSON are those of a process that was killed when it published them.
    with RecordWriter(folder, NAME, overwrite=True) as writer, contextlib.closing(clips):
        for i, (name, future) in enumerate(clips):
            try:
                clip, degraded = future.result()
                text = clip.get('text_LD')
                encoded = encode_pair(clip['high_res_FHWC'], degraded, vae, model, text)
                writer.write(encoded if text is None else encoded | {'text': text})
            except ValueError as error:
                bad.report(name, error)
            if i + 1 == len(records) or time.monotonic() - reported > _PROGRESS_S:
                reported = time.monotonic()
                eta_s = (reported - started) / (i + 1) * (len(records) - i - 1)
                left = f', ETA {format_duration(eta_s)}' if i + 1 < len(records) else ''
                log.info(f'encoded {i + 1}/{len(records)} clips{left}')
        writer.summary = {MADE_WITH: made_with}
    return open_shards(folder, config, BadRecords(BadRecordConfig()), shards, NAME)


def _remove_unfinished(folder: StoragePath) -> None:
    """Removes what a killed process has left; no other writes there, since the run's work directory is locked."""
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(f'.{NAME}.') and path.name.endswith('.partial'):
            files.remove_folder(path, suffix='')


def cached_shards(folder: StoragePath) -> list[str]:
    """Lists all shards that `cached_streams` wrote to a folder. Raises ValueError for a folder without any."""
    folders = (
        [folder] if (folder / f'{NAME}.json').exists() else sorted(path for path in folder.iterdir() if path.is_dir())
    )
    return [shard for found in folders for shard in list_shards(found, NAME)]


def vae_provenance(digest: str, latent_spec: LatentSpec) -> dict[str, Any]:
    """Returns what latents depend on besides their clip: the VAE, and its chunks in time (model guide 4.3)."""
    return {'vae': digest, 'chunks': list(vae_chunking.encode_chunks(latent_spec))}


def encode_pair(
    high_res: np.ndarray,
    degraded: Iterable[np.ndarray | GuidedByModel],
    vae: JittedVAE,
    model: PreviewModel | None = None,
    text_LD: np.ndarray | None = None,
) -> dict[str, Any]:
    """Encodes a clip and its K degraded variants.

    Args:
      high_res: FHWC in [-1, 1].
      degraded: the variants, shaped like it, or what the model has to do for one.
      vae: the VAE.
      model: of model-guided variants; None without any.
      text_LD: the embedding of the caption, for the model.

    Returns:
      float16 latents `z_high` (F', H', W', C) and `z_low` (K, F', H', W', C); and the size of the clip in pixels, as
      `frames`, `height` and `width`.
    """

    def latents(video_FHWC: np.ndarray) -> np.ndarray:
        return np.asarray(jax.device_get(vae.encode(video_FHWC[None])[0]), np.float16)

    def degraded_video(variant: np.ndarray | GuidedByModel) -> np.ndarray:
        return model(high_res, variant, text_LD) if isinstance(variant, GuidedByModel) else variant

    z_high, z_low = latents(high_res), [latents(degraded_video(variant)) for variant in degraded]
    z_lows = np.stack(z_low) if z_low else np.empty((0, *z_high.shape), z_high.dtype)
    size = dict(zip(('frames', 'height', 'width'), high_res.shape[:3], strict=True))
    return {'z_high': z_high, 'z_low': z_lows, **size}


def _degrade_ahead(records: WeightedSource, transform: Transform, config: DataConfig) -> Iterator[tuple[str, Future]]:
    """Yields each record's name and a future of its clip and degraded variants, computed while others are encoded.

    Variants are what `Degradation.degrade` returns.
    """

    def degrade(index: int, read: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], list]:
        rng = np.random.default_rng([config.loader.seed, index])
        clip = transform(read(), rng)
        return clip, [
            config.degradation.degrade(clip['high_res_FHWC'], rng) for _ in range(config.cache.num_degraded_variants)
        ]

    threads = max(config.loader.num_threads, 1)
    waiting: deque[tuple[str, Future]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            with read_in_order(records, threads + 1) as numbers:
                for i in numbers:
                    name, read = records.record(i)
                    waiting.append((name, pool.submit(degrade, i, read)))
                    if len(waiting) > threads:
                        yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, future in waiting:
                future.cancel()


# Fields that latents of earlier versions do not state, and what they were made with.
_NEW = {
    'filter': '',
    'drop_duplicates': True,
    'flow_based': None,
    'flow_based_probability': 0.0,
    'model_guided': None,
    'model_guided_probability': 0.0,
}


def _settings(config: DataConfig, name: str, records: int, made_by: str) -> dict[str, Any]:
    """Returns everything that the latents depend on, as JSON gives it back; keys are fields of the configuration."""
    names = ['train', 'filter', 'drop_duplicates']
    names += ['buckets', 'fit', 'max_upscale', 'max_crop_fraction', 'max_pan', 'flip']
    names += [] if config.buckets else ['frames', 'height', 'width']
    names += DEGRADATION_FIELDS if config.cache.num_degraded_variants else []
    values = config_lib.to_dict(config)
    found = {f'data.{key}': values[key] for key in names} | {
        'data.cache.num_degraded_variants': config.cache.num_degraded_variants,
        'data.loader.seed': config.loader.seed,
        'bucket': name,
        'number of clips': records,
        'VAE and text encoder': made_by,
    }
    return json.loads(json.dumps(found))


def _check_settings(folder: StoragePath, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key, value in wanted.items():
        if (there := found.get(key, _NEW.get(key.removeprefix('data.')))) != value:
            raise ValueError(
                f'{folder}: contains latents that were made with other settings: {key} is {there!r} there and '
                f'{value!r} in this run; choose another --workdir, or delete {folder} to encode again'
            )
