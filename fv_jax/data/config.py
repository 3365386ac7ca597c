"""The configuration of a run's data: which clips, at which sizes, how they are degraded and loaded."""

import dataclasses
from typing import Literal

from fv_jax.core.checks import error_context, require
from fv_jax.core.config import ConfigError, check_range
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.data import buckets as bucketing
from fv_jax.data import sources
from fv_jax.data.buckets import Bucket, BucketFit
from fv_jax.data.curation.filters import Filter
from fv_jax.data.degradation.configs import DegradationConfig
from fv_jax.data.degradation.degradations import Degradation
from fv_jax.data.loader import LoaderConfig
from fv_jax.data.shards.bad_records import BadRecordConfig
from fv_jax.data.shards.selection import Selection
from fv_jax.data.sources import EMBEDDED


@dataclasses.dataclass(frozen=True)
class LatentCacheConfig:
    """A cache of latents: every clip is encoded once, before training.

    Attributes:
      num_degraded_variants: degraded variants of each clip that are also encoded; 0 for stage 1, which needs none.
      crop: (height, width) in latent pixels of the random crop that is a training example; None keeps whole frames.
    """

    num_degraded_variants: int = 2
    crop: tuple[int, int] | None = None

    def __post_init__(self):
        check_range(self, 'num_degraded_variants', low=0)


@dataclasses.dataclass(frozen=True)
class DataConfig(DegradationConfig):
    """Which clips a run trains on and how they are processed; the inherited fields are how they are degraded.

    Attributes:
      loader: batch size, seed and threads.
      train, heldout: names of sources (`sources.py`): 'embedded', 'synthetic', a folder of shards, 'images:FOLDER',
        'stills:NAME', 'pingpong:NAME', 'moving:NAME', joined by '+', each with '@weight' to mix them; quotes around
        names that contain these. heldout='' is none.
      frames, height, width: size of a clip; longer ones are cropped in time and, by `fit`, larger ones cropped or
        resized.
      filter: an expression over the scores of clips that `prepare` wrote (`curation/filters.py`), such as
        'sharpness >= 30 and motion > 0.5'; others are dropped. '' keeps all. Held-out clips and sources without scores,
        such as images, are not filtered.
      drop_duplicates: whether of near duplicates that the filter keeps only the first is trained on.
      buckets: sizes to train at instead of that one; every clip is assigned to the best fit (`BucketFit`).
      token_budget: video tokens of a global batch: each bucket's batch size is the largest multiple of batch_multiple
        within it (choose one that every number of processes divides). None uses loader.batch_size for all.
      fit: 'crop' crops height x width, at random in training; 'resize' scales to cover, then crops at the centre.
      max_upscale, max_crop_fraction: of `BucketFit`, where clips are resized.
      max_pan: pixels per frame; with 'crop' in training, half of the crops pan at constant velocity, at most so fast.
      flip: mirror half of the training clips.
      in_memory: decode every training clip once and keep it in memory; for data sets of a few hundred megabytes.
      eval_clips: how many held-out clips are evaluated.
      heldout_size: their (frames, height, width); None for that of training.
      cache: encode once at the start; None encodes in every step.
      bad_records: the policy for records that cannot be used.
      cache_gb: most GB of shards in object storage that a host keeps on its disk, in the cache folder.
      window_shards: of shards in object storage, how many are mixed with each other (`shard_order.py`); more mix better
        and take more of the cache.
    """

    loader: LoaderConfig
    train: str = EMBEDDED
    heldout: str = EMBEDDED
    frames: int = 49
    height: int = 1072
    width: int = 1920
    filter: str = ''
    drop_duplicates: bool = True
    buckets: tuple[Bucket, ...] = ()
    token_budget: int | None = None
    batch_multiple: int = 1
    fit: Literal['crop', 'resize'] = 'resize'
    max_upscale: float = 1.0
    max_crop_fraction: float = 0.4
    max_pan: float = 0.0
    flip: bool = True
    in_memory: bool = False
    eval_clips: int = 4
    heldout_size: tuple[int, int, int] | None = None
    cache: LatentCacheConfig | None = None
    bad_records: BadRecordConfig = dataclasses.field(default_factory=BadRecordConfig)
    cache_gb: float = 50.0
    window_shards: int = 16

    def __post_init__(self):
        super().__post_init__()
        check_range(self, 'max_pan', low=0, hint='0 keeps crops still')
        check_range(self, 'eval_clips', 'batch_multiple', 'token_budget', 'window_shards', low=1)
        check_range(self, 'cache_gb', above=0)
        require(len(set(self.buckets)) == len(self.buckets), 'buckets: the same size twice', ConfigError)
        online = f'model_guided_probability={self.model_guided_probability}: the model runs when clips are encoded once'
        fix = 'set cache, or let `prepare` store latents with these degradations'
        require(self.cache is not None or not self.model_guided_probability, f'{online}; {fix}', ConfigError)
        for name in ('train', 'heldout'):
            if names := getattr(self, name):
                with error_context(f'{name}: ', error=ConfigError):
                    sources.parse(names)
        _ = self.clip_fit, self.selection  # their checks run here, not when the first clip is loaded

    @property
    def degradation(self) -> Degradation:
        return Degradation.of(self)

    @property
    def selection(self) -> Selection:
        with error_context('filter: ', ConfigError, ConfigError):
            return Selection(Filter.parse(self.filter), self.drop_duplicates)

    @property
    def sizes(self) -> tuple[Bucket, ...]:
        """All sizes to train at: the buckets, or the one configured size."""
        return self.buckets or (Bucket(self.frames, self.height, self.width),)

    @property
    def clip_fit(self) -> BucketFit:
        return BucketFit(self.fit == 'resize', self.max_upscale, self.max_crop_fraction)

    def batch_size(self, bucket: Bucket, latent_spec: LatentSpec) -> int:
        """Computes the global batch size for clips of a bucket."""
        if self.token_budget is None:
            return self.loader.batch_size
        return bucketing.batch_size(latent_spec.num_tokens(*bucket.size), self.token_budget, self.batch_multiple)

    def check_sizes(self, latent_spec: LatentSpec, path: str = 'config.data') -> None:
        """Checks the clips' sizes, once the VAE is known; `path` and a dot precede a field's name in messages.

        Raises:
          ConfigError: a size that the VAE cannot take, naming the nearest that it can.
        """
        latent_spec.check_clip(path, self.frames, self.height, self.width)
        for i, bucket in enumerate(self.buckets):
            latent_spec.check_clip(f'{path}.buckets[{i}]', *bucket.size)
        if self.heldout_size is not None:
            latent_spec.check_frames(f'{path}.heldout_size[0]', self.heldout_size[0])
            for i in (1, 2):
                latent_spec.check_side(f'{path}.heldout_size[{i}]', self.heldout_size[i])
