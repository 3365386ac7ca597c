"""Plans memory, time and cost of a run: `python -m fv_jax.plan --config=stage2 --topology=v6e-8`.

Compiles the programs of the run ahead of time for a TPU topology that the machine does not have, and prints a
per-device memory breakdown, FLOPs, communication, roofline time and cost. libtpu, an ordinary package, is the compiler;
a program of full size takes minutes. GPUs (h100-8, h200-1) are planned by formula.

    --search                 finds the largest batch, and the cheapest rematerialization, that fit the slice
    --find-smallest-slice    finds the smallest slice of a generation: --topology=v5e --find-smallest-slice

Exit codes: 0 it fits; 3 it does not fit (suggestions are printed); 2 wrong usage; 1 the compiler failed otherwise.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from fv_jax.core import files
from fv_jax.core.checks import require
from fv_jax.core.command_line import OVERRIDES, Parser, UsageError, path_flag, read_config
from fv_jax.core.commands import run_command
from fv_jax.core.console import print_result
from fv_jax.planning import planner, search, slices, table
from fv_jax.planning.planner import PHASES, PlanRequest
from fv_jax.planning.suggestions import suggest_changes
from fv_jax.sampling.tiling_flags import add_tiling_flags, read_tiling
from fv_jax.training.run.setup import TrainConfig

DOES_NOT_FIT = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    return run_command('plan', _plan, argv)


def _plan(argv: Sequence[str]) -> int:
    parser = Parser(
        'python -m fv_jax.plan', 'Plans memory, time and cost of a run on a TPU slice or on GPUs.', OVERRIDES
    )
    parser.add_argument('--config', required=True, help='a config file and variant: stage2:tiny, or FILE.py:tiny')
    parser.add_argument('--topology', required=True, help='v5e-8, v6e-8, v5p-8 (4 chips), v5p:4x8x8, h100-8, ...')
    parser.add_argument('--phases', default=','.join(PHASES), help='comma-separated (default: %(default)s)')
    parser.add_argument('--filter', default='', help="only programs whose names contain a word of 'step,decode'")
    parser.add_argument('--json', type=path_flag, help='write the report to this file')
    parser.add_argument('--search', action='store_true', help='find the largest batch and cheapest remat that fit')
    parser.add_argument('--find-smallest-slice', action='store_true', help='find the smallest slice that fits')
    add_tiling_flags(parser)
    arguments, overrides = parser.parse(argv)
    both = arguments.search and arguments.find_smallest_slice
    require(not both, '--search, --find-smallest-slice: cannot be combined; give one of them', UsageError)
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        raise UsageError(f'--json={arguments.json}: its folder does not exist')
    phases = _split_words(arguments.phases)
    if unknown := set(phases) - set(PHASES):
        raise UsageError(f'--phases={arguments.phases}: {sorted(unknown)[0]} is not one of {", ".join(PHASES)}')
    config = read_config(TrainConfig, arguments.config, overrides)
    tiling = read_tiling(arguments, planner.latent_spec(config))
    if arguments.find_smallest_slice:
        generation = slices.parse_generation(arguments.topology.replace(':', '-').partition('-')[0])
        request = PlanRequest(config, slices.list_slices(generation)[0])
        print_result(f'the smallest slice: {search.find_smallest_slice(request, generation)}')
        return 0
    request = PlanRequest(config, slices.parse(arguments.topology), phases, _split_words(arguments.filter), tiling)
    if arguments.search:
        best = search.find_largest_batch(request)
        fields = f'--config.data.loader.batch_size={best.batch_size} --config.stage.network.remat={best.remat}'
        print_result(f'the largest batch: {fields}')
        return 0
    return _print_report(request, arguments.json)


def _print_report(request: PlanRequest, json_path: Path | None) -> int:
    report = planner.plan(request)
    for line in table.format_report(report):
        print_result(line)
    suggestions = suggest_changes(report, request.config, planner.make_slice_partitioner(request))
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
