"""The data of a training run: its records, the fingerprints of the networks that made them, its sharded batches."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator

import jax
import numpy as np

from fv_jax import weights
from fv_jax.core import axes
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.core.paths import StoragePath
from fv_jax.data import pipeline
from fv_jax.data.degradation.configs import ModelGuidedConfig
from fv_jax.data.degradation.degradations import PreviewModel
from fv_jax.data.loader import BatchStream, WeightedSource
from fv_jax.data.shards import provenance, text_provenance
from fv_jax.data.shards.bad_records import BadRecords
from fv_jax.data.streaming import find_caches
from fv_jax.parallel import arrays, distributed
from fv_jax.parallel.rules import make_frames_partitioner
from fv_jax.stages import registry
from fv_jax.stages.protocol import Batch
from fv_jax.text.encoder import TextConfig, TextEncoder, TextEncoderFingerprint
from fv_jax.training.heldout import HeldoutBatch, heldout_indices
from fv_jax.training.run import latent_cache
from fv_jax.training.run.setup import TrainConfig, TrainSetup
from fv_jax.weights import text_encoders, trained_runs

# (configuration, fingerprint of the encoder of captions) -> the model.
OpenModel = Callable[[ModelGuidedConfig, str | None], PreviewModel]
Digests = dict[str, str]  # 'vae' and 'text' -> 16 hexadecimal digits

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Datasets:
    """The records of a run.

    Attributes:
      groups: the training clips, by bucket.
      heldout: the clips for evaluation; None without any.
      digests: fingerprints of the networks that make the training data.
      text: embeds captions; None where the embeddings are stored with the clips, or there are none.
    """

    groups: list[pipeline.BucketGroup]
    heldout: pipeline.DataSource | None
    digests: Digests
    text: TextEncoder | None


def open_datasets(
    config: TrainConfig, latent_spec: LatentSpec, bad: BadRecords, check: Callable[[Digests], None]
) -> Datasets:
    """Opens the records of a run.

    Args:
      latent_spec: of the VAE that makes, or has made, their latents.
      bad: counts the records that cannot be read.
      check: raises ConfigError for fingerprints that the run cannot resume with.

    Raises:
      ConfigError, ValueError, OSError: there are no records, or other networks have made them.
    """
    data = config.data
    heldout = (
        pipeline.open_source(data.heldout, data, heldout=True) if data.heldout and config.loop.eval_every else None
    )
    clips = pipeline.training_sources(data, bad)
    digests = _digests(config, clips, heldout)
    check(digests)
    vae_provenance = latent_cache.vae_provenance(digests['vae'], latent_spec) if 'vae' in digests else None
    provenance.check_latents(clips, vae_provenance)
    groups = pipeline.group_by_bucket(clips, data, latent_spec)
    text = text_encoders.open_text_encoder(config.stage.text) if _embeds_online(config.stage.text) else None
    return Datasets(groups, heldout, digests, text)


def _digests(config: TrainConfig, clips: list[WeightedSource], heldout: pipeline.DataSource | None) -> Digests:
    """Returns the fingerprints of the encoders of videos and text that make the training data, for the checkpoints."""
    if not registry.needs_vae(config.stage):
        return {}
    text = _text_fingerprint(config, clips, heldout)
    return {'vae': weights.encoder_fingerprint(config.stage.vae)} | ({'text': text.digest} if text else {})


def _text_fingerprint(
    config: TrainConfig, clips: list[WeightedSource], heldout: pipeline.DataSource | None
) -> TextEncoderFingerprint | None:
    """Returns the fingerprint of the text encoder of the run; embeddings stored with the clips must have the same."""
    chosen, found = config.stage.text, {}
    for part in clips:
        found |= text_provenance.stored_fingerprints(part.name, part.source)
    if heldout is not None:
        found |= text_provenance.stored_fingerprints(config.data.heldout, heldout)
    online = _embeds_online(chosen)
    own = text_encoders.text_fingerprint(chosen) if text_encoders.is_available(chosen) else None
    _, width = registry.build(config.stage).text_shape
    whose = text_provenance.check_fingerprints(found, chosen, own, width, online=online)
    if chosen.encoder and own is None:
        log.info(
            f'note: text encoder {chosen.encoder} does not exist here; the clips have text embeddings of encoder '
            f'{whose}: assuming that it is the same'
        )
    return whose


def _embeds_online(text: TextConfig) -> bool:
    return bool(text.encoder) and text_encoders.find_kind(text, 'config.stage.text').online


def load_heldout_batches(setup: TrainSetup, datasets: Datasets) -> list[HeldoutBatch]:
    """Returns the held-out batches, sharded over the mesh; the same at every evaluation. Empty without held-out clips.

    Raises ValueError or OSError: a clip cannot be read.
    """
    if datasets.heldout is None:
        return []
    data, partitioner = setup.config.data, setup.partitioner
    low_res = registry.needs_low_res(setup.config.stage)
    transform = pipeline.clip_transform(data, low_res=low_res, training=False, text=datasets.text)
    size, (part, parts) = partitioner.num_shards(axes.ACT_BATCH), arrays.process_part(partitioner)
    mine = slice(part * size // parts, (part + 1) * size // parts)
    batches = []
    for clips in heldout_indices(min(data.eval_clips, len(datasets.heldout)), size):
        local = pipeline.load_heldout(datasets.heldout, transform, clips[mine])
        batches.append(HeldoutBatch(arrays.to_global(local, partitioner, setup.latent_spec), clips))
    return batches


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """The batches of a run, sharded over the mesh."""

    setup: TrainSetup
    streams: list[BatchStream]
    bad: BadRecords

    def shard_metrics(self) -> dict[str, float]:
        """Returns how this process has read its shards so far, if they are fetched from object storage."""
        caches = [cache for stream in self.streams for part in stream.parts for cache in find_caches(part)]
        return caches[0].statistics.metrics() if caches else {}

    @classmethod
    def open(
        cls, setup: TrainSetup, datasets: Datasets, workdir: StoragePath, bad: BadRecords, open_model: OpenModel
    ) -> 'TrainBatches':
        """Opens the streams of batches. Clips for the latent cache are encoded here.

        open_model: opens the model of model-guided degradations, where clips are encoded.
        """
        config = setup.config
        encoded = any(provenance.is_latent_source(part.source) for group in datasets.groups for part in group.parts)
        if registry.needs_vae(config.stage) and config.data.cache is not None and not encoded:
            streams = _cached_streams(config, datasets, workdir, bad, open_model)
        else:
            low_res = registry.needs_low_res(config.stage)
            streams = pipeline.make_streams(datasets.groups, config.data, low_res=low_res, text=datasets.text)
        return cls(setup, streams, bad)

    def train(self, start_step: int, num_rollbacks: int) -> Iterator[Batch]:
        """Yields the training batches from a step on.

        num_rollbacks: each number of rollbacks has its own order of clips and its own random augmentation.
        """
        data, partitioner = self.setup.config.data, self.setup.partitioner
        if num_rollbacks:
            (seed,) = np.random.SeedSequence([data.loader.seed, num_rollbacks]).generate_state(1)
            data = dataclasses.replace(data, loader=dataclasses.replace(data.loader, seed=int(seed)))
        part = arrays.process_part(partitioner)
        batches = pipeline.train_batches(self.streams, data, self.bad, start_step=start_step, process=part)
        return (arrays.to_global(batch, partitioner, self.setup.latent_spec) for batch in batches)


def _cached_streams(
    config: TrainConfig, datasets: Datasets, workdir: StoragePath, bad: BadRecords, open_model: OpenModel
) -> list[BatchStream]:
    """Returns streams of cached latents. The first process encodes, on its devices; the others wait."""
    vae = trained_runs.load_frozen_vae(config.stage, make_frames_partitioner(jax.local_devices()))
    folder = workdir / latent_cache.FOLDER
    arguments = folder, datasets.groups, vae, config.data, datasets.digests['vae']
    open_this = functools.partial(open_model, config.data.model_guided, datasets.digests.get('text'))
    cached = functools.partial(
        latent_cache.cached_streams, *arguments, bad=bad, text=datasets.text, open_model=open_this
    )
    found = cached() if jax.process_index() == 0 else None
    distributed.barrier('latents')
    return cached() if found is None else found
