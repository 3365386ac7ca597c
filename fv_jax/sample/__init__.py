"""Generates previews and videos from text, and enhances clips: `python -m fv_jax.sample COMMAND`.

    preview --prompt "a ladybug moves over a beach" --output RUN     previews, RUN/0, RUN/1, ... (--prompts FILE: many)
    enhance RUN/0 RUN/3                                              high-resolution videos of them, RUN/0/video.mp4
    clip --checkpoint RUN --input clip.mp4 --output out.mp4          super-resolution of clips and images, with stage 2
    vbench --prompts all_dimension.txt --output OUT                  OUT/PROMPT-0.mp4, ... for VBench
    reproduce video.mp4 --output again.mp4                           the same video again, from the metadata in the mp4

`preview` is assumed where the first argument is a flag; with --enhance-all it enhances every preview as well.
`COMMAND --help` lists the flags of a command.

Weights: `--official FOLDER` (stage1.pt, stage2.pt, 3d-vae.pt, t5-v1_1-xxl), `--checkpoint FOLDER` (a folder that holds
the runs stage1 and stage2, or both runs themselves), or by default the small weights in the package. Any setting of a
stage can be set: `--stage1.num_steps=25`, `--stage2.guidance_scale=10`, `--stage2.numerics=official`.

All devices of all processes are used; `--parallel.data=2 --parallel.context=4` sets the axes of the mesh.

A list of `preview`, `enhance`, `vbench` and `clip` is continued by the same command: what exists already is not made
again.

Exit codes: 0 success; 2 wrong usage, nothing was done; 1 failure, of a list also where a part of it failed; 130
interrupted. Files and folders are written atomically: they appear, or are replaced, when they are complete.
"""

import argparse
import math
from collections.abc import Sequence

from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.core import config as config_lib
from fv_jax.core import exit_codes
from fv_jax.core.checks import require
from fv_jax.core.command_line import Parser, UsageError
from fv_jax.core.commands import run_command
from fv_jax.core.devices import check_devices
from fv_jax.parallel import distributed
from fv_jax.sample import clip, enhance, preview, reproduce, vbench
from fv_jax.sample.flags import PROG, Command, Overrides
from fv_jax.sampling import prompts
from fv_jax.sampling.parallel_flags import PARALLEL, name_flags

MAX_CRF = 51
_COMMANDS = {
    'preview': preview.COMMAND,
    'enhance': enhance.COMMAND,
    'clip': clip.COMMAND,
    'vbench': vbench.COMMAND,
    'reproduce': reproduce.COMMAND,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    code = run_command(
        'sample',
        _sample,
        argv,
        errors={CheckpointError: exit_codes.USAGE},
        left='; only complete files were written',
    )
    if code != 0:
        distributed.force_exit_after_grace(code)
    return code


def _sample(argv: Sequence[str]) -> int:
    command, arguments, overrides = _parse(argv)
    _check_ranges(arguments)
    distributed.start(distributed.DistributedConfig.from_flags(arguments))
    check_devices()
    with name_flags():
        command.run(arguments, overrides)
    return 0


def _parse(argv: Sequence[str]) -> tuple[Command, argparse.Namespace, Overrides]:
    """Returns the subcommand, its arguments and the overrides of its settings. Raises UsageError."""
    listed = ', '.join(_COMMANDS)
    require(argv, f'COMMAND is missing; give one of {listed}', UsageError)
    if argv[0] in ('-h', '--help'):
        parser = Parser(PROG, __doc__)
        parser.usage, parser.formatter_class = f'{PROG} COMMAND ...', argparse.RawDescriptionHelpFormatter
        parser.parse_args(argv)  # prints the help and exits
    name, flags = ('preview', argv) if argv[0].startswith('-') else (argv[0], argv[1:])
    require(
        name in _COMMANDS, f'{name}: unknown command; {config_lib.did_you_mean(name, _COMMANDS)} ({listed})', UsageError
    )
    command = _COMMANDS[name]
    parser = Parser(f'{PROG} {name}', command.description)
    groups = *command.stages, PARALLEL
    parser.epilog = f'Settings: {", ".join(f"--{group}.FIELD=VALUE" for group in groups)}.'
    command.add_flags(parser)
    arguments, overrides = parser.parse_with_overrides(flags, ('config', *groups))
    if found := overrides.pop('config'):
        raise UsageError(f'--config.{found[0][0]}: a checkpoint carries its config, which cannot be changed here')
    arguments.parallel = overrides.pop(PARALLEL)
    return command, arguments, overrides


def _check_ranges(arguments: argparse.Namespace) -> None:
    """Raises UsageError for a number that is out of range."""
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    for name in ('num_steps', 'num_samples', 'batch_size'):
        if given.get(name, 1) < 1:
            raise UsageError(f'--{name.replace("_", "-")}={given[name]}: must be at least 1')
    for name, limit in (('crf', MAX_CRF), ('seed', prompts.MAX_SEED)):
        if not 0 <= given.get(name, 0) <= limit:
            raise UsageError(f'--{name}={given[name]}: must be between 0 and {limit}')
    for name in ('scale', 'fps'):
        if not 0 < given.get(name, 1) < math.inf:
            raise UsageError(f'--{name}={float(given[name]):g}: must be positive and finite')
