"""Enhancing a clip: the lines of stage 2, window by window.

A window of input frames, uint8, becomes as many enhanced ones:

    x      = resize(frames / 127.5 - 1)                  antialiased bilinear, never rounded       FACTS 5.4
    z_low  = means of the VAE's latents of x             official chunks                           FACTS 4.3
    z      = transport(source(z_low, noise))             the stage's solver and grid               FACTS 5.3
    out    = clip(decode(z), -1, 1)                      official chunks

The noise of a latent frame is drawn from (key, its index in the whole clip). Windows that overlap therefore share the
noise of what they share, and the noise of a moment does not depend on the window that it is computed in.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fv_jax.core.resize import resize
from fv_jax.core.rules import Rules
from fv_jax.data.transforms import to_float, to_uint8
from fv_jax.inference.jitted import JittedVAE
from fv_jax.inference.windows import Windows, crossfade, cut
from fv_jax.models import vae_chunking
from fv_jax.models.dit import DiT
from fv_jax.stages.base import row_normal
from fv_jax.stages.superres import SuperRes

# (low-res latents BFHWC, key, the index of their first frame in the clip) -> high-res latents; none of them scaled
Transport = Callable[[jax.Array, jax.Array, int], jax.Array]


def latent_noise(key: jax.Array, first: jax.Array | int, shape: tuple[int, ...]) -> jax.Array:
    """Unit Gaussian noise for latent frames `first` ... of a clip, `shape` = (1, F, H, W, C), float32."""
    assert shape[0] == 1, shape
    keys_F = jax.vmap(functools.partial(jax.random.fold_in, key))(first + jnp.arange(shape[1]))
    return row_normal(keys_F, shape[1:])[None]


def jit_transport(stage: SuperRes, model: DiT, *, rules: Rules) -> Transport:
    """One executable per latent shape: noise, source and solver. The text is all zeros."""
    # All-zero text is the unconditional input too, so that guidance would mix two equal velocities at twice the cost.
    stage = stage.sampled_with(guidance_scale=1.0)
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, z_low_BFHWC, key, first):
        source = stage.source(z_low_BFHWC, latent_noise(key, first, z_low_BFHWC.shape))
        text = stage.text({'z_low_BFHWC': z_low_BFHWC})
        return stage.unscaled(stage.transport(nnx.merge(graphdef, state), source, text, rules=rules))

    return lambda z_low_BFHWC, key, first: run(state, z_low_BFHWC, key, first)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _upsampled(video_BFHWC: jax.Array, height: int, width: int) -> jax.Array:
    return resize(video_BFHWC, height, width)


@dataclasses.dataclass(frozen=True)
class Enhancer:
    """Everything compiled that a window needs. Each part is compiled once per shape."""

    transport: Transport
    vae: JittedVAE

    def window(self, video_FHWC: np.ndarray, size: tuple[int, int], *, key: jax.Array, first_latent: int) -> np.ndarray:
        """One window.

        Args:
          video_FHWC: uint8 RGB, any number of frames; padded with the last one to 1 or 8k + 1, and cut back.
          size: (height, width) of the result, multiples of 16.
          key: of the whole clip's noise.
          first_latent: the index of the window's first latent frame in the clip.

        Returns:
          float32 (F, *size, 3) in [-1, 1].
        """
        video_BFHWC = vae_chunking.pad_to_valid(jnp.asarray(to_float(video_FHWC))[None])
        z_low = self.vae.latents(_upsampled(video_BFHWC, *size))
        enhanced_BFHWC = self.vae.video(self.transport(z_low, key, first_latent))
        return np.clip(np.asarray(enhanced_BFHWC[0, : len(video_FHWC)], np.float32), -1, 1)


def enhance(
    enhancer: Enhancer, frames: Iterable[np.ndarray], size: tuple[int, int], *, key: jax.Array, windows: Windows
) -> Iterator[np.ndarray]:
    """A clip of any length, in as many frames.

    Args:
      frames: uint8 HWC RGB, all of one size; read as they are needed.
      size: (height, width) of the result, multiples of 16.
      key: of the noise: the same key gives the same clip.
      windows: the model's frames, and how many of them neighbouring windows share.

    Yields:
      uint8 (F, *size, 3): the frames that a window has finished, as soon as it has; one block for each window.
    """

    def enhanced():
        for window in cut(frames, windows):
            first_latent = window.start // windows.alignment
            video = enhancer.window(window.video_FHWC, size, key=key, first_latent=first_latent)
            yield window._replace(video_FHWC=video)

    return map(to_uint8, crossfade(enhanced(), windows.overlap))
