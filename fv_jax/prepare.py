"""Splits videos into clips: `python -m fv_jax.prepare --input DIR --output DIR [--config=prepare:tiny]`.

Reads every video under the input (or the one file) of a format that is read (`data/video/containers.py`), but none
that is hidden or in the trash, detects shot boundaries, cuts shots into clips of the length, size and frame rate of the
config, and writes ArrayRecord shards. Captions come from text files and tables beside the videos
(`data/video/captions.py`).

With `--config.text.encoder=T5_FOLDER` (or `=hash`) every record holds the embedding of its caption as `text`, float16;
clips without a caption hold zeros, the unconditional input.

With `--config.latents.vae=3d-vae.pt` (or `=embedded`) every record holds the latents of its clip and of several
degraded versions instead of the video, with the fingerprint of the VAE; training refuses those of another VAE.

Any field of the config can be set: `--config.frames=33`. A video that cannot be used is skipped and reported.

Input and output may be in object storage (gs://, s3://): one video at a time is copied to the cache folder.

What of a video is damaged costs the clips that it touches.

Exit codes: 0 success; 3 written, but some files were skipped or used in part; 2 wrong usage, or nothing was written;
1 I/O or device error; 130, 143 interrupted. Shards appear only when all are complete.
"""

import argparse
import contextlib
import dataclasses
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm

from fv_jax import weights
from fv_jax.core import config as config_lib
from fv_jax.core import files
from fv_jax.core.checks import error_context, require
from fv_jax.core.command_line import OVERRIDES, Parser, UsageError, path_flag, read_config
from fv_jax.core.commands import run_command
from fv_jax.core.console import printable
from fv_jax.core.devices import check_devices
from fv_jax.core.local_copies import open_copy
from fv_jax.core.paths import StoragePath
from fv_jax.data.folders import find_media, name_some
from fv_jax.data.read_errors import read_errors
from fv_jax.data.shards.record_writer import RecordWriter
from fv_jax.data.shards.records import Record
from fv_jax.data.transforms import to_float
from fv_jax.data.video import clips, containers, decoding
from fv_jax.data.video.captions import Captions, SidecarError
from fv_jax.models.vae import OFFICIAL
from fv_jax.parallel.rules import make_frames_partitioner
from fv_jax.stages.frozen_vae import JittedVAE, jit_vae
from fv_jax.text.encoder import TextEncoder, embed_caption
from fv_jax.training.run import latent_cache
from fv_jax.weights.text_encoders import open_text_encoder

log = logging.getLogger('fv_jax.prepare')

CODES = (
    'Exit codes: 0 success, 3 some files skipped or damaged, 2 wrong usage or nothing written, 1 I/O or device error.'
)
SKIPPED = 3  # exit code: files were skipped, or used in part
NOTHING_WRITTEN = 'nothing was written'


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    return run_command(
        'prepare',
        lambda given: _prepare(*_parse(given)),
        argv,
        failed=f'{NOTHING_WRITTEN}: ',
        left=f'; {NOTHING_WRITTEN}',
    )


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, clips.ClipsConfig]:
    parser = Parser(
        'python -m fv_jax.prepare',
        'Splits videos into clips and writes them as ArrayRecord shards.',
        f'{OVERRIDES} {CODES}',
    )
    parser.add_argument(
        '--input', type=path_flag, required=True, help='a folder of videos (searched recursively), or one video'
    )
    parser.add_argument('--output', type=path_flag, required=True, help='the folder to write shards to')
    parser.add_argument('--config', help='a config file and variant, prepare:tiny')
    parser.add_argument('--overwrite', action='store_true', help='replace shards of the same name in the output folder')
    arguments, overrides = parser.parse(argv)
    return arguments, read_config(clips.ClipsConfig, arguments.config, overrides)


