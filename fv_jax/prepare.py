"""Cuts films into clips: `python -m fv_jax.prepare --input DIR --output DIR [--config=configs/prepare.py:tiny]`.

Reads every mp4, mov, m4v, webm, mkv and avi file under the input (or the one file), finds its shots, cuts them into
clips of the length, size and rate that the config asks for, and writes ArrayRecord shards. Captions are taken
from sidecar .txt, captions.json or captions.csv beside the films where there are any (`data/video/captions.py`).

With `--config.text.encoder=T5_FOLDER` (or `=hash`) every record holds the embedding of its caption as `text`, float16.
Clips without a caption then hold zeros, which is the unconditional input.

With `--config.latents.vae=3d-vae.pt` (or `=embedded`) every record holds the latents of its clip and of several
degraded variants in place of the video, stamped with what made them; training refuses those of another VAE.

Any field of the config can be given: `--config.frames=33`. A film that cannot be used is skipped and named.

Exit codes: 0 all is well; 3 written, but some files were skipped; 2 wrong usage, or nothing written;
1 the disk or the device refused; 130, 143 interrupted. Shards appear only when all are complete.
"""

import argparse
import contextlib
import dataclasses
import logging
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from fv_jax import weights
from fv_jax.core import config as config_lib
from fv_jax.core import exit_codes
from fv_jax.core.checks import error_context, require
from fv_jax.core.command_line import OVERRIDES, Parser, UsageError, read_config
from fv_jax.core.commands import run_command
from fv_jax.data.shards.records import Record, RecordWriter
from fv_jax.data.transforms import to_float
from fv_jax.data.video import clips, video_io
from fv_jax.data.video.captions import Captions
from fv_jax.models.vae import OFFICIAL
from fv_jax.stages.frozen_vae import JittedVAE, jit_vae
from fv_jax.text.encoder import TextEncoder, embed_caption
from fv_jax.training.run import latent_cache
from fv_jax.weights.text_encoders import open_text_encoder

log = logging.getLogger('fv_jax.prepare')

SUFFIXES = ('.mp4', '.mov', '.m4v', '.webm', '.mkv', '.avi')
CODES = (
    'Exit codes: 0 all is well, 3 some files were skipped, 2 wrong usage or nothing written, '
    '1 the disk or the device refused.'
)
SKIPPED = 3  # exit code
NOTHING_WRITTEN = 'nothing was written'


