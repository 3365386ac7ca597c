"""From a data configuration to batches: which records, and what happens to them on the way."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError, check_range
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.data import buckets as bucketing
from fv_jax.data import sources, transforms
from fv_jax.data.buckets import Bucket, Fit
from fv_jax.data.degradation.degradations import Degradation, StrongConfig, Twin, WeakConfig
from fv_jax.data.loader import Batch, LoaderConfig, Part, Source, Stream, batches, check_parts, mixed_batches
from fv_jax.data.shards import provenance
from fv_jax.data.shards.bad_records import BadRecordConfig, BadRecords
from fv_jax.data.sources import EMBEDDED, IMAGES, STILLS, SWINGS, SYNTHETIC, TFDS
from fv_jax.data.synthetic import sprites
from fv_jax.text.encoder import TextEncoder

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """Encode every clip once, before training: its latents and those of `low_variants` low-quality twins. Stage 1 needs
    no twins: 0.

    crop: (height, width) in latent pixels that a training row is cut to; None keeps the whole picture.
    """

    low_variants: int = 2
    crop: tuple[int, int] | None = None

    def __post_init__(self):
        check_range(self, 'low_variants', low=0)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """train, heldout: names of sources, as `sources.py` explains them: 'embedded', 'synthetic', a folder of shards,
      'images:FOLDER', 'stills:NAME', 'swing:NAME', joined by '+', with '@weight' behind each to mix them. heldout may
      be '' for none.
    frames, height, width: of a clip; larger ones are cut to a window and, per `fit`, cropped or resized.
    buckets: sizes to train at in place of that one; every clip goes to the one that suits it (`Fit`).
    token_budget: video tokens of a global batch; each bucket's batch is as large as it allows, a multiple of
      batch_multiple (choose what every number of processes divides). None: loader.batch_size for all.
    max_upscale, max_cut: of `Fit`, where clips are resized.
    fit: 'crop' cuts height x width out of the picture, at random in training; 'resize' scales to cover, then cuts.
    max_pan: pixels a frame; with 'crop' in training, half of the cuts glide over the picture, at most so fast.
    flip: mirror half of the clips.
    in_memory: decode every training clip once and keep it; for data sets of some hundred megabytes.
    eval_clips: how many held-out clips are evaluated; heldout_size: (frames, height, width) of them, None for the same.
    weak, strong, strong_probability: how the low-quality twins are made (`Degradation`).
    cache: encode once at the start; None encodes in every step.
    bad_records: what happens to what cannot be used.
    """

    loader: LoaderConfig
    train: str = EMBEDDED
    heldout: str = EMBEDDED
    frames: int = 49
    height: int = 1072
    width: int = 1920
    buckets: tuple[Bucket, ...] = ()
    token_budget: int | None = None
    batch_multiple: int = 1
    fit: Literal['crop', 'resize'] = 'resize'
    max_upscale: float = 1.0
    max_cut: float = 0.4
    max_pan: float = 0.0
    flip: bool = True
    in_memory: bool = False
    eval_clips: int = 4
    heldout_size: tuple[int, int, int] | None = None
    weak: WeakConfig = dataclasses.field(default_factory=WeakConfig)
    strong: StrongConfig | None = None
    strong_probability: float = 0.0
    cache: CacheConfig | None = None
    bad_records: BadRecordConfig = dataclasses.field(default_factory=BadRecordConfig)

    def __post_init__(self):
        check_range(self, 'max_pan', low=0, hint='0 keeps crops still')
        check_range(self, 'eval_clips', 'batch_multiple', 'token_budget', low=1)
        require(len(set(self.buckets)) == len(self.buckets), 'buckets: the same size twice', ConfigError)
        _ = self.degradation, self.clip_fit  # what they refuse is refused here, not when the first clip is drawn

    @property
    def degradation(self) -> Degradation:
        return Degradation(self.weak, self.strong, self.strong_probability)

    @property
    def sizes(self) -> tuple[Bucket, ...]:
        """The sizes that are trained at."""
        return self.buckets or (Bucket(self.frames, self.height, self.width),)

    @property
    def clip_fit(self) -> Fit:
        return Fit(self.fit == 'resize', self.max_upscale, self.max_cut)

    def batch_size(self, bucket: Bucket, latent_spec: LatentSpec) -> int:
        """The global one."""
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


def source(name: str, config: DataConfig, *, heldout: bool, bad: BadRecords | None = None) -> Source:
    """The records that `name` stands for, of all its parts. Raises ValueError when there are none.

    bad: where shards that cannot be opened are counted; without it, the first stops.
    """
    bad = bad or BadRecords(BadRecordConfig())
    found = [_one_source(part, config, heldout, bad) for part, _ in sources.parse(name)]
    return found[0] if len(found) == 1 else sources.Joined(found)


def training_parts(config: DataConfig, bad: BadRecords) -> list[Part]:
    """The sources of `config.train`: one part of all of them, or, where they have weights, one of each."""
    named = sources.parse(config.train)
    if named[0][1] is None:
        return [Part(config.train, source(config.train, config, heldout=False, bad=bad))]
    return [Part(name, source(name, config, heldout=False, bad=bad), weight=weight) for name, weight in named]


def _one_source(name: str, config: DataConfig, heldout: bool, bad: BadRecords) -> Source:
    kind, _, rest = name.partition(':')
    if name == SYNTHETIC:
        return synthetic_clips(config.eval_clips if heldout else 4, *_size(config, heldout))
    if sprites.is_name(name):
        return sprites.source(name, _size(config, heldout), heldout=heldout)
    if kind in (STILLS, SWINGS):
        return (sources.Stills if kind == STILLS else sources.Swings)(_one_source(rest, config, heldout, bad))
    if kind == TFDS:
        from fv_jax.data.shards.tfds_builder import Examples

        return Examples(rest)
    if kind == IMAGES:
        return sources.ImageFolder(rest)
    shards = sources.embedded_shards(heldout=heldout) if name == EMBEDDED else sources.open_shards(name, bad)
    return sources.InMemory(shards) if config.in_memory and not heldout else shards


def _size(config: DataConfig, heldout: bool) -> tuple[int, int, int]:
    if heldout and config.heldout_size is not None:
        return config.heldout_size
    return config.frames, config.height, config.width


@dataclasses.dataclass(frozen=True)
class Group:
    """The records that are trained on at one size. share: of all steps. tokens: of a clip."""

    bucket: Bucket
    parts: tuple[Part, ...]
    batch_size: int
    share: float
    tokens: int

    def __str__(self) -> str:
        clips, tokens = sum(map(len, self.parts)), self.batch_size * self.tokens
        return (
            f'{self.bucket}: {clips} clips, batch {self.batch_size} ({tokens:,} tokens), {self.share:.1%} of the steps'
        )


def groups(parts: Sequence[Part], config: DataConfig, latent_spec: LatentSpec) -> list[Group]:
    """Which records of which part are trained on at which size.

    Reports each size that is trained at, which are the shapes that will be compiled, and every reason why clips are
    left out.

    Raises ValueError when a source has no clips that fit, naming it.
    """
    members = {bucket: [] for bucket in config.sizes}
    rows = dict.fromkeys(config.sizes, 0.0)
    total = sum(part.weight for part in parts)
    for part in parts:
        kept = _assigned(part, config, latent_spec)
        fitting = sum(map(len, kept.values()))
        for bucket, some in kept.items():
            if len(some):
                # Within a bucket, a part's weight is for the share of its clips that are in it.
                share = part.weight / total * len(some) / fitting
                members[bucket].append(dataclasses.replace(some, weight=share))
                rows[bucket] += share
    batch_sizes = {bucket: config.batch_size(bucket, latent_spec) for bucket in config.sizes}
    steps = {bucket: rows[bucket] / batch_sizes[bucket] for bucket in config.sizes}
    found = []
    for bucket, some in members.items():
        if not some:
            log.info(f'{bucket}: no clips')
            continue
        share = steps[bucket] / sum(steps.values())
        tokens = latent_spec.num_tokens(*bucket.size)
        found.append(Group(bucket, tuple(some), batch_sizes[bucket], share, tokens))
        log.info(str(found[-1]))
    return found


def _assigned(part: Part, config: DataConfig, latent_spec: LatentSpec) -> dict[Bucket, Part]:
    sizes = sources.sizes_of(part.source)
    if sizes is None:  # it draws its clips at the one size that is asked for
        if config.buckets:
            raise ConfigError(f'buckets: {part.name} is drawn at one size; leave buckets empty, or leave it out')
        return {config.sizes[0]: part}
    fit = bucketing.EXACT if provenance.holds_latents(part.source) else config.clip_fit
    assignment = bucketing.assign(sizes, config.sizes, fit, latent_spec)
    for reason, count in assignment.left_out.items():
        log.info(f'left out: {count} of {len(part)} clips of {part.name}: {reason}')
    if not any(map(len, assignment.members.values())):
        reasons = '; '.join(f'{count} {reason}' for reason, count in assignment.left_out.items())
        raise ValueError(f'{part.name}: none of its {len(part)} clips can be trained on: {reasons}')
    every = len(part)
    return {
        bucket: part if len(indices) == every else dataclasses.replace(part, indices=indices)
        for bucket, indices in assignment.members.items()
    }


def streams(
    found: Sequence[Group], config: DataConfig, *, low_res: bool, text: TextEncoder | None = None
) -> list[Stream]:
    """What is drawn of each group: of clips, decoded on the fly, high_res_FHWC and, if asked for, low_res_FHWC; of
    latents that `prepare` made, z_high_FHWC and z_low_FHWC. With either text_LD, as in `pixels`.

    Raises ConfigError when both meet in one size, and BadRecordError when nothing of a source can be used.
    """
    made = []
    for group in found:
        kinds = {provenance.holds_latents(part.source) for part in group.parts}
        if len(kinds) > 1:
            raise ConfigError(f'train: of size {group.bucket} there are both clips and latents; train on one of them')
        transform = training_pixels(config, group.bucket, low_res=low_res, text=text)
        if kinds == {True}:
            embed = [] if text is None else [transforms.EmbedCaption(text)]
            transform = transforms.chain(transforms.Latents(), *embed, transforms.keep_arrays)
        made.append(Stream(group.parts, transform, group.batch_size, group.share))
    check_parts(made)
    return made


def synthetic_clips(count: int, frames: int, height: int, width: int) -> list[dict[str, object]]:
    """Drifting sinusoids in colour: records with a uint8 array as `video`."""
    frame, row, column = np.ogrid[:frames, :height, :width]
    clips = []
    for i in range(count):
        down = np.sin((row + (i + 2) * frame) / (5 + i))[..., None]
        across = np.cos(column[..., None] / (7 + i) + np.arange(3))
        wave = down * across
        clips.append({'video': transforms.to_uint8(wave)})
    return clips


def pixels(
    config: DataConfig, *, low_res: bool, training: bool, text: TextEncoder | None = None
) -> transforms.Transform:
    """Record -> high_res_FHWC and, if asked for, low_res_FHWC, at the config's size; text_LD where the record holds an
    embedding, or a `text` encoder makes one. Random windows, crops and flips only in training.
    """
    return _pixels(config, Bucket(*_size(config, heldout=not training)), low_res, training, text)


def training_pixels(
    config: DataConfig, bucket: Bucket, *, low_res: bool, text: TextEncoder | None = None
) -> transforms.Transform:
    """The same at the size of a bucket, for training."""
    return _pixels(config, bucket, low_res, True, text)


def _pixels(
    config: DataConfig, bucket: Bucket, low_res: bool, training: bool, text: TextEncoder | None
) -> transforms.Transform:
    if config.fit == 'crop':
        fit = transforms.Crop(bucket.height, bucket.width, random=training, max_pan=config.max_pan)
    else:
        fit = transforms.Resize(bucket.height, bucket.width)
    steps = [transforms.decode_video, transforms.Window(bucket.frames, random=training), fit]
    if training and config.flip:
        steps.append(transforms.Flip())
    steps.append(transforms.to_high_res)
    if low_res:
        steps.append(Twin(config.degradation))
    if text is not None:
        steps.append(transforms.EmbedCaption(text))
    return transforms.chain(*steps, transforms.keep_arrays)


def train_batches(
    drawn: Sequence[Stream], config: DataConfig, bad: BadRecords, *, start_step: int, process: tuple[int, int]
) -> Iterator[Batch]:
    """Endless batches from `start_step` on; process = (index, count)."""
    return mixed_batches(drawn, config.loader, start_step=start_step, process=process, bad=bad)


def heldout_batches(
    records: Source,
    transform: transforms.Transform,
    config: DataConfig,
    *,
    rows: int = 1,
    process: tuple[int, int] = (0, 1),
) -> list[Batch]:
    """The first `eval_clips` held-out clips, the same at every evaluation and in every run.

    rows: clips of a batch. process: (index, count), which part of each batch is wanted.

    Raises ConfigError when the clips do not make up batches.
    """
    count = min(config.eval_clips, len(records))
    require(
        count % rows == 0,
        f'config.data.eval_clips={config.eval_clips}: {count} of {len(records)} held-out clips do not make batches '
        f'of {rows}; use a multiple of {rows}, or set config.loop.eval_every=0',
        ConfigError,
    )
    one = LoaderConfig(batch_size=1, num_threads=0)
    share = rows // process[1]
    out = []
    for first in range(process[0] * share, count, rows):
        clips = [
            next(batches([records[i]], transform, dataclasses.replace(one, seed=i)))
            for i in range(first, first + share)
        ]
        out.append({name: np.concatenate([clip[name] for clip in clips]) for name in clips[0]})
    return out
