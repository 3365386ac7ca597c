"""Splits videos into clips: `python -m fv_jax.prepare --input DIR --output DIR [--config=prepare:tiny] [--workers=N]`.

Reads every video under the input (or the one file) of a format that is read (`data/video/containers.py`), but none
that is hidden or in the trash, detects shot boundaries, cuts shots into clips of the length, size and frame rate of the
config, and writes ArrayRecord shards. Captions come from text files and tables beside the videos
(`data/video/captions.py`).

`--workers=N` processes share the work (all cores by default), and `--runner=NAME` gives it to a runner of Apache Beam,
whose options follow after `--`. The content of the shards is the same.

The same command, after it was killed or interrupted, continues: shards that are complete are kept. When it is given
again with more videos, these are added as further shards, and the old ones stay as they are.

With `--config.text.encoder=T5_FOLDER` (or `=hash`) every record holds the embedding of its caption as `text`, float16;
clips without a caption hold zeros, the unconditional input.

With `--config.latents.vae=3d-vae.pt` (or `=embedded`) every record holds the latents of its clip and of several
degraded versions instead of the video, with the fingerprint of the VAE's encoder; training refuses those of another
VAE. Both are computed by one process of a machine, on its devices. On several machines it is given on each, as `train`
is (launch/README.md): their processes find each other, or are named by `--coordinator`, `--num-processes` and
`--process-id`, and share the shards. Input and output have to be where all of them reach them.

Any field of the config can be set: `--config.frames=33`. A video that cannot be used is skipped and reported.

Input and output may be in object storage (gs://, s3://): a process copies one video at a time to the cache folder.

What of a video is damaged costs the clips that it touches.

Exit codes: 0 success, or nothing to add; 3 written, but some files were skipped or used in part; 2 wrong usage, or
nothing was written; 1 I/O or device error; 130 interrupted; 75 ended by SIGTERM. Shards appear when all of a command
are complete.
"""

import argparse
import dataclasses
import json
import logging
import os
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from fv_jax import api, weights
from fv_jax.core import config as config_lib
from fv_jax.core import exit_codes, files
from fv_jax.core.checks import error_context, require
from fv_jax.core.command_line import (
    OVERRIDES,
    Parser,
    UsageError,
    add_process_flags,
    format_error,
    path_flag,
    read_config,
)
from fv_jax.core.commands import TerminatedError, run_command
from fv_jax.core.console import print_error
from fv_jax.core.devices import check_devices
from fv_jax.core.output_paths import check_output_file
from fv_jax.core.paths import StoragePath
from fv_jax.data.curation.filters import Filter
from fv_jax.data.curation.report import report_selection
from fv_jax.data.folders import find_media, name_some
from fv_jax.data.preparation import beam_runner, pool, sample, sets
from fv_jax.data.preparation.job import Job, Make, UnusableError
from fv_jax.data.preparation.make_shard import Encoders
from fv_jax.data.preparation.outcome import Outcome
from fv_jax.data.preparation.plan import Plan
from fv_jax.data.preparation.pool import Advance
from fv_jax.data.preparation.processes import Processes
from fv_jax.data.shards.records import Record
from fv_jax.data.shards.selection import Selection
from fv_jax.data.transforms import to_float
from fv_jax.data.video import clips, containers, decoding
from fv_jax.models.vae import OFFICIAL
from fv_jax.parallel import distributed
from fv_jax.parallel.messages import Messages, PeerEndedError, announce_end
from fv_jax.parallel.rules import make_frames_partitioner
from fv_jax.sampling.model_guided import StageDegradation
from fv_jax.stages.frozen_vae import JittedVAE, jit_vae
from fv_jax.text.encoder import TextEncoder
from fv_jax.training.run import latent_cache
from fv_jax.weights.text_encoders import open_text_encoder

log = logging.getLogger('fv_jax.prepare')

CODES = (
    'Exit codes: 0 success, 3 some files skipped or damaged, 2 wrong usage or nothing written, 1 I/O or device error.'
)
SKIPPED = 3  # exit code: files were skipped, or used in part
KEPT = 'shards that are complete are kept, and the same command continues'


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    code = exit_codes.FAILED
    try:
        # Launchers run a command again that was preempted.
        preempted = {TerminatedError: exit_codes.PREEMPTED}
        code = run_command('prepare', _parse_and_prepare, argv, errors=preempted, left=f'; {KEPT}')
    finally:
        if code not in (0, SKIPPED):
            announce_end(code)
            distributed.force_exit_after_grace(code)
    return code


