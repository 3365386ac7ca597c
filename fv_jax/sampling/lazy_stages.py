"""What a pipeline is put together from: stages, VAEs and text encoders that are read when they are first used.

Opening a pipeline only looks at what is there. A network then stays in memory; a text encoder is let go as soon as it
has encoded, before the network of the stage runs.
"""

import dataclasses
import functools
import gc
import warnings
from collections.abc import Callable, Sequence
from typing import Generic

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.console import Notice
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.models.dit import DiT
from fv_jax.models.vae import VAEConfig
from fv_jax.sampling.metadata import Weights
from fv_jax.sampling.programs import Loaded, S
from fv_jax.sampling.prompts import shown
from fv_jax.stages.frozen_vae import JittedVAE
from fv_jax.text.encoder import TextEncoder
from fv_jax.weights.fingerprints import sampled_fingerprint


@dataclasses.dataclass(eq=False)
class VAEPart:
    """config: its sizes. read: gives the network. read_digest: names it."""

    config: VAEConfig
    read: Callable[[], JittedVAE]
    read_digest: Callable[[], str]

    @functools.cached_property
    def jitted(self) -> JittedVAE:
        return self.read()

    @functools.cached_property
    def digest(self) -> str:
        return self.read_digest()


@dataclasses.dataclass(eq=False)
class LazyTextEncoder:
    """open: gives the encoder, which is not kept. name: as messages call it."""

    name: str
    open: Callable[[], TextEncoder]


@dataclasses.dataclass(eq=False)
class Part(Generic[S]):
    """A stage.

    name: as messages call it. read: gives its network. text: None where it was trained without.
    """

    name: str
    stage: S
    read: Callable[[], DiT]
    vae: VAEPart
    text: LazyTextEncoder | None

    @property
    def latent_spec(self) -> LatentSpec:
        """The latents that the stage works on."""
        return self.vae.config.latent_spec.with_patch(self.stage.dit.patch_size)

    @functools.cached_property
    def loaded(self) -> Loaded[S]:
        return Loaded.of(self.stage, self.read())

    @functools.cached_property
    def digest(self) -> str:
        return sampled_fingerprint(self.loaded.state)

    def weights(self, text_digest: str) -> Weights:
        return Weights(self.digest, self.vae.digest, text_digest)

    def embedded(self, texts: Sequence[str]) -> tuple[np.ndarray | None, str]:
        """The texts' embeddings (B, L, D) and the encoder's digest; (None, '') without an encoder. Warns of each text
        that is cut off.

        Raises ConfigError for an encoder that does not fit the network, ValueError for a text that it reads nothing in.
        """
        if self.text is None:
            return None, ''
        encoder = self.text.open()
        require(
            encoder.fingerprint.dim == self.stage.dit.text_dim,
            f'{self.name}: was trained on text embeddings {self.stage.dit.text_dim} wide, and those of '
            f'{self.text.name!r} are {encoder.fingerprint.dim}',
            ConfigError,
        )
        for text in texts:
            if truncation := encoder.truncation(text):
                notice = f'prompt {shown(text)}: {truncation}'
                warnings.warn(notice, Notice, stacklevel=4)  # the line that called `preview` or `enhance`
        embeddings_BLD, digest = encoder.encode(texts), encoder.fingerprint.digest
        del encoder
        gc.collect()  # Flax leaves cycles behind that hold the weights
        for text, embedding_LD in zip(texts, embeddings_BLD, strict=True):
            if not np.any(embedding_LD):
                raise ValueError(f'prompt {shown(text)}: holds nothing that {self.text.name!r} can read; use words')
        return embeddings_BLD, digest


def batches(rows: int, size: int | None) -> list[list[int]]:
    """The indices of rows in batches of one size: the last one is filled up with the last row, so that no batch is of
    another shape. None: all at once.
    """
    size = min(size or rows, rows)
    return [[min(i, rows - 1) for i in range(first, first + size)] for first in range(0, rows, size)]


def rows_of(array: np.ndarray | None, rows: list[int]) -> jax.Array | None:
    """These rows of an array, on the device."""
    return None if array is None else jnp.asarray(array[rows])
