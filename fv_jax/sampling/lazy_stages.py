"""Lazily loaded components of a pipeline: stages, VAEs and text encoders, read when they are first used.

Opening a pipeline reads configurations only. A network stays in memory once loaded; a text encoder is freed as soon as
it has encoded, before the network of the stage runs.
"""

import dataclasses
import functools
import gc
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Generic

import jax
import numpy as np
from flax import nnx

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.console import Notice
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.models.vae import VAEConfig
from fv_jax.parallel.rules import Partitioner
from fv_jax.sampling.compile_ahead import read_while_compiling
from fv_jax.sampling.metadata import WeightDigests
from fv_jax.sampling.programs import LoadedStage, S
from fv_jax.sampling.prompts import quote_prompt
from fv_jax.sampling.sampling_mesh import SamplingMesh
from fv_jax.stages.frozen_vae import JittedVAE
from fv_jax.text.encoder import TextEncoder
from fv_jax.weights.fingerprints import sampled_fingerprint


@dataclasses.dataclass(eq=False)
class LazyVAE:
    """A VAE that is loaded when it is first used.

    Attributes:
      config: the architecture.
      load: loads and jits the network.
      load_digest: returns the fingerprint of its parameters.
    """

    config: VAEConfig
    load: Callable[[], JittedVAE]
    load_digest: Callable[[], str]

    @functools.cached_property
    def jitted(self) -> JittedVAE:
        return self.load()

    @functools.cached_property
    def digest(self) -> str:
        return self.load_digest()


@dataclasses.dataclass(eq=False)
class LazyTextEncoder:
    """A text encoder that is opened for each call.

    Attributes:
      name: for messages.
      open: loads the encoder, which is not kept.
      load_digest: returns its fingerprint, without loading its weights.
    """

    name: str
    open: Callable[[], TextEncoder]
    load_digest: Callable[[], str]

    @functools.cached_property
    def digest(self) -> str:
        return self.load_digest()


@dataclasses.dataclass(eq=False)
class LazyStage(Generic[S]):
    """A stage whose network is loaded when it is first used.

    Attributes:
      name: for messages, such as the folder of the run.
      stage: configuration and methods of the stage.
      load: loads the network onto the mesh of a partitioner.
      vae: the VAE of its latents.
      text: the text encoder; None for a stage that was trained without text.
      mesh: what the stage is sampled on.
      clip_frames: length of the clips that it was trained on; None if its configuration does not say.
    """

    name: str
    stage: S
    load: Callable[[Partitioner], nnx.Module]
    vae: LazyVAE
    text: LazyTextEncoder | None
    mesh: SamplingMesh
    clip_frames: int | None = None

    @property
    def latent_spec(self) -> LatentSpec:
        """The geometry of the latents and tokens that the stage works on."""
        return self.vae.config.latent_spec.with_patch(self.stage.network.patch_size)

    @property
    def window_frames(self) -> int:
        """The length of the windows that a clip is enhanced in. Raises ValueError if no configuration says it."""
        require(self.clip_frames, f'{self.name}: its config has no data.frames, the number of frames of a clip')
        return self.clip_frames

    @functools.cached_property
    def loaded(self) -> LoadedStage[S]:
        return LoadedStage.create(self.stage, self.load, self.mesh)

    def load_stage(self, stage: S, lower: Callable[[LoadedStage[S]], Iterable[jax.stages.Lowered]]) -> LoadedStage[S]:
        """Returns the network with other settings of the stage.

        Args:
          stage: the stage.
          lower: lowers the programs that it will run, which are compiled while the network is read.
        """
        if 'loaded' not in vars(self):
            read_while_compiling(lambda: self.loaded, lambda: lower(LoadedStage.abstract(stage, self.mesh)))
        return self.loaded.with_stage(stage)

    @functools.cached_property
    def digest(self) -> str:
        return sampled_fingerprint(self.loaded.state)

    @property
    def weight_digests(self) -> WeightDigests:
        """The fingerprints of the networks; loads that of the stage."""
        return WeightDigests(self.digest, self.vae.digest, '' if self.text is None else self.text.digest)

    def encode_prompts(self, texts: Sequence[str]) -> np.ndarray | None:
        """Encodes prompts with the stage's text encoder; warns of each prompt that is truncated.

        Returns:
          The embeddings (B, L, D); None without an encoder.

        Raises:
          ConfigError: the embeddings do not have the width that the network takes.
          ValueError: the encoder finds no token in a prompt.
        """
        if self.text is None:
            return None
        encoder = self.text.open()
        _, wanted = self.stage.text_shape
        require(
            encoder.fingerprint.dim == wanted,
            f'{self.name}: was trained on text embeddings of width {wanted}; those of '
            f'{self.text.name!r} have width {encoder.fingerprint.dim}',
            ConfigError,
        )
        for text in texts:
            if truncation := encoder.truncation(text):
                notice = f'prompt {quote_prompt(text)}: {truncation}'
                warnings.warn(notice, Notice, stacklevel=4)  # the line that called `preview` or `enhance`
        embeddings_BLD = encoder.encode(texts)
        del encoder
        gc.collect()  # Flax modules form reference cycles that would keep the weights alive
        for text, embedding_LD in zip(texts, embeddings_BLD, strict=True):
            if not np.any(embedding_LD):
                raise ValueError(
                    f'prompt {quote_prompt(text)}: contains no text that {self.text.name!r} can encode; use words'
                )
        return embeddings_BLD


def split_into_batches(count: int, batch_size: int | None) -> list[list[int]]:
    """Splits range(count) into batches of equal size; None is one batch.

    The last batch is padded with the last index, so that every batch has the same shape.
    """
    size = min(batch_size or count, count)
    return [[min(i, count - 1) for i in range(first, first + size)] for first in range(0, count, size)]


def take_examples(array: np.ndarray | None, indices: list[int]) -> np.ndarray | None:
    """Returns the examples at these indices of the batch axis; None for None."""
    return None if array is None else array[indices]