def _parse_and_prepare(argv: Sequence[str]) -> int:
    arguments, config = _parse(argv)
    processes = distributed.DistributedConfig.from_flags(arguments)
    if config.latents.vae or config.text.encoder or processes.coordinator is not None:
        distributed.start(processes)
        check_devices()
    try:
        return _prepare(arguments, config)
    except PeerEndedError as error:
        print_error('prepare', f'{error}; {KEPT}')
        return error.code


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
    parser.add_argument(
        '--dry-run', type=int, metavar='UNITS', help='write no shards; report what --filter keeps of so many units'
    )
    parser.add_argument('--filter', default='', help='of a dry run, as config.data.filter: "sharpness >= 30"')
    parser.add_argument('--report', type=path_flag, help='of a dry run: a page to write, *.html')
    parser.add_argument('--config', help='a config file and variant, prepare:tiny')
    parser.add_argument('--overwrite', action='store_true', help='replace shards of the same name in the output folder')
    cores = len(os.sched_getaffinity(0))
    parser.add_argument('--workers', type=int, default=cores, help=f'processes on this machine (default: {cores})')
    parser.add_argument(
        '--runner', help='of Apache Beam: DirectRunner, DataflowRunner, ...; its options follow after --'
    )
    add_process_flags(parser)
    words = list(argv)
    end = words.index('--') if '--' in words else len(words)
    arguments, overrides = parser.parse(words[:end])
    arguments.runner_options = words[end + 1 :]
    require(arguments.workers >= 1, f'--workers={arguments.workers}: must be at least 1', UsageError)
    if arguments.runner_options and arguments.runner is None:
        raise UsageError(f'{arguments.runner_options[0]}: options after -- are those of a --runner')
    given = arguments.filter or arguments.report
    require(arguments.dry_run is not None or not given, '--filter, --report: need --dry-run', UsageError)
    require(arguments.dry_run is None or arguments.dry_run >= 1, '--dry-run: must be at least 1', UsageError)
    if arguments.report is not None:
        check_output_file(arguments.report, '.html', overwrite=True, flag='--report=')
    return arguments, read_config(clips.ClipsConfig, arguments.config, overrides)


def _text_encoder(config: clips.ClipsConfig) -> TextEncoder | None:
    """Opens the text encoder of the config, if any, before a video is read, so that errors are found at once."""
    if not config.text.encoder:
        return None
    with error_context('--config.text.encoder: ', (FileNotFoundError, ValueError), UsageError):
        return open_text_encoder(config.text)


@dataclasses.dataclass(frozen=True)
class _Latents:
    """Encodes clips to latents.

    Attributes:
      config: of the latents.
      vae: the VAE.
      provenance: of the latents, stored with them.
      model: of model-guided degradations; None without any.
    """

    config: clips.OfflineLatentsConfig
    vae: JittedVAE
    provenance: dict[str, Any]
    model: StageDegradation | None

    def encode(self, record: Record) -> Record:
        """Replaces the video of a record by latents of it and of its degraded versions."""
        rng = np.random.default_rng([self.config.seed, zlib.crc32(record['source'].encode()), record['start_frame']])
        video = to_float(decoding.decode(record['video']).frames)
        rest = {key: value for key, value in record.items() if key != 'video'}
        # A generator: every degraded version is as large as its clip.
        degraded = (self.config.degradation.degrade(video, rng) for _ in range(self.config.num_degraded_variants))
        return rest | latent_cache.encode_pair(video, degraded, self.vae, self.model, record.get('text'))


def _latents(config: clips.OfflineLatentsConfig, encoder: TextEncoder | None) -> _Latents | None:
    """Opens the VAE of the config, if any, and the model of its degradations, before a video is read."""
    if not config.vae:
        return None
    with error_context('--config.latents.vae: ', (FileNotFoundError, ValueError), UsageError):
        vae = jit_vae(weights.load_vae(config.vae), make_frames_partitioner(jax.local_devices()))
        provenance = latent_cache.vae_provenance(weights.encoder_fingerprint(config.vae), vae.config.latent_spec)
    model = None
    if config.model_guided_probability and config.num_degraded_variants:
        with error_context('--config.latents.', error=UsageError):
            model = api.open_stage_degradation(config.model_guided, encoder.fingerprint.digest if encoder else None)
    return _Latents(config, vae, provenance, model)


