"""Plans memory, time and cost of training and sampling: `python -m fv_jax.plan --config=stage2 --topology=v6e-8`.

Compiles the programs ahead of time for a TPU topology that the machine does not have, and prints a per-device memory
breakdown, FLOPs, communication, roofline time and cost. libtpu, an ordinary package, is the compiler; a program of full
size takes minutes. GPUs (h100-8, h200-1) are planned by formula.

    --only=sample            a prompt to a video: without --config with both stages of the official release
    --search                 finds the largest batch, and the cheapest rematerialization, that fit the slice
    --find-smallest-slice    finds the smallest slice of a generation: --topology=v5e --find-smallest-slice

Exit codes: 0 it fits; 3 it does not fit (suggestions are printed); 2 wrong usage; 1 the compiler failed otherwise.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence

from fv_jax import api
from fv_jax.core import files
from fv_jax.core.checks import require
from fv_jax.core.command_line import (
    OVERRIDES,
    Override,
    Parser,
    UsageError,
    override_settings,
    path_flag,
    read_config,
)
from fv_jax.core.commands import run_command
from fv_jax.core.console import print_result
from fv_jax.core.paths import StoragePath, absolute
from fv_jax.planning import planner, sampled_stages, search, slices, table
from fv_jax.planning.planner import PlanRequest
from fv_jax.planning.sampled_stages import SampledPipeline, SampledStage
from fv_jax.planning.suggestions import suggest_changes
from fv_jax.sampling.parallel_flags import PARALLEL, read_parallel
from fv_jax.sampling.settings import EnhanceSettings
from fv_jax.sampling.tiling_flags import add_tiling_flags, read_tiling
from fv_jax.training.run.setup import TrainConfig

DOES_NOT_FIT = 3
TRAIN, SAMPLE = CHOICES = ('train', 'sample')
SAMPLING_OVERRIDES = (*api.STAGES, PARALLEL)  # groups of --GROUP.FIELD=VALUE, as of `sample`
EPILOG = (
    f'{OVERRIDES} --stage1.FIELD=VALUE, --stage2.FIELD=VALUE and --parallel.FIELD=VALUE set the settings and the mesh '
    'of sampling, as in the command sample.'
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    return run_command('plan', _plan, argv)


def _plan(argv: Sequence[str]) -> int:
    parser = _parser()
    arguments, overrides = parser.parse_with_overrides(argv, ('config', *SAMPLING_OVERRIDES))
    both = arguments.search and arguments.find_smallest_slice
    require(not both, '--search, --find-smallest-slice: cannot be combined; give one of them', UsageError)
    if arguments.json is not None and not files.folder_exists(absolute(arguments.json).parent):
        raise UsageError(f'--json={arguments.json}: its folder does not exist')
    searches = arguments.search or arguments.find_smallest_slice
    only = _read_only(arguments, (TRAIN,) if searches else CHOICES if arguments.config else (SAMPLE,))
    config = None
    if arguments.config is not None:
        config = read_config(TrainConfig, arguments.config, overrides['config'])
        planner.check_stage(config)
    elif overrides['config']:
        raise UsageError(f'--config.{overrides["config"][0][0]}: has no effect without --config; add it')
    if arguments.find_smallest_slice:
        generation = slices.parse_generation(arguments.topology.replace(':', '-').partition('-')[0])
        request = PlanRequest(slices.list_slices(generation)[0], config)
        print_result(f'the smallest slice: {search.find_smallest_slice(request, generation)}')
        return 0
    request = PlanRequest(slices.parse(arguments.topology), filters=_split_words(arguments.filter))
    if TRAIN in only:
        request = dataclasses.replace(request, config=config)
    if SAMPLE in only:
        request = _with_sampling(request, arguments, config, overrides)
    elif given := _sampling_flags(arguments, overrides):
        raise UsageError(f'{given[0]}: has no effect without --only={SAMPLE}')
    if arguments.search:
        best = search.find_largest_batch(request)
        fields = f'--config.data.loader.batch_size={best.batch_size} --config.stage.network.remat={best.remat}'
        print_result(f'the largest batch: {fields}')
        return 0
    return _print_report(request, arguments.json)


def _parser() -> Parser:
    parser = Parser('python -m fv_jax.plan', 'Plans memory, time and cost of training and sampling.', EPILOG)
    add = parser.add_argument
    add('--config', help='a config file and variant: stage2:tiny, or FILE.py:tiny (default: the official release)')
    add('--topology', required=True, help='v5e-8, v6e-8, v5p-8 (4 chips), v5p:4x8x8, h100-8, ...')
    help = 'train, sample or both, comma-separated (default: both with --config, sample without)'
    add('--only', help=help)
    add('--batch-size', type=int, help='prompts that are sampled at once (default: 1)')
    add('--filter', default='', help="only programs whose names contain a word of 'step,decode'")
    add('--json', type=path_flag, help='write the report to this file')
    add('--search', action='store_true', help='find the largest batch and cheapest remat that fit')
    add('--find-smallest-slice', action='store_true', help='find the smallest slice that training fits')
    add_tiling_flags(parser)
    return parser


def _read_only(arguments: argparse.Namespace, default: tuple[str, ...]) -> tuple[str, ...]:
    only = default if arguments.only is None else _split_words(arguments.only)
    if unknown := [word for word in only if word not in CHOICES]:
        raise UsageError(f'--only={arguments.only}: {unknown[0]} is not one of {", ".join(CHOICES)}')
    require(only, f'--only={arguments.only}: names nothing; use {" or ".join(CHOICES)}', UsageError)
    if TRAIN in only and arguments.config is None:
        flag = (
            '--search' if arguments.search else '--find-smallest-slice' if arguments.find_smallest_slice else '--only'
        )
        raise UsageError(f'{flag}: plans training, which needs a --config; add it')
    return only


def _sampling_flags(arguments: argparse.Namespace, overrides: Mapping[str, list[Override]]) -> list[str]:
    """Lists the given flags that concern sampling alone."""
    flags = {
        '--batch-size': arguments.batch_size,
        '--tile-size': arguments.tile_size,
        '--tile-overlap': arguments.tile_overlap,
    }
    given = [f'--{group}.{field}' for group in SAMPLING_OVERRIDES for field, _ in overrides[group]]
    return [flag for flag, value in flags.items() if value is not None] + given


def _with_sampling(
    request: PlanRequest,
    arguments: argparse.Namespace,
    config: TrainConfig | None,
    overrides: Mapping[str, list[Override]],
) -> PlanRequest:
    """Returns the request with the pipeline that the flags describe."""
    batch_size = 1 if arguments.batch_size is None else arguments.batch_size
    require(batch_size >= 1, f'--batch-size={batch_size}: must be at least 1', UsageError)
    if config is None:
        stages = sampled_stages.official_stages(api.STAGES)
    else:
        stages = [sampled_stages.stage_of_run(config, api.STAGES)]
    missing = set(api.STAGES) - {stage.name for stage in stages}
    for name in sorted(missing):
        require(not overrides[name], f'--{name}: has no effect, as {stages[0].name} alone is planned', UsageError)
    changed = [_change_settings(stage, arguments, overrides[stage.name]) for stage in stages]
    preview, enhancement = ([s for s in changed if s.name == name] or [None] for name in api.STAGES)
    if enhancement[0] is None and arguments.tile_size is not None:
        raise UsageError('--tile-size: has no effect, as previews are decoded without tiles; remove it')
    pipeline = SampledPipeline(preview[0], enhancement[0], batch_size)
    pipeline.check()
    axes = read_parallel(overrides[PARALLEL])
    return dataclasses.replace(request, pipeline=pipeline, parallel=axes)


def _change_settings(stage: SampledStage, arguments: argparse.Namespace, overrides: list[Override]) -> SampledStage:
    settings = override_settings(stage.settings, stage.name, overrides)
    tiling = read_tiling(arguments, stage.latent_spec)
    if tiling is not None and isinstance(settings, EnhanceSettings):
        settings = dataclasses.replace(settings, tile_size=tiling.tile_size, tile_overlap=tiling.tile_overlap)
    return dataclasses.replace(stage, settings=settings)


def _print_report(request: PlanRequest, json_path: StoragePath | None) -> int:
    request = planner.fit_request(request)
    report = planner.plan(request)
    for line in table.format_report(report):
        print_result(line)
    suggestions = suggest_changes(report, request)
    if not report.fits:
        print_result('does not fit; suggestions:')
        for line in suggestions:
            print_result(f'  {line}')
    if json_path is not None:
        files.write_json(json_path, report.to_dict() | {'suggestions': suggestions})
    return 0 if report.fits else DOES_NOT_FIT


def _split_words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(',') if word.strip())


if __name__ == '__main__':
    sys.exit(main())
