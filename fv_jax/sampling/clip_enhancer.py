"""Enhances a clip of any length with stage 2, window by window.

A window of input frames, uint8, becomes as many enhanced frames. The text embedding is all zeros, and overlapping
windows share the noise of the frames that they share (`noise.WindowNoise`).
"""

from collections.abc import Iterable, Iterator

import jax
import numpy as np

from fv_jax.data.transforms import to_uint8
from fv_jax.sampling.enhancer import Enhancer
from fv_jax.sampling.progress import StepProgress, no_bar
from fv_jax.sampling.windows import Windows, crossfade, split_windows


def enhance_clip(
    enhancer: Enhancer,
    frames: Iterable[np.ndarray],
    size: tuple[int, int],
    *,
    seed: int,
    windows: Windows,
    step_progress: StepProgress = no_bar,
) -> Iterator[np.ndarray]:
    """Enhances a clip of any length, streaming.

    Args:
      enhancer: the compiled functions.
      frames: uint8 HWC RGB, all of one size; read lazily.
      size: (height, width) of the result in pixels, multiples of what the VAE's latents allow.
      seed: of the noise, 0 to 2^32 - 1; the same seed gives the same clip.
      windows: the length of the windows and their overlap.
      step_progress: shows the sampler's steps of a window.

    Yields:
      uint8 (F, *size, 3), one block per window: the frames that no later window contributes to.

    Raises:
      ValueError: out of memory.
    """

    def enhance_windows():
        for window in split_windows(frames, windows):
            first = window.start // windows.alignment
            with step_progress() as on_step:
                video = enhancer.enhance_window(window.video_FHWC, size, seed=seed, first_latent=first, on_step=on_step)
            yield window._replace(video_FHWC=video)

    try:
        yield from map(to_uint8, crossfade(enhance_windows(), windows.overlap))
    except jax.errors.JaxRuntimeError as error:
        if 'out of memory' not in str(error).lower():
            raise
        shape = f'{windows.frames}x{size[0]}x{size[1]}'
        raise ValueError(
            f'out of memory for windows of {shape}; use a smaller size or scale, or tiles (tile_size=256,256)'
        ) from error