def _prepare(arguments: argparse.Namespace, config: clips.ClipsConfig) -> int:
    messages = Messages('prepare') if jax.distributed.is_initialized() and jax.process_count() > 1 else None
    is_first = messages is None or messages.index == 0
    _check_alone(arguments, config, messages)
    # The others read what the first one finds in its plan.
    found = _find_videos(arguments.input, arguments.output) if is_first else None
    require(arguments.input.exists(), f'--input={arguments.input}: does not exist', UsageError)
    encoder = _text_encoder(config)
    latents = _latents(config.latents, encoder)
    # Which VAE takes clips that are stored as video is not known yet; most are for the official one.
    latent_spec = latents.vae.config.latent_spec if latents else OFFICIAL.latent_spec
    latent_spec.check_clip('config', config.frames, config.height, config.width)
    made_with = {'config': config_lib.to_dict(config)}
    if latents:
        made_with['latents'] = latents.provenance
        if latents.model:
            made_with['model_guided'] = latents.model.preview.digest
    if encoder:
        made_with['text'] = dataclasses.asdict(encoder.fingerprint)
    made_with = json.loads(json.dumps(made_with))
    encoders = Encoders(encoder, latents.encode if latents else None) if latents or encoder else None
    if arguments.dry_run is not None:
        return _dry_run(arguments, config, found.videos)

    def make(plan: Plan, numbers: Sequence[int]) -> None:
        if arguments.runner is not None:
            beam_runner.make_shards(plan, numbers, arguments.runner, arguments.runner_options)
            return
        with _Progress(plan, numbers, messages) as progress:
            pool.make_shards(plan, numbers, arguments.workers, encoders, progress)

    if messages is None:
        return _run_job(arguments, config, made_with, found, make)
    processes = Processes(messages, make)
    if not is_first:
        return processes.follow(sets.work_folder(arguments.output, config.name), made_with)
    log.info(f'{messages.count} processes share the shards')
    code = _run_job(arguments, config, made_with, found, processes.make_shards)
    processes.finish(code)
    return code


def _check_alone(arguments: argparse.Namespace, config: clips.ClipsConfig, messages: Messages | None) -> None:
    """Raises UsageError for what cannot be done with encoders, or in several processes."""
    encodes = config.latents.vae or config.text.encoder
    if arguments.runner is not None:
        require(not encodes, '--runner: latents and text embeddings are made without one', UsageError)
        with error_context(f'--runner={arguments.runner}: ', error=UsageError):
            beam_runner.parse_options(arguments.runner, arguments.runner_options)
    if messages is not None:
        given = '--runner' if arguments.runner is not None else '--dry-run' if arguments.dry_run is not None else ''
        require(not given, f'{given}: is for one process, and this job has {messages.count}', UsageError)


def _run_job(
    arguments: argparse.Namespace, config: clips.ClipsConfig, made_with: Mapping[str, Any], found: '_Found', make: Make
) -> int:
    """Plans, makes and publishes; returns the exit code."""
    job = Job(found.root, found.videos, found.skipped, arguments.output, config, made_with, arguments.overwrite)
    try:
        outcomes = job.run(make, lambda outcome: log.info(_summary(arguments.output, outcome, config)))
    except UnusableError as error:
        raise UsageError(format_error(error)) from None
    if not any(outcome.records for outcome in outcomes):
        log.info(f'{arguments.output}: nothing to add: all of {len(found.videos)} video(s) were prepared before')
    return SKIPPED if any(outcome.skipped or outcome.damaged for outcome in outcomes) else 0


def _dry_run(
    arguments: argparse.Namespace, config: clips.ClipsConfig, videos: Mapping[str, tuple[StoragePath, int]]
) -> int:
    """Makes clips of some units in a temporary folder, and reports what the filter keeps of them."""
    with error_context('--filter: ', error=UsageError):
        selection = Selection(Filter.parse(arguments.filter))

    def make(plan: Plan, numbers: Sequence[int]) -> None:
        with _Progress(plan, numbers, None) as progress:
            pool.make_shards(plan, numbers, arguments.workers, None, progress)

    with sample.open_sample(videos, config, arguments.dry_run, make) as table:
        report_selection(f'Clips of {arguments.input.name}', table, selection, arguments.report)
    return 0


