"""Extracts clips from video files: selects the frames of each clip, and makes records of them.

Output frame j, at time j / fps, shows the source frame i(j) of `timing.nearest_frames`. A shot of source frames [a, b)
consists of the output frames with a <= i(j) < b, less a margin at each end, and is cut into consecutive clips. Without
an fps every source frame is an output frame; if their rate is variable, the fps is that of most of them.

Of a span of a long video, shots are found in the span and a second around it, and a clip ends before its span does:
what a span gives does not depend on the other spans. The rate of a video of variable rate is then that of the span.
"""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Literal

import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError, check_choice, check_range
from fv_jax.core.paths import PathTextOrEmpty, StoragePath
from fv_jax.data.curation.bars import crop_bars
from fv_jax.data.curation.captioner import CaptionerConfig
from fv_jax.data.curation.exposure import BLACK
from fv_jax.data.degradation.configs import DegradationConfig
from fv_jax.data.degradation.degradations import Degradation
from fv_jax.data.numpy_resize import crop_to_aspect, resize_uint8
from fv_jax.data.read_errors import read_errors
from fv_jax.data.shards.records import Record
from fv_jax.data.video import decoding, encoding, timing
from fv_jax.data.video.containers import DamagedError
from fv_jax.data.video.frame import DisplayConfig, HighDynamicRange, Interlaced
from fv_jax.data.video.seeking import WHOLE, Span
from fv_jax.data.video.shots import ShotDetector, Timeline, scan
from fv_jax.text.encoder import TextConfig

log = logging.getLogger(__name__)

_AROUND_S = 1.0  # seconds around a span that are read too, for its shots, margins and damage


@dataclasses.dataclass(frozen=True)
class OfflineLatentsConfig(DegradationConfig):
    """Latents stored instead of clips, so that training neither decodes nor encodes.

    The inherited fields are how clips are degraded (`configs/degradations.py`).

    Attributes:
      vae: the VAE, as in `stage.vae`: 'embedded', a 3d-vae.pt or a .safetensors of this package; '' stores videos.
      num_degraded_variants: degraded variants of each clip, which are encoded too; stage 1 needs none.
      seed: of the degradations.
    """

    vae: PathTextOrEmpty = ''
    num_degraded_variants: int = 4
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_range(self, 'num_degraded_variants', 'seed', low=0)

    @property
    def degradation(self) -> Degradation:
        return Degradation.of(self)