@dataclasses.dataclass
class _Tally:
    """Counts for the summary.

    Attributes:
      captions: what is odd about the tables of captions, in lines.
      skipped: file -> why it gives no clips.
      damaged: file of clips -> where it is damaged, and what is not used of it.
      truncated: file -> what the text encoder cut off its caption.
    """

    captioned_files: int = 0
    files_used: int = 0
    captioned_clips: int = 0
    black_clips: int = 0
    captions: list[str] = dataclasses.field(default_factory=list)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    damaged: dict[str, str] = dataclasses.field(default_factory=dict)
    truncated: dict[str, str] = dataclasses.field(default_factory=dict)


def _text_encoder(config: clips.ClipsConfig) -> TextEncoder | None:
    """Opens the text encoder of the config, if any, before a video is read, so that errors are found at once."""
    if not config.text.encoder:
        return None
    with error_context('--config.text.encoder: ', (FileNotFoundError, ValueError), UsageError):
        return open_text_encoder(config.text)


@dataclasses.dataclass(frozen=True)
class _Latents:
    """Encodes clips to latents. provenance: of the latents, stored with them."""

    config: clips.OfflineLatentsConfig
    vae: JittedVAE
    provenance: dict[str, Any]

    def encode(self, record: Record, number: int) -> Record:
        """Replaces the video of record `number` by latents of it and of its degraded versions."""
        rng = np.random.default_rng([self.config.seed, number])
        video = to_float(decoding.decode(record['video']).frames)
        rest = {key: value for key, value in record.items() if key != 'video'}
        # A generator: every degraded version is as large as its clip.
        degraded = (self.config.degradation.degrade(video, rng) for _ in range(self.config.num_degraded_variants))
        return rest | latent_cache.encode_pair(video, degraded, self.vae)


def _latents(config: clips.OfflineLatentsConfig) -> _Latents | None:
    """Opens the VAE of the config, if any, before a video is read, so that errors are found at once."""
    if not config.vae:
        return None
    with error_context('--config.latents.vae: ', (FileNotFoundError, ValueError), UsageError):
        vae = jit_vae(weights.load_vae(config.vae), make_frames_partitioner(jax.local_devices()))
        provenance = latent_cache.vae_provenance(weights.vae_fingerprint(config.vae), vae.config.latent_spec)
    return _Latents(config, vae, provenance)


def _prepare(arguments: argparse.Namespace, config: clips.ClipsConfig) -> int:
    root = arguments.input if arguments.input.is_dir() else arguments.input.parent
    tally = _Tally()
    sizes = _find_videos(arguments.input, arguments.output, tally)
    if config.latents.vae or config.text.encoder:
        check_devices()
    latents = _latents(config.latents)
    # Which VAE takes clips that are stored as video is not known yet; most are for the official one.
    latent_spec = latents.vae.config.latent_spec if latents else OFFICIAL.latent_spec
    latent_spec.check_clip('config', config.frames, config.height, config.width)
    encoder = _text_encoder(config)
    with error_context('', error=UsageError):
        texts = _read_captions(list(sizes), root, tally)
        writer = RecordWriter(arguments.output, config.name, config.shard_records, arguments.overwrite)
    with writer, _Progress(sum(sizes.values())) as progress:
        for video, text in texts.items():
            name = printable(video.relative_to(root).as_posix())
            progress.start(sizes[video], name)
            with contextlib.ExitStack() as stack:
                try:
                    with read_errors(video):
                        path = stack.enter_context(open_copy(video))
                except ValueError as error:
                    tally.skipped[name] = str(error).removeprefix(f'{video}: ')
                else:
                    _prepare_file(path, name, _Caption(text, encoder), latents, config, writer, tally, progress)
        if writer.records == 0:
            raise UsageError(_nothing(len(sizes), tally))
        writer.summary = {
            'files': tally.files_used,
            'captioned_clips': tally.captioned_clips,
            'black_clips': tally.black_clips,
            'skipped': tally.skipped,
            'damaged': tally.damaged,
            'config': config_lib.to_dict(config),
        }
        if latents is not None:
            writer.summary['latents'] = latents.provenance
        if encoder is not None:
            writer.summary['text'] = dataclasses.asdict(encoder.fingerprint) | {'truncated': tally.truncated}
    log.info(_summary(arguments.output, writer, tally, config))
    return SKIPPED if tally.skipped or tally.damaged else 0