@dataclasses.dataclass(frozen=True)
class _Found:
    """The videos of the input: name -> path and size; and what is not read: name -> reason."""

    root: StoragePath
    videos: dict[str, tuple[StoragePath, int]]
    skipped: dict[str, str]


def _find_videos(source: StoragePath, output: StoragePath) -> _Found:
    """Returns the videos in a folder, but for those in the output folder, or the one video."""
    if files.is_file(source):
        return _Found(source.parent, {source.name: (source, files.info(source).size)}, {})
    require(source.is_dir(), f'--input={source}: does not exist', UsageError)
    media = find_media(source, containers.VIDEO_SUFFIXES, containers.OTHER_VIDEO_SUFFIXES)
    found = {
        name: (source / name, info.size)
        for name, info in media.files.items()
        if files.is_same(output, source) or not files.is_inside(source / name, output)
    }
    if not found:
        suffixes = ', '.join(suffix[1:] for suffix in containers.VIDEO_SUFFIXES)
        others = f'; it has {name_some(media.skipped)}' if media.skipped else ''
        raise UsageError(f'--input={source}: contains no videos ({suffixes}){others}')
    return _Found(source, found, media.skipped)


def _summary(output: StoragePath, outcome: Outcome, config: clips.ClipsConfig) -> str:
    lines = [
        f'{outcome.records} clips of {config.frames} frames at {config.height}x{config.width} from '
        f'{outcome.files_used} file(s), in {outcome.shards} shard(s) of {output}',
        f'captions: {outcome.captioned_files} file(s) with, {outcome.files_used - outcome.captioned_files} without',
        *(f'  {line}' for line in outcome.captions),
    ]
    if config.text.encoder:
        lines.append(
            f'text embeddings: {outcome.captioned_clips} clip(s) with one, '
            f'{outcome.records - outcome.captioned_clips} with zeros, the unconditional input'
        )
        lines += [f'  {name}: {lost}' for name, lost in outcome.truncated.items()]
    if outcome.black_clips:
        lines.append(f'skipped: {outcome.black_clips} clip(s) with black frames')
    if outcome.skipped:
        lines.append(f'skipped: {len(outcome.skipped)} file(s)')
        lines += [f'  {name}: {reason}' for name, reason in outcome.skipped.items()]
    if outcome.damaged:
        lines.append(f'used in part: {len(outcome.damaged)} damaged file(s)')
        lines += [f'  {name}: {damage}' for name, damage in outcome.damaged.items()]
    return '\n'.join(lines)


class _Progress:
    """A progress bar over the bytes of the files of a plan; of several processes, over the part of the first one."""

    def __init__(self, plan: Plan, numbers: Sequence[int], messages: Messages | None):
        """numbers: of the shards that this process makes."""
        total = plan.bytes_of(range(plan.num_shards) if messages is None else numbers)
        self._before, self._total = total - plan.bytes_of(numbers), total
        self._done = float(self._before)
        self._frames = self._clips = 0
        self._messages = messages

    def __enter__(self) -> '_Progress':
        self._started = time.monotonic()
        self._bar = tqdm.tqdm(
            total=self._total,
            initial=self._before,
            unit='B',
            unit_scale=True,
            mininterval=0.2 if sys.stderr.isatty() else 10,
            dynamic_ncols=True,
            disable=self._messages is not None and self._messages.index > 0,
        )
        return self

    def __exit__(self, *error) -> None:
        self._bar.close()

    def advance(self, by: Advance) -> None:
        """Adds what one process of this machine has done. Raises PeerEndedError."""
        if self._messages is not None:
            self._messages.check_ended()
        self._frames += by.frames
        self._clips += by.clips
        self._done += by.bytes
        rate = self._frames / max(time.monotonic() - self._started, 1e-3)
        self._bar.set_description(by.source, refresh=False)
        self._bar.set_postfix_str(f'{self._clips} clips, {rate:.0f} frames/s', refresh=False)
        self._bar.update(round(self._done) - self._bar.n)


if __name__ == '__main__':
    sys.exit(main())
