"""What a Python loop over sampling steps costs beside one program of all steps.

    PYTHONPATH=. python tests/benchmarks/sampling_loop.py [--repeats 7] [--json FILE]

Both stages of the small weights in the package, compiled before, in turns on this machine's devices. The loop waits for
every step, as `sampling/programs` does.

On two CPU cores: stage 1, whose steps take 8 ms, 1.09 to 1.11 times one program; stage 2, 80 ms, 1.01 to 1.02 times.
"""

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fv_jax import api
from fv_jax.sampling import programs
from fv_jax.sampling.lazy_stages import LazyStage
from fv_jax.sampling.noise import SeededNoise
from fv_jax.stages.latent_stage import PreviewStage

PROMPT = 'a ladybug moves from left to right over a beach'


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='A loop over sampling steps beside one program.')
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--json', type=Path, default=None)
    arguments = parser.parse_args(argv)
    fv = api.FlashVideo.from_checkpoint('embedded')
    found = {}
    for part, size in ((fv.stage1, (5, 8, 12)), (fv.stage2, (5, 32, 48))):
        seconds = _measure(*_both_ways(fv, part, size), arguments.repeats)
        ratio = statistics.median(b / a for a, b in zip(*seconds, strict=True))
        medians = [statistics.median(s) for s in seconds]
        name = f'{type(part.stage).__name__}, {part.stage.config.num_steps} steps'
        found[name] = {'one_program_s': medians[0], 'loop_s': medians[1], 'ratio': ratio}
        print(f'{name}: one program {medians[0]:.3f} s, loop {medians[1]:.3f} s, ratio {ratio:.3f}', flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + '\n')
    return 0


def _both_ways(fv: api.FlashVideo, part: LazyStage, size: tuple[int, int, int]) -> tuple[Callable, Callable]:
    """Returns functions that sample latents of a size (F, H, W): in one program, and step by step."""
    loaded, noise = part.loaded, SeededNoise.from_seeds([0])
    shape = (1, *size, part.stage.network.latent_channels)
    text = part.stage.zero_text(1) if part.text is None else jnp.asarray(part.encode_prompts([PROMPT]))
    z_low = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)

    @jax.jit
    def whole(state, inputs, noise):
        model = nnx.merge(loaded.graphdef, state)
        return loaded.stage.sampling_trajectory(
            model, inputs, noise, shape, context=loaded.parallel_context((loaded.rows, *shape[1:]))
        ).integrate()

    def loop():
        if isinstance(loaded.stage, PreviewStage):
            return programs.generate(loaded, text, noise, size)
        return programs.enhance_latents(loaded, z_low, text, noise)

    return functools.partial(whole, loaded.state, {'text_BLD': text, 'z_low_BFHWC': z_low}, noise), loop


def _measure(one: Callable, loop: Callable, repeats: int) -> tuple[list[float], list[float]]:
    seconds: tuple[list[float], list[float]] = [], []
    for repeat in range(repeats + 1):
        for way, into in zip((one, loop), seconds, strict=True):
            started = time.perf_counter()
            jax.block_until_ready(way())
            if repeat:  # the first compiles
                into.append(time.perf_counter() - started)
    return seconds


if __name__ == '__main__':
    sys.exit(main())