class _Terminated(BaseException):
    """SIGTERM, as an exception, so that what was begun is cleaned up."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    return run_command(
        'prepare',
        _run,
        argv,
        errors={_Terminated: exit_codes.TERMINATED},
        failed=f'{NOTHING_WRITTEN}: ',
        interrupted=f'interrupted; {NOTHING_WRITTEN}',
    )


def _run(argv: Sequence[str]) -> int:
    with _terminable():
        return _prepare(*_parse(argv))


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    def terminate(number, frame):
        raise _Terminated(f'terminated; {NOTHING_WRITTEN}')

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, clips.ClipsConfig]:
    parser = Parser(
        'python -m fv_jax.prepare',
        'Cuts films into clips and writes them as ArrayRecord shards.',
        f'{OVERRIDES} {CODES}',
    )
    parser.add_argument('--input', type=Path, required=True, help='a folder of films (searched to the bottom), or one')
    parser.add_argument('--output', type=Path, required=True, help='the folder to write shards to')
    parser.add_argument('--config', default='', help='a config file and variant, configs/prepare.py:tiny')
    parser.add_argument('--overwrite', action='store_true', help='replace shards of the same name in the output folder')
    arguments, overrides = parser.parse(argv)
    return arguments, read_config(clips.ClipsConfig, arguments.config, overrides)


@dataclasses.dataclass
class _Tally:
    """What the summary tells. truncated: a film -> what its caption lost on its way into the text encoder."""

    captioned_files: int = 0
    files_used: int = 0
    captioned_clips: int = 0
    black_clips: int = 0
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    truncated: dict[str, str] = dataclasses.field(default_factory=dict)


def _text_encoder(config: clips.ClipsConfig) -> TextEncoder | None:
    """The encoder that the config asks for, opened before anything is read, so that a wrong one is found at once."""
    if not config.text.encoder:
        return None
    with error_context('--config.text.encoder: ', (FileNotFoundError, ValueError), UsageError):
        return open_text_encoder(config.text)


@dataclasses.dataclass(frozen=True)
class _Latents:
    """The VAE that turns clips into latents, and the stamp that they get."""

    config: clips.OfflineLatentsConfig
    vae: JittedVAE
    stamp: dict[str, Any]

    def of(self, record: Record, number: int) -> Record:
        """The record with latents in place of its video, as training would have decoded it."""
        rng = np.random.default_rng([self.config.seed, number])
        video = to_float(video_io.decode(record['video']).frames)
        rest = {key: value for key, value in record.items() if key != 'video'}
        # One at a time: a degraded clip is as large as the original.
        degraded = (self.config.degradation.degrade(video, rng) for _ in range(self.config.num_degraded_variants))
        return rest | latent_cache.encode_pair(video, degraded, self.vae)


def _latents(config: clips.OfflineLatentsConfig) -> _Latents | None:
    """What the config asks for, opened before anything is read, so that a wrong file is found at once."""
    if not config.vae:
        return None
    with error_context('--config.latents.vae: ', (FileNotFoundError, ValueError), UsageError):
        vae = jit_vae(weights.load_vae(config.vae))
        stamp = latent_cache.vae_stamp(weights.vae_fingerprint(config.vae), vae.config.latent_spec)
    return _Latents(config, vae, stamp)


def _prepare(arguments: argparse.Namespace, config: clips.ClipsConfig) -> int:
    root = arguments.input if arguments.input.is_dir() else arguments.input.parent
    files = _films(arguments.input, arguments.output)
    tally = _Tally()
    latents = _latents(config.latents)
    # Which VAE takes clips that are stored as video is not known yet; most are for the official one.
    latent_spec = latents.vae.config.latent_spec if latents else OFFICIAL.latent_spec
    latent_spec.check_clip('config', config.frames, config.height, config.width)
    encoder = _text_encoder(config)
    with error_context('', error=UsageError):
        texts = _texts(files, root, tally)
        writer = RecordWriter(arguments.output, config.name, config.shard_records, arguments.overwrite)
    with writer, _Progress(files) as progress:
        for path in texts:
            name = path.relative_to(root).as_posix()
            _prepare_file(path, name, _Caption(texts[path], encoder), latents, config, writer, tally, progress)
        if writer.records == 0:
            raise UsageError(_nothing(files, tally, config))
        writer.summary = {
            'files': tally.files_used,
            'captioned_clips': tally.captioned_clips,
            'black_clips': tally.black_clips,
            'skipped': tally.skipped,
            'config': config_lib.to_dict(config),
        }
        if latents is not None:
            writer.summary['latents'] = latents.stamp
        if encoder is not None:
            writer.summary['text'] = dataclasses.asdict(encoder.fingerprint) | {'truncated': tally.truncated}
    log.info(_summary(arguments.output, writer, tally, config))
    return SKIPPED if tally.skipped else 0


def _texts(files: Sequence[Path], root: Path, tally: _Tally) -> dict[Path, str | None]:
    """The films' captions. A film whose own .txt cannot be read is skipped; a table that cannot be read is an error."""
    captions, texts = Captions(root), {}
    for path in files:
        try:
            texts[path] = captions.find(path)
        except ValueError as error:
            if not path.with_suffix('.txt').is_file():
                raise
            tally.skipped[path.relative_to(root).as_posix()] = str(error)
    return texts


def _films(source: Path, output: Path) -> list[Path]:
    if source.is_file():
        return [source]
    require(source.is_dir(), f'--input={source}: no such file or folder', UsageError)
    output = output.resolve()
    files = [
        path
        for path in sorted(source.rglob('*'))
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith('.')
        if output == source.resolve() or output not in path.resolve().parents
    ]
    if not files:
        raise UsageError(f'--input={source}: holds no films ({", ".join(s[1:] for s in SUFFIXES)})')
    return files


