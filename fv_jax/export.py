"""Writes a trained VAE as one small file: `python -m fv_jax.export --checkpoint RUN --output vae.safetensors`.

The parameters that sampling uses (the average, where the run keeps one), in float16, with their configuration. A
config takes the file as `stage.vae`; the one in the package was made by this command.

Exit codes: 0 done; 2 wrong usage; 1 failed.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from fv_jax import api
from fv_jax.checkpoints.manager import CheckpointError
from fv_jax.core.command_line import Parser, UsageError, one_line, quiet_libraries
from fv_jax.core.config import ConfigError
from fv_jax.stages.autoencoder import Autoencoder
from fv_jax.weights import compact


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    try:
        return _main(sys.argv[1:] if argv is None else argv)
    except (UsageError, ConfigError) as error:
        return _fail(error, 2)
    except (CheckpointError, OSError, ValueError, jax.errors.JaxRuntimeError) as error:
        return _fail(error, 1)


def _fail(error: object, code: int) -> int:
    print(f'export: {one_line(error)}', file=sys.stderr)
    return code


def _main(argv: Sequence[str]) -> int:
    quiet_libraries()
    parser = Parser('python -m fv_jax.export', 'Writes a trained VAE as one float16 safetensors file.')
    parser.add_argument('--checkpoint', type=Path, required=True, help='the work directory of a run')
    parser.add_argument('--output', type=Path, required=True, help='the file to write, *.safetensors')
    parser.add_argument('--step', type=int, default=None, help='which checkpoint; default: the newest')
    arguments = parser.parse_flags(argv)
    if arguments.output.suffix != '.safetensors':
        raise UsageError(f'--output={arguments.output}: must end in .safetensors')
    if not arguments.output.parent.is_dir():
        raise UsageError(f'--output={arguments.output}: there is no folder {arguments.output.parent}')
    run = api.open_run(arguments.checkpoint, arguments.step)
    if not isinstance(run.stage, Autoencoder):
        raise UsageError(f'{arguments.checkpoint}: holds a stage {run.config["stage"]["kind"]!r}, not an autoencoder')
    partial = arguments.output.with_suffix('.partial')
    try:
        compact.save_vae(partial, run.params['trainable'], run.stage.vae)
        os.replace(partial, arguments.output)
    finally:
        partial.unlink(missing_ok=True)
    print(f'{arguments.output}: step {run.step}, {arguments.output.stat().st_size:,} bytes')
    return 0


if __name__ == '__main__':
    sys.exit(main())
