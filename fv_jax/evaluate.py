"""Measures video enhancement: `python -m fv_jax.evaluate --checkpoint RUN --output DIR`.

Clips are the held-out clips of a stage-2 run; or, with --pairs, --ground-truth or --videos, those of a folder
(`evaluation/clip_sources`). Compared are bilinear and bicubic interpolation, the ground truth's round trip through the
VAE, the network at several numbers of steps, and what --compare and the folder of pairs add. The output folder holds
report.html, report.md, report.json and the videos (`evaluation/comparison`).

Exit codes: 0 success; 3 written, but some clips of a folder cannot be read; 2 wrong usage; 1 failure.
"""

import argparse
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.core import config as config_lib
from fv_jax.core import exit_codes
from fv_jax.core.checks import error_context, require
from fv_jax.core.command_line import Parser, UsageError, path_flag, read_config, weights_flag
from fv_jax.core.commands import run_command
from fv_jax.core.console import print_result
from fv_jax.core.devices import check_devices
from fv_jax.core.files import make_folder
from fv_jax.core.output_paths import check_output_folder
from fv_jax.core.paths import StoragePath, absolute
from fv_jax.data.config import DataConfig
from fv_jax.data.degradation.configs import StrongConfig
from fv_jax.data.degradation.degradations import Degradation
from fv_jax.evaluation import clip_sources
from fv_jax.evaluation.clip_sources import Loader, Reading
from fv_jax.evaluation.comparison import Comparison
from fv_jax.evaluation.heldout_loss import heldout_loss
from fv_jax.evaluation.methods import baselines, ground_truth, result
from fv_jax.evaluation.metric_files import read_metric_files
from fv_jax.evaluation.networks import Network, make_methods, open_networks, parse_comparand
from fv_jax.evaluation.report_page import describe_verdict
from fv_jax.evaluation.report_values import read_metrics
from fv_jax.evaluation.suite import VGG_FRAMES, Suite
from fv_jax.evaluation.text_table import format_table
from fv_jax.sampling.parallel_flags import HELP, PARALLEL, name_flags, read_parallel
from fv_jax.sampling.sampling_mesh import SamplingMesh

log = logging.getLogger('fv_jax.evaluate')

SKIPPED = 3  # exit code: clips of a folder were skipped
EVEN_SIDES = 2  # a multiple of the sides of results, for H.264, where no network needs another


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    return run_command('evaluate', _evaluate, argv, errors={CheckpointError: exit_codes.FAILED})


