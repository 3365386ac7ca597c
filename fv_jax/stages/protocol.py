"""The protocol of a stage: all that training, sampling, planning, evaluation and sharding know of one.

A batch is a dict of global arrays whose first dimension is the batch, B examples. A stage keeps no state of its own: it
is a frozen dataclass, hashable, so that compiled programs can be keyed by it. `latent_stage` has what the stages that
work on a VAE's latents share.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import jax
from flax import nnx
from flax.nnx.filterlib import Filter

from fv_jax.core.parallel_context import ParallelContext
from fv_jax.models.dit import DiTConfig
from fv_jax.models.vae import VAEConfig

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
NoisedBatch = Any  # a tree of arrays, the examples of the batch first
Encoder = Callable[[jax.Array], jax.Array]  # video_BFHWC in [-1, 1] -> the VAE's latents, not scaled
NetworkConfig = DiTConfig | VAEConfig
Shape = tuple[int, ...]


class BatchSize(NamedTuple):
    """A batch of clips.

    Attributes:
      examples: how many clips.
      video: (frames, height, width) in pixels.
      latents: (frames, height, width) of the latents that are trained on or sampled, which may be a crop.
    """

    examples: int
    video: tuple[int, int, int]
    latents: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of a run, described: nothing is traced.

    Attributes:
      name: as a plan shows it.
      phase: 'training', for a step, or 'sampling', for a batch of samples.
      network: whose parameters it takes: the stage's network's, or those of a half of the frozen VAE.
      inputs: the shape of each input, float32, the batch first.
      runs: how often it runs in a step, or for a batch of samples.
      function: (model, inputs, noise, context) -> latents, of a sampler. None for a training step, which is the
        gradient of `Stage.loss`, and for the VAE, which runs chunk by chunk (`frozen_vae`).
      evaluations: how often a run evaluates the network, for each example.
      batch_copies: examples in one evaluation for each of the batch: 2 where guidance is batched.
    """

    name: str
    phase: Literal['training', 'sampling']
    network: Literal['stage', 'encoder', 'decoder']
    inputs: dict[str, Shape]
    runs: int = 1
    function: Callable[..., jax.Array] | None = None
    evaluations: int = 1
    batch_copies: int = 1


@dataclasses.dataclass(frozen=True)
class ExportedFunction:
    """A forward function that is worth having where fv_jax is not.

    Attributes:
      name: of its file.
      call: (model, *inputs) -> array.
      inputs: the shape of each input, float32, by name.
    """

    name: str
    call: Callable[..., jax.Array]
    inputs: dict[str, Shape]

    def __str__(self) -> str:
        return f'{self.name}({", ".join(f"{name} float32{list(shape)}" for name, shape in self.inputs.items())})'


@dataclasses.dataclass(frozen=True)
class OfficialStage:
    """A stage as the official release has it.

    Attributes:
      file: with its weights.
      options: the stage's own configuration.
      network: fields of the network's configuration that tell it from those of other stages.
      clip: what it was made for: `frames`, and `height` and `width` in pixels where it has a size.
    """

    file: str
    options: Any
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    clip: Mapping[str, int] = dataclasses.field(default_factory=dict)


class Stage(Protocol):
    """One of the trained systems: its network, its loss and its samples.

    Attributes:
      config: the stage's own configuration.
      network: the configuration of the network that is trained.
      latents_of: the videos of a batch, by name, and the names of their latents, which take their places; empty for a
        stage that works on videos themselves and needs no frozen VAE.
      strategy: the sharding strategy (`parallel/rules`) where a run names none.
      takes_average: whether the loss is given the network with averaged parameters as well.
      official: the stage as the official release has it; None for one that is not part of it.
    """

    config: Any
    network: NetworkConfig
    latents_of: ClassVar[Mapping[str, str]]
    strategy: ClassVar[str]
    takes_average: ClassVar[bool]
    official: ClassVar[OfficialStage | None]

    def init(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network(s) being trained, with the frozen parts of them, if any, newly initialised."""
        ...

    def trainable(self) -> Filter:
        """The filter of the variables that are trained; everything else stays as `init` or a checkpoint made it."""
        ...

    def start_from(self, model: nnx.Module) -> None:
        """Adapts parameters that come from another run or a file (`init_from`), in place."""
        ...

    @property
    def text_shape(self) -> tuple[int, int] | None:
        """(tokens, width) of the text embeddings that the network takes; None where it takes none."""
        ...

    def inputs(self, size: BatchSize) -> dict[str, Shape]:
        """The shapes of an encoded batch, by name. `text_BLD` may be left out of a batch."""
        ...

    def encode(self, batch: Batch) -> Batch:
        """Runs the frozen encoders, which are executables of their own, before the step. A batch that already holds
        latents comes back as it is.
        """
        ...

    def sample_noise_and_time(self, batch: Batch, keys_B: jax.Array) -> NoisedBatch:
        """Everything of a step that is random, or a matter of the whole batch, for every example.

        Args:
          batch: what `encode` returned.
          keys_B: one random key for each example of the global batch (`noise.per_example_keys`).
        """
        ...

    def loss(
        self, model: nnx.Module, noised: NoisedBatch, *, context: ParallelContext, average: nnx.Module | None = None
    ) -> tuple[jax.Array, Metrics]:
        """The scalar float32 loss of a noised batch, or of some of its examples, and scalar metrics. The loss is a mean
        over examples.

        Args:
          model: what `init` returned.
          noised: what `sample_noise_and_time` returned.
          context: the parallel context: sharding constraints, attention and padding.
          average: the network with averaged parameters, of which no gradient is taken; only where `takes_average`.
        """
        ...

    def sample(
        self, model: nnx.Module, batch: Batch, keys_B: jax.Array, *, context: ParallelContext
    ) -> dict[str, jax.Array]:
        """Returns named latents or videos of an encoded batch, for validation to look at and to measure.

        keys_B: one random key for each example.
        """
        ...

    def programs(self, size: BatchSize) -> Sequence[Program]:
        """The programs that training and sampling clips of a size consist of; empty for a stage that is not planned."""
        ...

    def exported_functions(self, size: BatchSize, *, context: ParallelContext) -> Sequence[ExportedFunction]:
        """The forward functions that `export` can write; empty for a stage without any."""
        ...


def evaluation_noise(stage: Stage, batch: Batch, keys_B: jax.Array) -> NoisedBatch:
    """Returns the noised batch in which every example has the noise and time that it has in a batch of its own.

    Training draws times that are stratified over the batch. For evaluation they must not depend on the batch's size.

    Args:
      stage: the stage.
      batch: what `encode` returned.
      keys_B: a key for each example (`noise.heldout_keys`).
    """

    def noise_one(example: Batch, key: jax.Array) -> NoisedBatch:
        noised = stage.sample_noise_and_time(jax.tree.map(lambda x: x[None], example), key[None])
        return jax.tree.map(lambda x: x[0], noised)

    return jax.vmap(noise_one)(batch, keys_B)


def evaluation_loss(
    stage: Stage, model: nnx.Module, noised: NoisedBatch, *, context: ParallelContext
) -> tuple[jax.Array, Metrics]:
    """The loss of a network that is itself the average, or has none. model: with the parameters to be evaluated."""
    return stage.loss(model, noised, context=context, average=model if stage.takes_average else None)