@dataclasses.dataclass(frozen=True)
class _Caption:
    """A film's caption, if it has one, on its way into the film's records."""

    text: str | None
    encoder: TextEncoder | None

    def truncation(self) -> str:
        """What the encoder cuts off, or nothing."""
        lost = self.encoder.truncation(self.text) if self.encoder and self.text is not None else None
        return str(lost or '')

    def fields(self) -> Record:
        """What every record of the film gets of it: `caption` if there is one, `text` if there is an encoder."""
        fields: Record = {} if self.text is None else {'caption': self.text}
        if self.encoder is None:
            return fields
        with error_context('its caption cannot be encoded: '):
            embedding = embed_caption(self.encoder, self.text)
        finite = np.isfinite(embedding).all()
        require(finite, 'the embedding of its caption is not finite, or beyond what float16 can hold')
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
    """Writes the clips of one film, or writes down why there are none."""
    before = writer.records
    try:
        progress.start(path, name)
        info = video_io.probe(path)
        progress.expect(2 * info.frames)
        planned = clips.scan_file(path, config, info, progress.frame)
        fields = caption.fields()
        for record in clips.extract_clips(path, planned, config, progress.frame):
            if record is None:
                tally.black_clips += 1
                continue
            tally.captioned_clips += caption.text is not None
            record = record | {'source': name} | fields
            writer.write(latents.of(record, writer.records) if latents else record)
            progress.clips = writer.records
    except ValueError as error:
        kept = writer.records - before
        reason = str(error).removeprefix(f'{path}: ')
        tally.skipped[name] = reason + (f' (after {kept} clips, which are kept)' if kept else '')
    else:
        tally.files_used += 1
        tally.captioned_files += caption.text is not None
        if lost := caption.truncation():
            tally.truncated[name] = lost
    finally:
        progress.finish()


def _nothing(files: Sequence[Path], tally: _Tally, config: clips.ClipsConfig) -> str:
    if tally.skipped:
        reasons = '; '.join(f'{name}: {reason}' for name, reason in list(tally.skipped.items())[:3])
        more = f' and {len(tally.skipped) - 3} more' if len(tally.skipped) > 3 else ''
        return f'nothing written: {len(tally.skipped)} of {len(files)} files skipped ({reasons}{more})'
    black = f' and {tally.black_clips} clips were black' if tally.black_clips else ''
    return f'nothing written: no shot in {len(files)} file(s) has {config.frames} frames{black}'


def _summary(output: Path, writer: RecordWriter, tally: _Tally, config: clips.ClipsConfig) -> str:
    lines = [
        f'{writer.records} clips of {config.frames} frames at {config.height}x{config.width} from {tally.files_used} '
        f'file(s), in {len(writer.shards)} shard(s) of {output}',
        f'captions: {tally.captioned_files} file(s) with, {tally.files_used - tally.captioned_files} without',
    ]
    if config.text.encoder:
        lines.append(
            f'text embeddings: {tally.captioned_clips} clip(s) with one, '
            f'{writer.records - tally.captioned_clips} with zeros, the unconditional input'
        )
        lines += [f'  {name}: {lost}' for name, lost in tally.truncated.items()]
    if tally.black_clips:
        lines.append(f'left out: {tally.black_clips} clip(s) with black frames')
    if tally.skipped:
        lines.append(f'skipped: {len(tally.skipped)} file(s)')
        lines += [f'  {name}: {reason}' for name, reason in tally.skipped.items()]
    return '\n'.join(lines)


class _Progress:
    """A bar over the bytes of all files, since how many frames a file holds is known only when it is opened."""

    def __init__(self, files: Sequence[Path]):
        self._sizes = {path: path.stat().st_size for path in files}
        self.clips = 0
        self._frames, self._done = 0, 0.0
        # Of the file at hand: its bytes, those counted so far, and those that one frame stands for.
        self._file_size, self._file_bytes, self._share = 0, 0.0, 0.0
        self._started = time.monotonic()

    def __enter__(self) -> '_Progress':
        self._bar = tqdm.tqdm(
            total=sum(self._sizes.values()),
            unit='B',
            unit_scale=True,
            mininterval=0.2 if sys.stderr.isatty() else 10,
            dynamic_ncols=True,
        )
        return self

    def __exit__(self, *error) -> None:
        self._bar.close()

    def start(self, path: Path, name: str) -> None:
        """Begins a file."""
        self._bar.set_description(name, refresh=False)
        self._file_size, self._file_bytes, self._share = self._sizes[path], 0.0, 0.0

    def expect(self, frames: int) -> None:
        """Tells how many frames the file at hand will be counted for, or 0 if that is not known."""
        self._share = self._file_size / frames if frames else 0.0

    def frame(self) -> None:
        """Counts one frame."""
        self._frames += 1
        self._advance(min(self._share, self._file_size - self._file_bytes))

    def finish(self) -> None:
        """Ends the file at hand, however far it was read."""
        self._advance(self._file_size - self._file_bytes)

    def _advance(self, size: float) -> None:
        self._file_bytes += size
        self._done += size
        rate = self._frames / (time.monotonic() - self._started)
        self._bar.set_postfix_str(f'{self.clips} clips, {rate:.0f} frames/s', refresh=False)
        self._bar.update(round(self._done) - self._bar.n)


if __name__ == '__main__':
    sys.exit(main())
