"""A shard as a function of its units.

`make_shard(units, config, path)` reads the units one after another, writes their clips to one file, and returns a row
of the manifest for each clip and the result of each unit. The same units and configuration give the same file, wherever
and however often it is called: the encoder is `reproducible` (`video/encoding.py`), and the decoder has one thread.

In memory are the frames of one clip (303 MB for 49 frames of 1072x1920) and what the decoder and the encoder hold.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fv_jax.core.checks import error_context, require
from fv_jax.core.hashing import fingerprint
from fv_jax.core.local_copies import open_copy
from fv_jax.data.curation.captioner import Captioner, open_captioner
from fv_jax.data.curation.scores import score_clip
from fv_jax.data.preparation.units import Unit
from fv_jax.data.read_errors import read_errors
from fv_jax.data.shards.record_writer import ShardWriter
from fv_jax.data.shards.records import Record, encode_record, record_size
from fv_jax.data.shards.shard_files import expanded_path
from fv_jax.data.video import clips, decoding
from fv_jax.data.video.clips import ClipsConfig
from fv_jax.text.encoder import TextEncoder, embed_caption

Row = dict[str, Any]
THREADS = 1  # of a decoder
Finish = Callable[[Record], Record]


class Progress(Protocol):
    """What is called as a shard is made."""

    def start(self, unit: Unit) -> None: ...

    def expect(self, frames: int) -> None:
        """frames: how many calls of `frame` the unit gives; 0 if that is unknown."""

    def frame(self) -> None: ...

    def clip(self) -> None: ...

    def finish(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Encoders:
    """What the records hold besides videos.

    Attributes:
      text: embeds captions; None stores none.
      finish: makes the record that is stored of one with a video; None stores that.
    """

    text: TextEncoder | None = None
    finish: Finish | None = None


@dataclasses.dataclass
class UnitResult:
    """The result of one unit.

    Attributes:
      clips: how many it gave.
      black: clips that were dropped because of black frames.
      captioned: whether the clips have captions.
      empty: why an intact unit has no clips; '' if it has.
      failed: why it could not be read, or not to the end; '' if it could.
      damaged: where it is damaged and what is not used of it; '' if it is not.
      truncated: what the text encoder cut off its caption; '' for nothing.
    """

    clips: int = 0
    black: int = 0
    captioned: bool = False
    empty: str = ''
    failed: str = ''
    damaged: str = ''
    truncated: str = ''


@dataclasses.dataclass
class ShardResult:
    """What `make_shard` returns besides the file.

    Attributes:
      bytes: size of the file.
      keys: that its records have.
      rows: of the manifest, one for each record: the columns of `manifest.CLIP_COLUMNS` and the size.
      units: the result of each unit.
    """

    bytes: int = 0
    keys: list[str] = dataclasses.field(default_factory=list)
    rows: list[Row] = dataclasses.field(default_factory=list)
    units: list[UnitResult] = dataclasses.field(default_factory=list)


class NoProgress:
    """Shows nothing."""

    def start(self, unit: Unit) -> None:
        del unit

    def expect(self, frames: int) -> None:
        del frames

    def frame(self) -> None: ...

    clip = finish = frame


def make_shard(
    units: Sequence[Unit],
    config: ClipsConfig,
    path: Path,
    encoders: Encoders | None = None,
    progress: Progress | None = None,
) -> ShardResult:
    """Writes the clips of units to one file.

    A unit that cannot be used costs its clips alone, and is named in the result.

    Args:
      units: in the order in which their clips are stored.
      config: of the clips.
      path: of the file to write; a local one.
      encoders: of embeddings and latents; None stores videos.
      progress: is called as it advances.

    Raises:
      OSError: the file cannot be written, or object storage does not answer.
    """
    encoders, progress, result, keys = encoders or Encoders(), progress or NoProgress(), ShardResult(), set()
    with ShardWriter(path) as writer:

        def write(record: Record, row: Row) -> None:
            data = encode_record(record)
            writer.write(data)
            keys.update(record)
            size = dict(zip(('frames', 'height', 'width'), record_size(record) or (0, 0, 0), strict=True))
            result.rows.append(row | size | {'bytes': len(data), 'fingerprint': fingerprint([data])})
            progress.clip()

        for unit in units:
            progress.start(unit)
            result.units.append(_make_clips(unit, config, encoders, write, progress))
            progress.finish()
        result.bytes = writer.close()
    result.keys = sorted(keys)
    return result


def _make_clips(
    unit: Unit, config: ClipsConfig, encoders: Encoders, write: Callable[[Record, Row], None], progress: Progress
) -> UnitResult:
    """Writes the clips of one unit."""
    result = UnitResult(captioned=unit.caption is not None)
    path = local = expanded_path(unit.path)
    try:
        with contextlib.ExitStack() as stack:
            with read_errors(path):
                local = stack.enter_context(open_copy(path))
            _read_unit(local, unit, config, encoders, write, progress, result)
    except ValueError as error:
        reason = str(error).removeprefix(f'{path}: ').removeprefix(f'{local}: ')
        result.failed = reason + (f' (after {result.clips} clips, which are kept)' if result.clips else '')
    return result


def _read_unit(
    path: Path,
    unit: Unit,
    config: ClipsConfig,
    encoders: Encoders,
    write: Callable[[Record, Row], None],
    progress: Progress,
    result: UnitResult,
) -> None:
    """Writes the clips of a local video. Raises ValueError for one that cannot be read to the end."""
    info = decoding.probe(path, damaged=True, display=config.display, span=unit.span, threads=THREADS)
    progress.expect(2 * info.frames)
    selection = clips.scan_file(path, config, info, progress.frame, unit.span, THREADS)
    fields = caption_fields(unit.caption, encoders.text)

    def make_records() -> Iterator[tuple[Record, Row]]:
        for clip in clips.read_clips(path, selection, config, progress.frame, THREADS):
            if clip is None:
                result.black += 1
                continue
            yield clips.encode_clip(clip, config) | {'source': unit.source} | fields, describe_clip(clip, unit)

    captioner = open_captioner(config.captioner) if unit.caption is None else None
    for record, row in add_captions(make_records(), captioner, config.captioner.batch_size):
        if row['caption'] is not None and unit.caption is None:
            record |= caption_fields(row['caption'], encoders.text)
            result.captioned = True
        write(encoders.finish(record) if encoders.finish else record, row)
        result.clips += 1
    if result.clips:
        result.damaged = selection.damage
        lost = encoders.text.truncation(unit.caption) if encoders.text and unit.caption is not None else None
        result.truncated = str(lost or '')
        return
    result.empty = selection.none or f'all of its {len(selection.clips)} clip(s) have black frames'
    require(not selection.damage, f'{result.empty}; {selection.damage}')


def add_captions(
    records: Iterable[tuple[Record, Row]], captioner: Captioner | None, batch_size: int
) -> Iterator[tuple[Record, Row]]:
    """Yields records and rows with the captions of a captioner, which is asked in batches; None adds none.

    Where a record cannot be made, those before it are captioned and yielded first.

    Raises:
      CaptionerError: the captioner fails.
    """
    if captioner is None:
        yield from records
        return
    records, error = iter(records), None
    while error is None:
        batch: list[tuple[Record, Row]] = []
        try:
            while len(batch) < batch_size and (one := next(records, None)) is not None:
                batch.append(one)
        except ValueError as caught:
            error = caught
        if not batch and error is None:
            return
        captions = captioner([record['video'] for record, _ in batch]) if batch else []
        for (record, row), caption in zip(batch, captions, strict=True):
            yield record, row | {'caption': caption}
    raise error


def describe_clip(clip: clips.Clip, unit: Unit) -> Row:
    """Returns the row of a clip in the manifest, with its scores, but for what its record alone states."""
    return {
        'source': unit.source,
        'first_seconds': clip.seconds,
        'last_seconds': clip.seconds + len(clip.frames) / clip.fps,
        'fps': float(clip.fps),
        'caption': unit.caption,
        **score_clip(clip.frames, clip.fps),
    }


def caption_fields(caption: str | None, encoder: TextEncoder | None) -> Record:
    """Returns the fields of a record: `caption` if there is one, `text` (L, D) float16 if there is an encoder.

    Raises:
      ValueError: the caption cannot be encoded.
    """
    fields: Record = {} if caption is None else {'caption': caption}
    if encoder is None:
        return fields
    with error_context('its caption cannot be encoded: '):
        embedding = embed_caption(encoder, caption)
    finite = np.isfinite(embedding).all()
    require(finite, 'the embedding of its caption is not finite in float16')
    return fields | {'text': embedding}
