"""What a run needs and costs on a slice: `python -m fv_jax.plan --config=configs/stage2.py --topology=v6e-8`.

Compiles the run's own programs for a TPU slice that is not there, on any machine, and prints bytes a chip by cause,
FLOPs, traffic, time at the roofline and cost. libtpu, an ordinary package, does the compiling; a program of full size
takes minutes. GPUs (h100-8, h200-1) are planned by formula.

    --search      finds the largest batch, and the cheapest rematerialisation, that fit the slice
    --smallest    finds the smallest slice of a generation: --topology=v5e --smallest

Exit codes: 0 it fits; 3 it does not (the lines say what to change); 2 wrong usage; 1 the compiler failed otherwise.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from fv_jax.core import files
from fv_jax.core.checks import require
from fv_jax.core.command_line import OVERRIDES, Parser, UsageError, read_config
from fv_jax.core.commands import run_command
from fv_jax.core.console import print_result
from fv_jax.planning import planner, search, slices, table
from fv_jax.planning.advice import advice
from fv_jax.planning.planner import PHASES, Request
from fv_jax.sampling.tiling_flags import add_tiling_flags, read_tiling
from fv_jax.training.run.setup import RunConfig

DOES_NOT_FIT = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    return run_command('plan', _plan, argv)


def _plan(argv: Sequence[str]) -> int:
    parser = Parser('python -m fv_jax.plan', 'What a run needs and costs on a slice that is not there.', OVERRIDES)
    parser.add_argument('--config', required=True, help='a config file and variant, configs/stage2.py')
    parser.add_argument('--topology', required=True, help='v5e-8, v6e-8, v5p-8 (4 chips), v5p:4x8x8, h100-8, ...')
    parser.add_argument('--phases', default=','.join(PHASES), help=f'some of {",".join(PHASES)}')
    parser.add_argument('--only', default='', help="executables with these words in their names: 'step,decode'")
    parser.add_argument('--json', type=Path, help='writes the figures to this file')
    parser.add_argument('--search', action='store_true', help='find the largest batch and cheapest remat that fit')
    parser.add_argument('--smallest', action='store_true', help='find the smallest slice of the generation')
    add_tiling_flags(parser)
    arguments, overrides = parser.parse(argv)
    require(not arguments.search or not arguments.smallest, '--search, --smallest: give one of them', UsageError)
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        raise UsageError(f'--json={arguments.json}: its folder is not there')
    phases = _words(arguments.phases)
    if unknown := set(phases) - set(PHASES):
        raise UsageError(f'--phases={arguments.phases}: {sorted(unknown)[0]} is none of {", ".join(PHASES)}')
    config = read_config(RunConfig, arguments.config, overrides)
    tiling = read_tiling(arguments, planner.latent_spec(config))
    if arguments.smallest:
        generation = slices.parse_generation(arguments.topology.replace(':', '-').partition('-')[0])
        request = Request(config, slices.sizes(generation)[0])
        where = search.smallest_slice(request, generation)
        print_result(f'the smallest slice: {where}')
        return 0
    request = Request(config, slices.parse(arguments.topology), phases, _words(arguments.only), tiling)
    if arguments.search:
        found = search.largest_batch(request)
        fields = f'--config.data.loader.batch_size={found.batch} --config.stage.network.remat={found.remat}'
        print_result(f'the largest batch: {fields}')
        return 0
    return _report(request, arguments.json)


def _report(request: Request, to: Path | None) -> int:
    report = planner.plan(request)
    for line in table.lines(report):
        print_result(line)
    changes = advice(report, request.config, planner.placement_on(request))
    if not report.fits:
        print_result('it does not fit. What helps:')
        for line in changes:
            print_result(f'  {line}')
    if to is not None:
        files.write_json(to, report.as_dict() | {'changes': changes})
    return 0 if report.fits else DOES_NOT_FIT


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(',') if word.strip())


if __name__ == '__main__':
    sys.exit(main())
