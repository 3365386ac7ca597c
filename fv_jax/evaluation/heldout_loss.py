"""The flow-matching loss of a stage-2 run on held-out clips, beside that of the best linear predictor."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.core.paths import StoragePath
from fv_jax.data import pipeline
from fv_jax.data.config import DataConfig
from fv_jax.data.shards.shard_files import read_records
from fv_jax.data.transforms import to_float
from fv_jax.evaluation.clip_sources import Loader, resize
from fv_jax.evaluation.linear_baseline import LinearPredictor
from fv_jax.evaluation.networks import Network
from fv_jax.stages.latent_stage import EnhancementStage, NoisedPair
from fv_jax.stages.noise import per_example_keys
from fv_jax.stages.protocol import Batch, evaluation_loss
from fv_jax.training.run import latent_cache
from fv_jax.weights import trained_runs

STRATA = 4  # of t; see `time_grids.stratified_times`
TRAIN_CLIPS = 64  # that the linear predictor is fitted on if no latents are cached


def heldout_loss(opened: Network, data: DataConfig, clips: Sequence[Loader]) -> dict[str, float]:
    """Computes both losses on the same latents, noise and times.

    Args:
      opened: the run, in whose work directory its cached latents are.
      data: of the run.
      clips: its held-out clips, all of one size.

    Returns:
      'model', 'linear_3x3x3', and 'ratio', of the first to the second.
    """
    run, loaded = opened.run, opened.loaded
    stage, network = run.stage, run.network

    @jax.jit
    def loss(params, noised):
        context = loaded.parallel_context(noised.data_BFHWC.shape)
        return evaluation_loss(stage, network.model(**params), noised, context=context)[0]

    key = jax.random.key(run.config['seed'])
    linear = LinearPredictor(STRATA)
    for i, batch in enumerate(_training_latents(run, data, opened.path)):
        linear.add(_noise(stage, batch, jax.random.fold_in(key, 0), i))
    of_model, of_linear = [], []
    for i, load in enumerate(clips):
        clip = load()
        videos = clip.truth, resize(clip.low_quality, clip.size)
        z_high, z_low = (run.vae.encode(to_float(video)[None]) for video in videos)
        noised = _noise(stage, {'z_high_BFHWC': z_high, 'z_low_BFHWC': z_low}, jax.random.fold_in(key, 1), i)
        of_model.append(float(loss(run.params, loaded.mesh.replicate(noised))))
        of_linear.append(linear.loss(noised))
    losses = {'model': float(np.mean(of_model)), 'linear_3x3x3': float(np.mean(of_linear))}
    return losses | {'ratio': losses['model'] / losses['linear_3x3x3']}


def _noise(stage: EnhancementStage, batch: Batch, key: jax.Array, index: int) -> NoisedPair:
    """Repeats a clip for every stratum of t and adds noise."""
    # On the host: latents of the VAE lie on all devices of its mesh.
    tiled = {name: jnp.asarray(np.repeat(np.asarray(value), STRATA, axis=0)) for name, value in batch.items()}
    return stage.sample_noise_and_time(tiled, per_example_keys(key, index, STRATA))


def _training_latents(run: trained_runs.Run, data: DataConfig, checkpoint: StoragePath) -> Iterator[Batch]:
    """Yields the latents that the run trained on: those in its work directory, or its first clips encoded now."""
    cached = checkpoint / latent_cache.FOLDER
    if data.cache is not None and cached.is_dir():  # an exported run has none
        for record in read_records(latent_cache.cached_shards(cached)):
            yield {'z_high_BFHWC': record['z_high'][None], 'z_low_BFHWC': record['z_low'][:1]}
        return
    records = pipeline.open_source(data.train, data, heldout=False)
    transform = pipeline.training_transform(data, data.sizes[0], low_res=True)
    for batch in pipeline.heldout_clips(records, transform, dataclasses.replace(data, eval_clips=TRAIN_CLIPS)):
        yield run.stage.encode(batch)
