"""The embedded clips, the PSNR to them, and the VAEs that are compared, for the benchmarks of the VAE."""

import dataclasses
from pathlib import Path

import numpy as np

from fv_jax import weights
from fv_jax.data import pipeline
from fv_jax.data.config import DataConfig
from fv_jax.data.loader import LoaderConfig
from fv_jax.evaluation import full_reference
from fv_jax.models.vae import VAE
from fv_jax.weights import trained_runs

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


def open_vae(name: str) -> VAE:
    """Opens the VAE of a name that `weights` knows, of a file, or of a run."""
    if weights.is_weights(name):
        return weights.load_vae(name)
    run = trained_runs.open_run(Path(name))
    return run.network.model(**run.params)