@dataclasses.dataclass(frozen=True)
class ClipsConfig:
    """How clips are extracted from videos.

    Attributes:
      name: first part of the shards' names.
      frames: length of a clip.
      height, width: pixels of a clip. A video is cropped to their aspect ratio at the centre and resized.
      fps: frames per second; frames of the video are dropped or repeated. None keeps all frames of a video of constant
        rate, and takes the rate of most frames of another.
      max_upscale: videos that would have to be enlarged by more are skipped, as models trained on enlarged videos
        blur.
      detector, threshold, min_shot_frames: shot detection (see `shots.scan`).
      margin: frames skipped at both ends of a shot, where cuts may blend.
      clips_per_shot: the most clips of a shot, spread evenly; None takes all that fit.
      ranges: (first, last) seconds of the video that clips may come from, in order; empty means all of it.
      bars: 'crop' crops letterbox and pillarbox, where what is left is large enough; 'keep' keeps them. Cropping takes
        memory for the frames of a clip at the size of the video.
      drop_black: skip clips with a black frame (fades, leaders).
      interlaced, hdr: what is done with interlaced videos and with those of high dynamic range or wide gamut (see
        `frame.DisplayConfig`); those that are refused are skipped and named.
      crf, preset: of the H.264 encoding of the clips.
      shard_mb: megabytes of video files whose clips are in one shard, at most; fewer where all files have less than
        64 times as many, down to 4.
      unit_seconds: videos longer than one and a half times this are cut into parts of about this length, which are
        prepared apart from each other; None keeps videos whole.
      captioner: who captions clips whose video has no caption; by default nobody.
      text: the encoder whose embeddings of the captions are stored beside the clips; by default none.
      latents: the VAE whose latents are stored instead of the clips; by default none.
    """

    name: str = 'clips'
    frames: int = 49
    height: int = 1072
    width: int = 1920
    fps: float | None = None
    max_upscale: float = 1.0
    detector: ShotDetector = 'adaptive'
    threshold: float | None = None
    min_shot_frames: int = 15
    margin: int = 2
    clips_per_shot: int | None = None
    ranges: tuple[tuple[float, float], ...] = ()
    bars: Literal['keep', 'crop'] = 'keep'
    drop_black: bool = True
    interlaced: Interlaced = 'deinterlace'
    hdr: HighDynamicRange = 'tone_map'
    crf: float = 18.0
    preset: str = 'medium'
    shard_mb: float = 256.0
    unit_seconds: float | None = 120.0
    captioner: CaptionerConfig = dataclasses.field(default_factory=CaptionerConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    latents: OfflineLatentsConfig = dataclasses.field(default_factory=OfflineLatentsConfig)

    def __post_init__(self):
        is_name = self.name.replace('-', '').replace('_', '').isalnum()
        require(is_name, f'name={self.name!r}: use letters, digits, - and _', ConfigError)
        check_range(self, 'fps', 'threshold', 'clips_per_shot', 'max_upscale', 'shard_mb', above=0)
        check_range(self, 'margin', low=0)
        check_range(self, 'frames', 'height', 'width', 'min_shot_frames', 'unit_seconds', low=1)
        check_range(self, 'crf', low=0, high=51, hint='0 is lossless')
        check_choice(self, 'preset', choices=encoding.PRESETS)
        for pair in self.ranges:
            wrong = f'ranges={pair}: must be (first, last) seconds with 0 <= first < last'
            require(0 <= pair[0] < pair[1], wrong, ConfigError)
        for (_, last), (first, _) in itertools.pairwise(self.ranges):
            wrong = f'ranges: {first} comes after {last}; they must be in order and apart'
            require(last <= first, wrong, ConfigError)

    @property
    def display(self) -> DisplayConfig:
        return DisplayConfig(self.interlaced, self.hdr)


@dataclasses.dataclass(frozen=True)
class ClipSelection:
    """The source frames of each clip.

    Attributes:
      fps: of the clips.
      clips: for each clip its first output frame, and its source frames in order, with repetitions; source frames are
        counted from the first one that is read.
      none: why there are no clips; '' if there are.
      damage: where the file is damaged and from which seconds nothing is taken; '' if it is not.
      is_resampled: whether frames are dropped or repeated by their times.
      span: that is read, which is more than the clips are taken from.
    """

    fps: float
    clips: tuple[tuple[int, np.ndarray], ...]
    none: str = ''
    damage: str = ''
    is_resampled: bool = False
    span: Span = WHOLE


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip before it is encoded.

    Attributes:
      frames: uint8 (H, W, 3) each.
      fps: frames per second.
      start_frame: index of the first one in the video, counted at `fps`.
      seconds: when the first one is shown.
    """

    frames: list[np.ndarray]
    fps: float
    start_frame: int
    seconds: float


def check_size(info: decoding.VideoInfo, config: ClipsConfig) -> None:
    """Raises ValueError if a video of this size would have to be enlarged by more than max_upscale."""
    needed = max(config.height / info.height, config.width / info.width)
    if needed > config.max_upscale * (1 + 1e-6):
        raise ValueError(
            f'{info.height}x{info.width} is too small for clips of {config.height}x{config.width}; '
            f'choose a smaller height and width, or allow max_upscale={np.ceil(needed * 100) / 100:g}'
        )


def select_clips(timeline: Timeline, fps: float, config: ClipsConfig, span: Span = WHOLE) -> ClipSelection:
    """Selects the clips of a video, or of a span of it.

    Args:
      timeline: of the video, or of a part that contains the span.
      fps: that the file states, for the clips if it agrees with the times and the config keeps all frames.
      config: lengths, ranges and the number of clips.
      span: that clips may come from.
    """
    measured = timing.measure(_intact_seconds(timeline), [Fraction(fps)])
    keep_all = config.fps is None and measured.is_even
    fps = float(config.fps or measured.usual_fps)
    source = np.arange(len(timeline.seconds))
    offset = round(float(timeline.seconds[0]) * fps)  # the first output frame
    if not keep_all:
        count = int(np.floor((timeline.seconds[-1] + 1e-6) * fps)) + 1
        source = timing.nearest_frames(timeline.seconds, np.arange(offset, count) / fps)
    clips = []
    ranges = _ranges(timeline, source, offset, fps, _within(config.ranges, span), keep_all)
    allowed = list(_allowed(timeline, source, ranges, config.margin))
    for first, last in allowed:
        starts = np.arange(first, last - config.frames + 1, config.frames)
        if config.clips_per_shot is not None and len(starts) > config.clips_per_shot:
            space = (last - first) / config.clips_per_shot
            middles = first + (np.arange(config.clips_per_shot) + 0.5) * space
            starts = np.round(middles - config.frames / 2).astype(int)
        clips += [(int(j) + offset, source[j : j + config.frames]) for j in starts]
    return ClipSelection(
        fps, tuple(clips), '' if clips else _lack(len(source), allowed, config), is_resampled=not keep_all
    )


def _intact_seconds(timeline: Timeline) -> np.ndarray:
    """Returns the times of the frames as if those that damage has taken away had not been there."""
    intervals = np.diff(timeline.seconds, prepend=timeline.seconds[0])
    after = np.searchsorted(timeline.seconds, [last for _, last in timeline.damage if last < np.inf])
    intervals[after[after > 0]] = np.median(intervals[1:]) if len(intervals) > 1 else 0
    return np.cumsum(intervals)


def _lack(frames: int, allowed: Sequence[tuple[int, int]], config: ClipsConfig) -> str:
    """Describes why a video of so many output frames has no clip."""
    if frames < config.frames:
        return f'too short: {frames} frame(s), and a clip has {config.frames}'
    longest = max((last - first for first, last in allowed), default=0)
    where = ' within the ranges' if config.ranges else ''
    return f'no shot is long enough: the longest has {longest} frame(s){where}, and a clip has {config.frames}'


def _within(ranges: Sequence[tuple[float, float]], span: Span) -> list[tuple[float, float]]:
    """Returns the parts of ranges in seconds that are in a span; the span itself where there are no ranges."""
    if not ranges:
        return [(span.first, span.last)]
    parts = [(max(first, span.first), min(last, span.last)) for first, last in ranges]
    return [(first, last) for first, last in parts if first < last]


def _ranges(
    timeline: Timeline,
    source: np.ndarray,
    offset: int,
    fps: float,
    seconds: Sequence[tuple[float, float]],
    keep_all: bool,
) -> list[tuple[int, int]]:
    """Returns the intervals of output frames [first, last) for ranges in seconds, counted from frame `offset` on."""
    end = len(source)
    if keep_all:  # by timestamps, as frames may not be exactly evenly spaced
        bounds = np.searchsorted(timeline.seconds, np.asarray(seconds).reshape(-1, 2) - 0.5 / fps)
    else:
        latest = (end + offset) / fps
        bounds = np.rint(np.clip(np.asarray(seconds).reshape(-1, 2), 0, latest) * fps).astype(int) - offset
    return [(max(int(first), 0), min(int(last), end)) for first, last in bounds]


def _allowed(
    timeline: Timeline, source: np.ndarray, ranges: list[tuple[int, int]], margin: int
) -> Iterator[tuple[int, int]]:
    """Yields intervals of output frames [first, last) that are in one shot and in one range."""
    for a, b in timeline.shots:
        first, last = (int(j) for j in np.searchsorted(source, (a, b)))
        # The start and the end of the video are not cuts.
        first, last = first + margin * (a > 0), last - margin * (b < len(timeline.seconds))
        for low, high in ranges:
            if max(first, low) < min(last, high):
                yield max(first, low), min(last, high)


def read_clips(
    path: StoragePath,
    selection: ClipSelection,
    config: ClipsConfig,
    on_frame: Callable[[], None] = lambda: None,
    threads: int = 0,
) -> Iterator[Clip | None]:
    """Decodes a video again and yields each selected clip, None for one that was dropped.

    The frames of one clip are in memory at a time.

    Args:
      path: the file.
      selection: of `scan_file`.
      config: of the clips.
      on_frame: called once per frame, for a progress bar.
      threads: of the decoder; 0 is one for each core.

    Raises:
      ValueError: the file cannot be decoded, or is shorter than when it was scanned.
    """
    size = config.height, config.width
    waiting = list(selection.clips)[::-1]
    frames: list[np.ndarray] = []
    on_damage = (lambda seconds: None) if selection.damage else None
    with read_errors(path):
        for index, frame in enumerate(decoding.iter_frames(path, on_damage, span=selection.span, threads=threads)):
            if not waiting:
                return
            on_frame()
            # A frame can be in two clips: where frames are repeated, the last of one and the first of the next.
            while waiting and (repeats := int(np.count_nonzero(waiting[-1][1] == index))):
                if not frames:
                    first_seconds = waiting[-1][0] / selection.fps if selection.is_resampled else frame.seconds
                frames += [frame.pixels() if config.bars == 'crop' else _fit(frame.pixels(), size)] * repeats
                if len(frames) < config.frames:
                    break
                start, _ = waiting.pop()
                if config.bars == 'crop':
                    frames = [_fit(frame, size) for frame in crop_bars(frames, size, config.max_upscale)]
                black = config.drop_black and min(frame.mean() for frame in frames) < BLACK
                yield None if black else Clip(frames, selection.fps, start, first_seconds)
                frames = []
        require(not waiting, f'{path}: has fewer frames than when it was scanned; was it changed?')


def _fit(frame_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Crops a frame to the aspect ratio of a size, at the centre, and resizes it."""
    return resize_uint8(crop_to_aspect(frame_HWC[None], size), size)[0]


def encode_clip(clip: Clip, config: ClipsConfig) -> Record:
    """Encodes a clip as a record, always the same; the caller adds `source`, `caption` and `text`."""
    return {
        'video': encoding.encode_bytes(clip.frames, clip.fps, config.crf, config.preset, reproducible=True),
        'fps': float(clip.fps),
        'frames': len(clip.frames),
        'height': config.height,
        'width': config.width,
        'start_frame': clip.start_frame,
    }


def extract_clips(path: StoragePath, selection: ClipSelection, config: ClipsConfig) -> Iterator[Record | None]:
    """Yields the records of the clips that `read_clips` yields, None for one that was dropped. Raises as it does."""
    for clip in read_clips(path, selection, config):
        yield None if clip is None else encode_clip(clip, config)


def scan_file(
    path: StoragePath,
    config: ClipsConfig,
    info: decoding.VideoInfo,
    on_frame: Callable[[], None] = lambda: None,
    span: Span = WHOLE,
    threads: int = 0,
) -> ClipSelection:
    """Scans a file, or a span of it, and selects its clips: of a damaged one those that the damage does not touch.

    Args:
      path: the file.
      config: of the clips.
      info: of the file, which may be cut off.
      on_frame: called once per frame, for a progress bar.
      span: that clips may come from.
      threads: of the decoder; 0 is one for each core.

    Raises:
      ValueError: the file cannot be used.
    """
    damage, detection = '', (config.detector, config.threshold, config.min_shot_frames, on_frame)
    read = span if span == WHOLE else span.widen(_AROUND_S)
    reading = {'display': config.display, 'span': read, 'threads': threads}
    with read_errors(path):
        check_size(info, config)
        try:
            timeline = scan(path, info, *detection, **reading)
        except DamagedError as error:
            timeline = scan(path, info, *detection, damaged=True, **reading)
            # Frames are not counted where reading does not begin at the start.
            what = str(error).removeprefix(f'{path}: ') if span.first == 0 else 'damaged'
            damage = what + _describe_gaps(timeline)
    selection = select_clips(timeline, float(info.fps), config, span)
    if selection.is_resampled and config.fps is None:
        log.info(
            f'note: {path}: variable frame rate, {float(info.fps):.4g} per second on average; its clips are resampled '
            f'by time to fps={selection.fps:g}, the rate of most of its frames'
        )
    return dataclasses.replace(selection, damage=damage, span=read)


def _describe_gaps(timeline: Timeline) -> str:
    ends = [
        f'from {first:.2f} s to {"the end" if last == np.inf else f"{last:.2f} s"}' for first, last in timeline.damage
    ]
    more = f' and {len(ends) - 5} more' if len(ends) > 5 else ''
    return f'; nothing is taken {", ".join(ends[:5])}{more}' if ends else ''