def _evaluate(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    check_output_folder(arguments.output, arguments.overwrite)
    check_devices()
    suite = _load_suite(arguments)
    with name_flags():
        networks = open_networks(_checkpoints(arguments), SamplingMesh.create(read_parallel(arguments.parallel)))
    steps = [int(text) for text in (arguments.num_steps or '').split(',') if text]
    methods = [*baselines(), *make_methods(networks, steps, arguments.compare)]
    clips, others = _clips(arguments, networks)
    methods += [*map(result, others)] + ([ground_truth()] if arguments.videos is None else [])
    log.info(f'{len(clips)} clip(s), {len(methods)} methods, {len(suite.metrics)} metrics')
    make_folder(arguments.output)
    comparison = Comparison(methods, suite, arguments.output)
    comparison.run(clips)
    losses = None
    # The linear predictor is fitted on the data of training: it is a baseline for its own held-out clips.
    own = _folder(arguments) is None and arguments.heldout is None
    if own and not networks[0].run.stage.is_distilled:
        log.info('computing the loss, and fitting the linear predictor as a baseline')
        data = _heldout_data(arguments, networks[0])
        losses = heldout_loss(networks[0], data, clips)
    data = comparison.write(_title(arguments), _settings(arguments, suite), losses)
    print_result(f'{format_table(data)}\n\n{describe_verdict(data, read_metrics(data))}'.rstrip())
    log.info(f'wrote report.html, report.md, report.json and clips/ to {arguments.output}')
    if comparison.skipped:
        log.info('\n  '.join([f'skipped: {len(comparison.skipped)} file(s)', *comparison.skipped]))
        return SKIPPED
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser('python -m fv_jax.evaluate', 'Measures video enhancement, and writes a report.', HELP)
    add = parser.add_argument
    add('--checkpoint', type=weights_flag, help='the work directory of a stage-2 run, an exported run, or embedded')
    add('--output', type=path_flag, required=True, help='the folder to write to')
    add('--overwrite', action='store_true', help='write to a folder that holds files')
    source = parser.add_mutually_exclusive_group()
    source.add_argument('--heldout', help='a data source, as embedded, instead of the held-out clips of the run')
    source.add_argument('--pairs', type=path_flag, help='a folder with GT/ and LQ/ instead of the held-out clips')
    source.add_argument('--ground-truth', type=path_flag, help='a folder of videos to be degraded, enhanced, compared')
    source.add_argument('--videos', type=path_flag, help='a folder of videos without ground truth')
    add('--num-clips', type=int, default=4, help='number of held-out clips (default: %(default)s)')
    add('--max-frames', type=int, default=49, help='of a clip from a folder (default: %(default)s)')
    add('--scale', type=float, default=4.0, help='output size / input size, without pairs (default: %(default)s)')
    add('--degradation-config', help='a config file whose strong degradations are applied to ground truth')
    add('--seed', type=int, default=0, help='of noise and degradations (default: %(default)s)')
    add('--num-steps', help='numbers of sampler steps, as 1,2,4 (default: that of the run, half, twice, and 1)')
    add('--compare', nargs='+', default=[], help='checkpoints, settings FIELD=VALUE,..., or CHECKPOINT,FIELD=VALUE,...')
    add('--vgg-frames', type=int, help=f'frames for metrics by VGG16 (default: {VGG_FRAMES}; all on accelerators)')
    add('--metrics-folder', type=path_flag, help='a folder of metrics, NAME.py with DIRECTION and score(frames)')
    arguments, overrides = parser.parse_with_overrides(argv, (PARALLEL,))
    arguments.parallel = overrides[PARALLEL]
    for name in ('num_clips', 'max_frames', 'vgg_frames'):
        value = getattr(arguments, name)
        flag = f'--{name.replace("_", "-")}'
        require(value is None or value >= 1, f'{flag}={value}: must be at least 1', UsageError)
    require(1 <= arguments.scale < math.inf, f'--scale={arguments.scale:g}: must be at least 1', UsageError)
    for text in (arguments.num_steps or '1').split(','):
        valid = text.isdecimal() and int(text) >= 1
        require(valid, f'--num-steps={arguments.num_steps}: give numbers of at least 1, as 1,2,4', UsageError)
    arguments.compare = [parse_comparand(text) for text in arguments.compare]
    needs = arguments.checkpoint is not None or (
        _folder(arguments) and all(item.checkpoint is not None for item in arguments.compare)
    )
    missing = '--checkpoint: required for held-out clips and for settings in --compare; or give --pairs or --videos'
    require(needs, missing, UsageError)
    arguments.strong = _read_strong(arguments)
    return arguments


def _read_strong(arguments: argparse.Namespace) -> StrongConfig | None:
    given = arguments.degradation_config
    if given is None:
        return None
    has_input = arguments.pairs or arguments.videos
    require(not has_input, f'--degradation-config={given}: the clips of this folder are degraded already', UsageError)
    strong = read_config(Degradation, given, (), '--degradation-config').strong
    wrong = f'--degradation-config={given}: has no strong degradations; use degradations'
    require(strong is not None, wrong, UsageError)
    return strong


def _load_suite(arguments: argparse.Namespace) -> Suite:
    own = []
    if arguments.metrics_folder is not None:
        with error_context('--metrics-folder: ', error=UsageError):
            own = read_metric_files(arguments.metrics_folder)
    vgg_frames = arguments.vgg_frames
    if vgg_frames is None and jax.default_backend() == 'cpu':
        vgg_frames = VGG_FRAMES
    suite = Suite.load(vgg_frames)
    suite.metrics += own
    for reason in dict.fromkeys(suite.not_computed.values()):
        labels = [label for label, why in suite.not_computed.items() if why == reason]
        log.info(f'note: not computed: {", ".join(labels)}: {reason}')
    return suite


def _checkpoints(arguments: argparse.Namespace) -> list[StoragePath]:
    compared = [item.checkpoint for item in arguments.compare]
    return [path for path in (arguments.checkpoint, *compared) if path is not None]


def _folder(arguments: argparse.Namespace) -> StoragePath | None:
    """Returns the folder of the clips; None for held-out clips."""
    return arguments.pairs or arguments.ground_truth or arguments.videos


def _heldout_data(arguments: argparse.Namespace, network: Network) -> DataConfig:
    changed = network.run.config['data'] | {'eval_clips': arguments.num_clips}
    if arguments.heldout is not None:
        changed['heldout'] = arguments.heldout
    data = config_lib.build(DataConfig, changed, 'config.data')
    none = f'{arguments.checkpoint}: the run has no held-out clips (its data.heldout is empty); give --heldout'
    require(data.heldout, none, UsageError)
    return data


def _clips(arguments: argparse.Namespace, networks: Sequence[Network]) -> tuple[list[Loader], list[str]]:
    """Returns loaders of the clips, and the names of other enhancers whose results are measured."""
    if _folder(arguments) is None:
        data = _heldout_data(arguments, networks[0])
        return clip_sources.heldout_clips(data, arguments.seed, arguments.strong), []
    multiple = math.lcm(EVEN_SIDES, *(n.run.vae.config.latent_spec.pixel_multiple for n in networks))
    reading = Reading(multiple, arguments.max_frames, arguments.seed, arguments.scale, arguments.strong)
    if arguments.pairs:
        return clip_sources.pair_clips(arguments.pairs, reading)
    if arguments.ground_truth:
        return clip_sources.truth_clips(arguments.ground_truth, reading), []
    return clip_sources.video_clips(arguments.videos, reading), []


def _title(arguments: argparse.Namespace) -> str:
    what = ' on '.join(absolute(path).name for path in (arguments.checkpoint, _folder(arguments)) if path)
    return f'Evaluation of {what}'


def _settings(arguments: argparse.Namespace, suite: Suite) -> Mapping[str, Any]:
    """Returns the settings of the command, for the report."""
    kept = {
        name: str(value) if isinstance(value, os.PathLike) else value
        for name, value in vars(arguments).items()
        if value not in (None, []) and name not in ('output', 'overwrite', 'strong', 'compare', 'vgg_frames')
    }
    degraded = arguments.degradation_config or 'weak'
    return kept | {
        'vgg_frames': suite.vgg_frames or 'all',
        'degradation': None if arguments.pairs or arguments.videos else degraded,
        'compare': [str(item) for item in arguments.compare],
    }


if __name__ == '__main__':
    sys.exit(main())
