"""The embedded clips, and the PSNR to them, for the benchmarks of the VAE."""

import dataclasses

import numpy as np

from fv_jax.data import pipeline
from fv_jax.data.config import DataConfig
from fv_jax.data.loader import LoaderConfig
from fv_jax.evaluation import full_reference

SIZE = (256, 480)


def clips(*, heldout: bool, frames: int) -> list[np.ndarray]:
    """Loads all training or held-out shots, whole frames in [-1, 1], (F, *SIZE, 3) float32."""
    config = DataConfig(
        train='embedded',
        heldout='embedded',
        frames=frames,
        height=SIZE[0],
        width=SIZE[1],
        fit='crop',
        loader=LoaderConfig(batch_size=1),
    )
    records = pipeline.open_source('embedded', config, heldout=heldout)
    transform = pipeline.clip_transform(config, low_res=False, training=False)
    every = dataclasses.replace(config, eval_clips=len(records))
    return [batch['high_res_BFHWC'][0] for batch in pipeline.heldout_clips(records, transform, every)]


def psnr(video: np.ndarray, truth: np.ndarray) -> float:
    """Computes the mean over frames of the PSNR of float videos, clipped to [-1, 1], in dB."""
    return float(np.mean(full_reference.psnr(np.clip(video, -1, 1), np.clip(truth, -1, 1))))
