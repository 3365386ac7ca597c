"""The input pipeline: builds data sources, buckets, streams and batches from a data configuration."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence

import numpy as np

from fv_jax.core.config import ConfigError
from fv_jax.core.files import is_remote
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.core.local_copies import local_copy
from fv_jax.core.paths import StoragePath, as_path
from fv_jax.data import buckets as bucketing
from fv_jax.data import sources, transforms
from fv_jax.data.buckets import Bucket
from fv_jax.data.config import DataConfig
from fv_jax.data.degradation.degradations import Degrade
from fv_jax.data.loader import (
    Batch,
    BatchStream,
    DataSource,
    LoaderConfig,
    WeightedSource,
    check_streams,
    load_batches,
    load_mixed_batches,
)
from fv_jax.data.shards import provenance
from fv_jax.data.shards.bad_records import BadRecordConfig, BadRecords
from fv_jax.data.shards.remote import RemoteShards
from fv_jax.data.shards.shard_cache import ShardCache
from fv_jax.data.shards.shard_files import list_shards
from fv_jax.data.shards.source import Shards
from fv_jax.data.sources import EMBEDDED, IMAGES, MOVING, PINGPONG, STILLS, SYNTHETIC, TFDS
from fv_jax.data.synthetic import sprites
from fv_jax.data.synthetic.moving_images import MovingImages
from fv_jax.text.encoder import TextEncoder

log = logging.getLogger(__name__)


def open_source(name: str, config: DataConfig, *, heldout: bool, bad: BadRecords | None = None) -> DataSource:
    """Opens the data source of this name, which concatenates its parts.

    Args:
      name: as in `DataConfig.train`; weights are ignored.
      config: sizes, and whether to keep records in memory.
      heldout: whether to open the held-out clips, of a source that has both.
      bad: counts shards that cannot be opened; None raises at the first.

    Raises:
      ValueError, OSError: the source does not exist, cannot be read, or holds no records.
    """
    bad, cache = bad or BadRecords(BadRecordConfig()), ShardCache(config.cache_gb)
    found = [_open_one_source(part, config, heldout, bad, cache) for part, _ in sources.parse(name)]
    return found[0] if len(found) == 1 else sources.ConcatSource(found)


def training_sources(config: DataConfig, bad: BadRecords) -> list[WeightedSource]:
    """Opens the sources of `config.train`: one concatenation of all, or, if they have weights, each separately."""
    named = sources.parse(config.train)
    if named[0][1] is None:
        return [WeightedSource(config.train, open_source(config.train, config, heldout=False, bad=bad))]
    cache = ShardCache(config.cache_gb)
    return [
        WeightedSource(name, _open_one_source(name, config, False, bad, cache), weight=weight) for name, weight in named
    ]


def _open_one_source(name: str, config: DataConfig, heldout: bool, bad: BadRecords, cache: ShardCache) -> DataSource:
    kind, _, rest = name.partition(':')
    if name == SYNTHETIC:
        return synthetic_clips(config.eval_clips if heldout else 4, *_size(config, heldout))
    if sprites.is_name(name):
        return sprites.open_source(name, _size(config, heldout), heldout=heldout)
    if kind in (STILLS, PINGPONG):
        return (sources.FirstFrames if kind == STILLS else sources.PingPong)(
            _open_one_source(rest, config, heldout, bad, cache)
        )
    if kind == MOVING:
        count, _, counted = rest.partition(':')
        images, count = (counted, int(count)) if count.isdecimal() else (rest, None)
        return MovingImages(_open_one_source(images, config, heldout, bad, cache), _size(config, heldout), count)
    if kind == TFDS:
        from fv_jax.data.shards.tfds_builder import Examples

        return Examples(str(local_copy(as_path(rest))))
    if kind == IMAGES:
        return sources.ImageFolder(local_copy(as_path(rest)))
    if name == EMBEDDED:
        shards = sources.open_embedded_shards(heldout=heldout)
    else:
        shards = open_shards(as_path(name), config, bad, cache)
    return sources.InMemory(shards) if config.in_memory and not heldout else shards


def open_shards(
    folder: StoragePath, config: DataConfig, bad: BadRecords, cache: ShardCache | None = None, name: str | None = None
) -> Shards:
    """Opens the shards of a folder; those that cannot be opened are reported and skipped.

    Args:
      folder: of one set of shards or more, local or remote.
      config: how remote shards are kept and mixed.
      bad: counts the shards that cannot be opened.
      cache: keeps remote shards; None makes one.
      name: of one set; None opens all of them.

    Raises:
      ValueError, OSError: no shard can be opened.
    """
    if is_remote(folder):
        return RemoteShards(folder, cache or ShardCache(config.cache_gb), config.window_shards, bad, name)
    return Shards(list_shards(folder, name), bad)


def _size(config: DataConfig, heldout: bool) -> tuple[int, int, int]:
    if heldout and config.heldout_size is not None:
        return config.heldout_size
    return config.frames, config.height, config.width


@dataclasses.dataclass(frozen=True)
class BucketGroup:
    """The records of one bucket.

    Attributes:
      bucket: their size.
      parts: where they come from.
      batch_size: of the global batch.
      share: of all steps.
      tokens: video tokens of a clip.
    """

    bucket: Bucket
    parts: tuple[WeightedSource, ...]
    batch_size: int
    share: float
    tokens: int

    def __str__(self) -> str:
        clips, tokens = sum(map(len, self.parts)), self.batch_size * self.tokens
        return (
            f'{self.bucket}: {clips} clips, batch {self.batch_size} ({tokens:,} tokens), {self.share:.1%} of the steps'
        )


def group_by_bucket(parts: Sequence[WeightedSource], config: DataConfig, latent_spec: LatentSpec) -> list[BucketGroup]:
    """Groups the records of all sources by bucket.

    Logs each bucket in use, whose shapes will be compiled, and how many clips are skipped for which reason.

    Raises ValueError, naming the source, when none of its clips fits a bucket.
    """
    sources_by_bucket = {bucket: [] for bucket in config.sizes}
    rows = dict.fromkeys(config.sizes, 0.0)
    total = sum(part.weight for part in parts)
    for part in parts:
        kept = _assign_to_buckets(part, config, latent_spec)
        fitting = sum(map(len, kept.values()))
        for bucket, some in kept.items():
            if len(some):
                # Within a bucket, a source's weight is multiplied by the share of its clips that are in the bucket.
                share = part.weight / total * len(some) / fitting
                sources_by_bucket[bucket].append(dataclasses.replace(some, weight=share))
                rows[bucket] += share
    batch_sizes = {bucket: config.batch_size(bucket, latent_spec) for bucket in config.sizes}
    steps = {bucket: rows[bucket] / batch_sizes[bucket] for bucket in config.sizes}
    found = []
    for bucket, some in sources_by_bucket.items():
        if not some:
            log.info(f'{bucket}: no clips')
            continue
        share = steps[bucket] / sum(steps.values())
        tokens = latent_spec.num_tokens(*bucket.size)
        found.append(BucketGroup(bucket, tuple(some), batch_sizes[bucket], share, tokens))
        log.info(str(found[-1]))
    return found


def _assign_to_buckets(
    part: WeightedSource, config: DataConfig, latent_spec: LatentSpec
) -> dict[Bucket, WeightedSource]:
    sizes = sources.read_sizes(part.source)
    if sizes is None:  # a source that renders its clips at one given size
        if config.buckets:
            raise ConfigError(f'buckets: {part.name} has one size; leave buckets empty, or remove it from train')
        return {config.sizes[0]: part}
    fit = bucketing.EXACT_FIT if provenance.is_latent_source(part.source) else config.clip_fit
    assignment = bucketing.assign(sizes, config.sizes, fit, latent_spec)
    dropped = sources.find_dropped(part.source, config.selection)
    if dropped is None and config.filter:
        log.info(f'note: {part.name} has no scores: config.data.filter does not apply to it')
    if dropped is not None:
        assignment = assignment.drop(dropped, config.selection.reasons)
    for reason, count in assignment.skipped.items():
        log.info(f'skipped: {count} of {len(part)} clips of {part.name}: {reason}')
    if not any(map(len, assignment.indices_by_bucket.values())):
        reasons = '; '.join(f'{count} {reason}' for reason, count in assignment.skipped.items())
        raise ValueError(f'{part.name}: none of its {len(part)} clips can be trained on: {reasons}')
    every = len(part)
    return {
        bucket: part if len(indices) == every else dataclasses.replace(part, indices=indices)
        for bucket, indices in assignment.indices_by_bucket.items()
    }


def make_streams(
    found: Sequence[BucketGroup], config: DataConfig, *, low_res: bool, text: TextEncoder | None = None
) -> list[BatchStream]:
    """Builds the stream of each group.

    Clips are decoded on the fly to high_res_FHWC and, with `low_res`, low_res_FHWC; latents that `prepare` made give
    z_high_FHWC and z_low_FHWC. Both have text_LD as `clip_transform` describes.

    Raises:
      ConfigError: a bucket has both clips and latents.
      BadRecordError: no record of a source can be used.
    """
    made = []
    for group in found:
        kinds = {provenance.is_latent_source(part.source) for part in group.parts}
        if len(kinds) > 1:
            raise ConfigError(f'train: bucket {group.bucket} has both clips and latents; remove one of them')
        transform = training_transform(config, group.bucket, low_res=low_res, text=text)
        if kinds == {True}:
            embed = [] if text is None else [transforms.EmbedCaption(text)]
            transform = transforms.compose(transforms.Latents(), *embed, transforms.keep_arrays)
        made.append(BatchStream(group.parts, transform, group.batch_size, group.share))
    check_streams(made)
    return made


def synthetic_clips(count: int, frames: int, height: int, width: int) -> list[dict[str, object]]:
    """Makes records of drifting coloured sinusoids, with a uint8 array (F, H, W, 3) as `video`, for tests."""
    frame, row, column = np.ogrid[:frames, :height, :width]
    clips = []
    for i in range(count):
        down = np.sin((row + (i + 2) * frame) / (5 + i))[..., None]
        across = np.cos(column[..., None] / (7 + i) + np.arange(3))
        wave = down * across
        clips.append({'video': transforms.to_uint8(wave)})
    return clips


def clip_transform(
    config: DataConfig, *, low_res: bool, training: bool, text: TextEncoder | None = None
) -> transforms.Transform:
    """Builds the transform from a record to arrays of the configured size.

    Args:
      config: size and augmentations.
      low_res: whether to add low_res_FHWC, the degraded high_res_FHWC.
      training: whether windows, crops and flips are random.
      text: embeds the captions as text_LD; without it text_LD is the embedding that the record holds, if any.
    """
    return _clip_transform(config, Bucket(*_size(config, heldout=not training)), low_res, training, text)


def training_transform(
    config: DataConfig, bucket: Bucket, *, low_res: bool, text: TextEncoder | None = None
) -> transforms.Transform:
    """Builds the training transform at the size of a bucket; see `clip_transform`."""
    return _clip_transform(config, bucket, low_res, True, text)


def _clip_transform(
    config: DataConfig, bucket: Bucket, low_res: bool, training: bool, text: TextEncoder | None
) -> transforms.Transform:
    if config.fit == 'crop':
        fit = transforms.Crop(bucket.height, bucket.width, random=training, max_pan=config.max_pan)
    else:
        fit = transforms.Resize(bucket.height, bucket.width)
    steps = [transforms.decode_video, transforms.Window(bucket.frames, random=training), fit]
    if training and config.flip:
        steps.append(transforms.Flip())
    steps.append(transforms.normalize_video)
    if low_res:
        steps.append(Degrade(config.degradation.without_model()))
    if text is not None:
        steps.append(transforms.EmbedCaption(text))
    return transforms.compose(*steps, transforms.keep_arrays)


def train_batches(
    drawn: Sequence[BatchStream], config: DataConfig, bad: BadRecords, *, start_step: int, process: tuple[int, int]
) -> Iterator[Batch]:
    """Yields this process's training batches without end, from `start_step` on; `process` is (index, count)."""
    return load_mixed_batches(drawn, config.loader, start_step=start_step, process=process, bad=bad)


def heldout_clips(records: DataSource, transform: transforms.Transform, config: DataConfig) -> list[Batch]:
    """Loads the first `eval_clips` held-out clips, each as a batch of one, the same in every run."""
    count = min(config.eval_clips, len(records))
    return [load_heldout(records, transform, [index]) for index in range(count)]


def load_heldout(records: DataSource, transform: transforms.Transform, clips: Sequence[int]) -> Batch:
    """Loads held-out clips as one batch; each clip is the same at every call.

    Args:
      records: the held-out source.
      transform: without randomness in training mode, see `clip_transform`.
      clips: their indices; repeated ones are loaded once.
    """
    one = LoaderConfig(batch_size=1, num_threads=0)
    loaded = {
        int(i): next(load_batches([records[int(i)]], transform, dataclasses.replace(one, seed=int(i))))
        for i in dict.fromkeys(clips)
    }
    return {name: np.concatenate([loaded[int(i)][name] for i in clips]) for name in loaded[int(clips[0])]}
