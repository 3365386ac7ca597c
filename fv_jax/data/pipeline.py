"""From a data configuration to batches: which records, and what happens to them on the way."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from fv_jax.core.config import ConfigError
from fv_jax.core.resize import check_multiple
from fv_jax.data import embedded, sprites, transforms, video_io
from fv_jax.data.degradations import WeakConfig, WeakTwin
from fv_jax.data.loader import Batch, LoaderConfig, Shards, Source, batches
from fv_jax.data.records import Record, list_shards, read_records

EMBEDDED, SYNTHETIC = 'embedded', 'synthetic'


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """Encode every clip once, before training: its latents and those of `low_variants` low-quality twins.

    crop: (height, width) in latent pixels that a training row is cut to; None keeps the whole picture.
    """

    low_variants: int = 2
    crop: tuple[int, int] | None = None

    def __post_init__(self):
        if self.low_variants < 1:
            raise ConfigError(f'low_variants={self.low_variants}: must be at least 1')


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """train, heldout: 'embedded' (the film in the package), 'synthetic' (made up, for smoke tests), 'sprites' or
      'sprite_crops' (drawn, with captions: `sprites.source`; 'sprites:500' for 500 clips), or a folder of shards that
      `prepare` wrote. Several are joined by '+'. heldout may be '' for none.
    frames, height, width: of a clip; larger ones are cut to a window and, per `fit`, cropped or resized.
    fit: 'crop' cuts height x width out of the picture, at random in training; 'resize' scales to cover, then cuts.
    flip: mirror half of the clips.
    in_memory: decode every training clip once and keep it; for data sets of some hundred megabytes.
    eval_clips: how many held-out clips are evaluated; heldout_size: (frames, height, width) of them, None for the same.
    cache: encode once at the start; None encodes in every step.
    """

    loader: LoaderConfig
    train: str = EMBEDDED
    heldout: str = EMBEDDED
    frames: int = 49
    height: int = 1072
    width: int = 1920
    fit: Literal['crop', 'resize'] = 'resize'
    flip: bool = True
    in_memory: bool = False
    eval_clips: int = 4
    heldout_size: tuple[int, int, int] | None = None
    weak: WeakConfig = dataclasses.field(default_factory=WeakConfig)
    cache: CacheConfig | None = None

    def __post_init__(self):
        transforms.check_frames('frames', self.frames)
        check_multiple('height', self.height)
        check_multiple('width', self.width)
        if self.heldout_size is not None:
            transforms.check_frames('heldout_size[0]', self.heldout_size[0])
            for i in (1, 2):
                check_multiple(f'heldout_size[{i}]', self.heldout_size[i])
        if self.eval_clips < 1:
            raise ConfigError(f'eval_clips={self.eval_clips}: must be at least 1')


def source(name: str, config: DataConfig, *, heldout: bool) -> Source:
    """The records that `name` stands for. Raises ValueError when there are none."""
    if '+' in name:
        return _Joined([source(part, config, heldout=heldout) for part in name.split('+')])
    if name == SYNTHETIC:
        return synthetic_clips(config.eval_clips if heldout else 4, *_size(config, heldout))
    if sprites.is_name(name):
        return sprites.source(name, _size(config, heldout), heldout=heldout)
    paths = _embedded_shards(heldout) if name == EMBEDDED else list_shards(name)
    if config.in_memory and not heldout:
        return [_decoded(record) for record in read_records(paths)]
    return Shards(paths)


class _Joined:
    """The records of several sources, one source after the other."""

    def __init__(self, parts: Sequence[Source]):
        self._parts, self._ends = parts, np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        part = int(np.searchsorted(self._ends, index, side='right'))
        return self._parts[part][int(index - self._ends[part] + len(self._parts[part]))]


def _embedded_shards(heldout: bool) -> list[str]:
    return embedded.heldout_shards() if heldout else embedded.train_shards()


def _decoded(record: Record) -> Record:
    """The record with its video as an array, which `transforms.decode_video` takes as well."""
    video = record['video']
    return record | {'video': video_io.decode(video).frames if isinstance(video, bytes) else video}


def _size(config: DataConfig, heldout: bool) -> tuple[int, int, int]:
    if heldout and config.heldout_size is not None:
        return config.heldout_size
    return config.frames, config.height, config.width


def synthetic_clips(count: int, frames: int, height: int, width: int) -> list[dict[str, object]]:
    """Drifting sinusoids in colour: records with a uint8 array as `video`."""
    frame, row, column = np.ogrid[:frames, :height, :width]
    clips = []
    for i in range(count):
        down = np.sin((row + (i + 2) * frame) / (5 + i))[..., None]
        across = np.cos(column[..., None] / (7 + i) + np.arange(3))
        wave = down * across
        clips.append({'video': np.rint(127.5 + 127.5 * wave).astype(np.uint8)})
    return clips


def pixels(config: DataConfig, *, low_res: bool, training: bool) -> transforms.Transform:
    """Record -> high_res_FHWC and, if asked for, low_res_FHWC. Random windows, crops and flips only in training."""
    frames, *size = _size(config, heldout=not training)
    fit = transforms.Crop(*size, random=training) if config.fit == 'crop' else transforms.Resize(*size)
    steps = [transforms.decode_video, transforms.Window(frames, random=training), fit]
    if training and config.flip:
        steps.append(transforms.Flip())
    steps.append(transforms.to_high_res)
    if low_res:
        steps.append(WeakTwin(config.weak))
    return transforms.chain(*steps, transforms.keep_arrays)


def train_batches(
    records: Source, transform: transforms.Transform, config: DataConfig, *, start_step: int, process: tuple[int, int]
) -> Iterator[Batch]:
    """Endless batches from `start_step` on; process = (index, count)."""
    return batches(
        records, transform, config.loader, start_step=start_step, process_index=process[0], process_count=process[1]
    )


def heldout_batches(records: Source, transform: transforms.Transform, config: DataConfig) -> list[Batch]:
    """The first `eval_clips` held-out clips, one a batch, the same at every evaluation and in every run."""
    count = min(config.eval_clips, len(records))
    one = LoaderConfig(batch_size=1, num_threads=0)
    out = []
    for i in range(count):
        out.append(next(batches([records[i]], transform, dataclasses.replace(one, seed=i))))
    return out
