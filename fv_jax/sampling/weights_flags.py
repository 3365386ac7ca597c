"""Flags that name the weights of a pipeline: `--official`, `--checkpoint`, `--text`, `--dtype`."""

import argparse

from fv_jax.core.command_line import Parser, UsageError, path_or_name_flag
from fv_jax.sampling.metadata import WeightsOrigin
from fv_jax.text.encoder import TextConfig
from fv_jax.weights.text_encoders import CHOICES
from fv_jax.weights.trained_runs import EMBEDDED


def add_weights_flags(parser: Parser) -> None:
    """Adds the flags that `read_origin` reads."""
    add = parser.add_argument
    add(
        '--official',
        type=path_or_name_flag,
        help='a folder with stage1.pt, stage2.pt, 3d-vae.pt and t5-v1_1-xxl, or hf://USER/NAME',
    )
    runs = 'a folder that holds the runs stage1 and stage2, or the runs themselves'
    add('--checkpoint', type=path_or_name_flag, nargs='+', help=runs)
    add('--text', type=path_or_name_flag, help=f'the text encoder: {CHOICES} (default: the one that the weights name)')
    add('--dtype', choices=('bfloat16', 'float32'), help='of the official networks (default: bfloat16)')


def read_origin(
    arguments: argparse.Namespace, origin: WeightsOrigin | None = None, *, step: int | None = None
) -> WeightsOrigin:
    """Returns the weights that the flags name; without such flags `origin`, or else the embedded ones.

    Args:
      arguments: with the flags of `add_weights_flags`.
      origin: of weights that are used without flags.
      step: of the checkpoint, where there is one only.

    Raises:
      UsageError: the flags exclude each other.
    """
    runs = arguments.checkpoint or ()
    if step is not None and len(runs) != 1:
        raise UsageError(f'--step={step}: is the step of one checkpoint; --checkpoint names {len(runs)}')
    if arguments.official and arguments.checkpoint:
        raise UsageError('--official and --checkpoint: give one of them')
    text = TextConfig(arguments.text) if arguments.text else None
    if arguments.official:
        return WeightsOrigin(arguments.official, dtype=arguments.dtype or 'bfloat16', text=text)
    if arguments.checkpoint or origin is None:
        steps = () if step is None else (step,)
        return WeightsOrigin(checkpoints=tuple(runs or (EMBEDDED,)), steps=steps, text=text)
    return origin