def _read_captions(videos: Sequence[StoragePath], root: StoragePath, tally: _Tally) -> dict[StoragePath, str | None]:
    """Reads the captions. A video whose own .txt cannot be read is skipped; an unreadable table is an error."""
    captions, texts = Captions(root), {}
    for path in videos:
        try:
            texts[path] = captions.find(path)
        except SidecarError as error:
            tally.skipped[path.relative_to(root).as_posix()] = str(error)
    if len(videos) > 1:
        tally.captions = captions.describe_problems(videos)
    return texts


def _find_videos(source: StoragePath, output: StoragePath, tally: _Tally) -> dict[StoragePath, int]:
    """Returns the sizes of the videos in a folder, but for those in the output folder, or of the one video."""
    if files.is_file(source):
        return {source: files.info(source).size}
    require(source.is_dir(), f'--input={source}: does not exist', UsageError)
    media = find_media(source, containers.VIDEO_SUFFIXES, containers.OTHER_VIDEO_SUFFIXES)
    tally.skipped |= media.skipped
    found = {
        source / name: info.size
        for name, info in media.files.items()
        if files.is_same(output, source) or not files.is_inside(source / name, output)
    }
    if not found:
        suffixes = ', '.join(suffix[1:] for suffix in containers.VIDEO_SUFFIXES)
        others = f'; it has {name_some(media.skipped)}' if media.skipped else ''
        raise UsageError(f'--input={source}: contains no videos ({suffixes}){others}')
    return found


@dataclasses.dataclass(frozen=True)
class _Caption:
    """The caption of a video, None without one, and its text encoder."""

    text: str | None
    encoder: TextEncoder | None

    def truncation(self) -> str:
        """Describes what the encoder truncates, or returns an empty string."""
        lost = self.encoder.truncation(self.text) if self.encoder and self.text is not None else None
        return str(lost or '')

    def fields(self) -> Record:
        """Returns the fields of a record: `caption` if there is one, `text` (L, D) float16 if there is an encoder."""
        fields: Record = {} if self.text is None else {'caption': self.text}
        if self.encoder is None:
            return fields
        with error_context('its caption cannot be encoded: '):
            embedding = embed_caption(self.encoder, self.text)
        finite = np.isfinite(embedding).all()
        require(finite, 'the embedding of its caption is not finite in float16')
        return fields | {'text': embedding}


def _prepare_file(
    path: Path,
    name: str,
    caption: _Caption,
    latents: _Latents | None,
    config: clips.ClipsConfig,
    writer: RecordWriter,
    tally: _Tally,
    progress: '_Progress',
) -> None:
    """Writes the clips of one video, or records why there are none."""
    before = writer.records
    try:
        info = decoding.probe(path, damaged=True, display=config.display)
        progress.expect(2 * info.frames)
        selection = clips.scan_file(path, config, info, progress.frame)
        fields = caption.fields()
        for record in clips.extract_clips(path, selection, config, progress.frame):
            if record is None:
                tally.black_clips += 1
                continue
            tally.captioned_clips += caption.text is not None
            record = record | {'source': name} | fields
            writer.write(latents.encode(record, writer.records) if latents else record)
            progress.clips = writer.records
        black = f'all of its {len(selection.clips)} clip(s) have black frames'
        damage = selection.damage and f'; {selection.damage}'
        require(writer.records > before, (selection.none or black) + damage)
    except ValueError as error:
        kept = writer.records - before
        reason = str(error).removeprefix(f'{path}: ')
        tally.skipped[name] = reason + (f' (after {kept} clips, which are kept)' if kept else '')
    else:
        tally.files_used += 1
        tally.captioned_files += caption.text is not None
        if selection.damage:
            tally.damaged[name] = selection.damage
        if lost := caption.truncation():
            tally.truncated[name] = lost
    finally:
        progress.finish()


