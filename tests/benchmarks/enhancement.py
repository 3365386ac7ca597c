"""Clips that are drawn small and large, their enhancement by a small stage 2, and round trips through a VAE."""

import jax.numpy as jnp
import numpy as np

from fv_jax import api
from fv_jax.data.synthetic import sprites
from fv_jax.data.transforms import to_float, to_uint8
from fv_jax.sampling import programs
from fv_jax.sampling.noise import SeededNoise
from fv_jax.stages.frozen_vae import JittedVAE
from tests.benchmarks.heldout_prompts import heldout_prompts

Pair = tuple[str, np.ndarray, np.ndarray]  # caption, small clip in [-1, 1], and a large one of the caption


def drawn_pairs(count: int) -> list[Pair]:
    """Held-out scenes other than those of the prompts, drawn small and large."""
    return [
        (scene.caption, *(to_float(sprites.draw_scene(scene, size)) for size in (sprites.PREVIEW, sprites.FINAL)))
        for scene in heldout_prompts(count, seed=1)
    ]


def enhance(fv: api.FlashVideo, small_FHWC: np.ndarray, size: tuple[int, int], seed: int) -> np.ndarray:
    """Enhances a clip in [-1, 1] to (height, width) by stage 2; returns uint8."""
    part = fv.stage2
    loaded = part.loaded.with_stage(part.stage.with_sampler_config(fv.enhance_settings))
    z_low = programs.low_res_latents(part.vae.jitted, jnp.asarray(small_FHWC)[None], size)
    return _decode(part.vae.jitted, programs.enhance_latents(loaded, z_low, None, SeededNoise.from_seeds([seed])))


def round_trip(vae: JittedVAE, clip_FHWC: np.ndarray) -> np.ndarray:
    """Encodes and decodes a clip in [-1, 1]; returns uint8."""
    return _decode(vae, vae.encode(jnp.asarray(clip_FHWC)[None]))


def _decode(vae: JittedVAE, z_BFHWC: jnp.ndarray) -> np.ndarray:
    return to_uint8(np.asarray(programs.decode_latents(vae, z_BFHWC)[0]))
