"""Enhances a clip of any length with stage 2, shot by shot, window by window.

A window of input frames, uint8, becomes as many enhanced frames. The text embedding is all zeros, and overlapping
windows share the noise of the frames that they share (`noise.WindowNoise`). A shot is enhanced as a clip of its own
would be with the same seed: no window contains a cut, and the noise begins again with the shot.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from fv_jax.sampling.color_fix import fix_colors
from fv_jax.sampling.enhancer import Enhancer
from fv_jax.sampling.framing import Framing
from fv_jax.sampling.progress import StepProgress, no_bar
from fv_jax.sampling.windows import Window, Windows, check_sizes, crossfade, split_windows


def enhance_clip(
    enhancer: Enhancer,
    frames: Iterable[np.ndarray],
    size: tuple[int, int],
    *,
    seed: int,
    windows: Windows,
    cuts: Sequence[int] = (),
    framing: Framing | None = None,
    color_fix: bool = False,
    step_progress: StepProgress = no_bar,
) -> Iterator[np.ndarray]:
    """Enhances a clip of any length, streaming.

    Args:
      enhancer: the compiled functions.
      frames: uint8 HWC RGB, all of one size; read lazily.
      size: (height, width) of the result in pixels, multiples of what the VAE's latents allow.
      seed: of the noise, 0 to 2^32 - 1; the same seed gives the same clip.
      windows: the length of the windows and their overlap.
      cuts: the first frame of each shot but the first one, in order.
      framing: of frames of another aspect ratio than `size`; None stretches them.
      color_fix: whether the low frequencies are those of the input (`color_fix`).
      step_progress: shows the sampler's steps of a window.

    Yields:
      float32 (F, *size, 3) in [-1, 1], one block per window: the frames that no later window contributes to.

    Raises:
      ValueError: out of memory.
    """
    fitted = None if framing is None or framing.is_exact else framing

    def enhance_window(window: Window) -> Window:
        video, ratio = window.video_FHWC, None
        if fitted is not None:
            video, ratio = fitted.apply(video), fitted.ratio
        with step_progress() as on_step:
            first = window.start // windows.alignment
            enhanced = enhancer.enhance_window(video, size, seed=seed, first_latent=first, on_step=on_step, ratio=ratio)
        if color_fix:
            enhanced = fix_colors(enhanced, video, ratio)
        if fitted is not None:
            enhanced = fitted.make_bars_black(enhanced)
        return window._replace(video_FHWC=enhanced)

    try:
        for shot in _split_shots(check_sizes(frames), cuts):
            yield from crossfade(map(enhance_window, split_windows(shot, windows)), windows.overlap)
    except jax.errors.JaxRuntimeError as error:
        if 'out of memory' not in str(error).lower():
            raise
        shape = f'{windows.frames}x{size[0]}x{size[1]}'
        raise ValueError(
            f'out of memory for windows of {shape}; use a smaller size or scale, or tiles (tile_size=256,256)'
        ) from error


def _split_shots(frames: Iterator[np.ndarray], cuts: Sequence[int]) -> Iterator[Iterator[np.ndarray]]:
    """Yields the frames of each shot, which are to be read before those of the next one."""
    for first, end in itertools.pairwise([0, *cuts, None]):
        yield itertools.islice(frames, None if end is None else end - first)