def _nothing(count: int, tally: _Tally) -> str:
    reasons = '; '.join(f'{name}: {reason}' for name, reason in list(tally.skipped.items())[:3])
    more = f' and {len(tally.skipped) - 3} more' if len(tally.skipped) > 3 else ''
    return f'nothing written: {len(tally.skipped)} of {count} files skipped ({reasons}{more})'


def _summary(output: StoragePath, writer: RecordWriter, tally: _Tally, config: clips.ClipsConfig) -> str:
    lines = [
        f'{writer.records} clips of {config.frames} frames at {config.height}x{config.width} from {tally.files_used} '
        f'file(s), in {len(writer.shards)} shard(s) of {output}',
        f'captions: {tally.captioned_files} file(s) with, {tally.files_used - tally.captioned_files} without',
        *(f'  {line}' for line in tally.captions),
    ]
    if config.text.encoder:
        lines.append(
            f'text embeddings: {tally.captioned_clips} clip(s) with one, '
            f'{writer.records - tally.captioned_clips} with zeros, the unconditional input'
        )
        lines += [f'  {name}: {lost}' for name, lost in tally.truncated.items()]
    if tally.black_clips:
        lines.append(f'skipped: {tally.black_clips} clip(s) with black frames')
    if tally.skipped:
        lines.append(f'skipped: {len(tally.skipped)} file(s)')
        lines += [f'  {name}: {reason}' for name, reason in tally.skipped.items()]
    if tally.damaged:
        lines.append(f'used in part: {len(tally.damaged)} damaged file(s)')
        lines += [f'  {name}: {damage}' for name, damage in tally.damaged.items()]
    return '\n'.join(lines)


class _Progress:
    """A progress bar over bytes, as the number of frames of a file is known only when it is opened."""

    def __init__(self, num_bytes: int):
        self._num_bytes = num_bytes
        self.clips = 0
        self._frames, self._done = 0, 0.0
        # Of the current file: its bytes, those counted so far, and bytes per frame.
        self._file_size, self._file_bytes, self._share = 0, 0.0, 0.0
        self._started = time.monotonic()

    def __enter__(self) -> '_Progress':
        self._bar = tqdm.tqdm(
            total=self._num_bytes,
            unit='B',
            unit_scale=True,
            mininterval=0.2 if sys.stderr.isatty() else 10,
            dynamic_ncols=True,
        )
        return self

    def __exit__(self, *error) -> None:
        self._bar.close()

    def start(self, size: int, name: str) -> None:
        """Starts the progress of a file of `size` bytes."""
        self._bar.set_description(name, refresh=False)
        self._file_size, self._file_bytes, self._share = size, 0.0, 0.0

    def expect(self, frames: int) -> None:
        """Sets the number of frames that the current file counts for; 0 if unknown."""
        self._share = self._file_size / frames if frames else 0.0

    def frame(self) -> None:
        """Advances the bar by one frame."""
        self._frames += 1
        self._advance(min(self._share, self._file_size - self._file_bytes))

    def finish(self) -> None:
        """Completes the current file, however far it was read."""
        self._advance(self._file_size - self._file_bytes)

    def _advance(self, size: float) -> None:
        self._file_bytes += size
        self._done += size
        rate = self._frames / (time.monotonic() - self._started)
        self._bar.set_postfix_str(f'{self.clips} clips, {rate:.0f} frames/s', refresh=False)
        self._bar.update(round(self._done) - self._bar.n)


if __name__ == '__main__':
    sys.exit(main())
