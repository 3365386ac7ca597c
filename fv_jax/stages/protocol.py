"""The protocol of a stage: all that training, sampling, planning, evaluation and sharding know of one.

A batch is a dict of global arrays whose first dimension is the batch, B examples. A stage has no state of its own: it
is a frozen dataclass, hashable, so that compiled programs can be keyed by it. `latent_stage` has what the stages that
work on latents share.
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
    """The size of a batch of clips.

    Attributes:
      examples: the number of clips.
      video: (frames, height, width) in pixels.
      latents: (frames, height, width) of the latents that are trained on or sampled, which may be a crop.
    """

    examples: int
    video: tuple[int, int, int]
    latents: tuple[int, int, int]


class TargetCost(NamedTuple):
    """The cost of a kind of targets that a network computes, such as a teacher.

    Attributes:
      name: of the kind.
      share: of the steps that draw it.
      forwards: forward passes of the network for a batch.
    """

    name: str
    share: float
    forwards: float


@dataclasses.dataclass(frozen=True)
class Program:
    """The description of a program of training, for planning; nothing is traced.

    Attributes:
      name: as a plan shows it.
      network: whose parameters it takes: those of the stage's network, in the training step, which is the gradient of
        `Stage.loss`; or of the encoder of the frozen VAE, which runs chunk by chunk (`frozen_vae`).
      inputs: the shape of each input, float32, the batch first.
      runs: in a step.
      targets: the kinds of targets that the training step computes, in addition to its own pass.
    """

    name: str
    network: Literal['stage', 'encoder']
    inputs: dict[str, Shape]
    runs: int = 1
    targets: tuple[TargetCost, ...] = ()

    @property
    def target_forwards(self) -> float:
        """The expected number of forward passes for targets, in a step."""
        return sum(cost.share * cost.forwards for cost in self.targets)


@dataclasses.dataclass(frozen=True)
class ExportedFunction:
    """A function of a network that `export` writes, to be run without fv_jax.

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
class DiffusersPipeline:
    """How diffusers samples a stage.

    Attributes:
      name: of the class, in the pipeline file that `export` adds to a folder.
      call: the arguments of a call, as code, that do what the configuration of the stage says.
      scheduler: its configuration, `_class_name` included.
      settings: arguments of the constructor of the pipeline, besides its components.
      noise_augmentation_timestep: what the network embeds; None for none.
      predicts_opposite: whether the scheduler takes the opposite of the network's output.
      notes: what differs from the configuration of the stage, a line each.
    """

    name: str
    call: str
    scheduler: Mapping[str, Any]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    noise_augmentation_timestep: float | None = None
    predicts_opposite: bool = False
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class OfficialStage:
    """A stage in the official release.

    Attributes:
      file: of its weights.
      options: the stage's own configuration.
      network: fields of the network's configuration that distinguish it from those of other stages.
      clip: the official size: `frames`, and `height` and `width` in pixels if it has one.
    """

    file: str
    options: Any
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    clip: Mapping[str, int] = dataclasses.field(default_factory=dict)


class Stage(Protocol):
    """A trained system: its network, its loss and its samples.

    Attributes:
      config: the stage's own configuration.
      network: the configuration of the trained network.
      latents_of: name of a video of a batch -> name of the latents that replace it; empty for a stage that works on
        videos and needs no frozen VAE.
      strategy: the default sharding strategy (`parallel/rules`).
      takes_average: whether the loss takes the network with averaged parameters too.
      is_distilled: whether it is trained on the output of a teacher, which `init_from` names.
      official: the stage in the official release; None if it is not part of it.
      pipeline_tag: the task of the stage, as the Hugging Face Hub names it; '' for none.
    """

    config: Any
    network: NetworkConfig
    latents_of: ClassVar[Mapping[str, str]]
    strategy: ClassVar[str]
    takes_average: ClassVar[bool]
    is_distilled: ClassVar[bool]
    official: ClassVar[OfficialStage | None]
    pipeline_tag: ClassVar[str]

    def init(self, rngs: nnx.Rngs) -> nnx.Module:
        """Initializes the network, with its frozen parts, if any."""
        ...

    def trainable(self) -> Filter:
        """Returns the filter of the trainable variables; all others are frozen."""
        ...

    def adapt_initial_params(self, model: nnx.Module) -> None:
        """Adapts parameters of another run or of a file (`init_from`), in place."""
        ...

    @property
    def text_shape(self) -> tuple[int, int] | None:
        """(tokens, width) of the text embeddings that the network takes; None if it takes none."""
        ...

    def inputs(self, size: BatchSize) -> dict[str, Shape]:
        """Returns the shapes of an encoded batch, by name. `text_BLD` may be absent from a batch."""
        ...

    def encode(self, batch: Batch) -> Batch:
        """Runs the frozen encoders, which are executables of their own, before the step.

        A batch that holds latents already is returned unchanged.
        """
        ...

    def sample_noise_and_time(self, batch: Batch, keys_B: jax.Array, progress: jax.Array | None = None) -> NoisedBatch:
        """Draws all that is random in a step, or depends on the whole batch.

        Args:
          batch: what `encode` returned.
          keys_B: one random key for each example of the global batch (`noise.per_example_keys`).
          progress: the part of the run that is done, in [0, 1); None in an evaluation.
        """
        ...

    def loss(
        self, model: nnx.Module, noised: NoisedBatch, *, context: ParallelContext, average: nnx.Module | None = None
    ) -> tuple[jax.Array, Metrics]:
        """Computes the loss of a noised batch, or of a part of its examples: a mean over examples.

        Args:
          model: what `init` returned.
          noised: what `sample_noise_and_time` returned.
          context: the parallel context: sharding constraints, attention and padding.
          average: the network with averaged parameters, without gradient; None unless `takes_average`.

        Returns:
          (loss, metrics): float32 scalars.
        """
        ...

    def sample(
        self, model: nnx.Module, batch: Batch, keys_B: jax.Array, *, context: ParallelContext
    ) -> dict[str, jax.Array]:
        """Samples latents or videos from an encoded batch, for evaluation.

        Args:
          model: what `init` returned.
          batch: what `encode` returned.
          keys_B: one random key for each example.
          context: the parallel context.

        Returns:
          Arrays (B, ...) by name; names of unscaled latents start with `z_`.
        """
        ...

    def programs(self, size: BatchSize) -> Sequence[Program]:
        """Describes the programs of a training step on clips of a size; none for a stage that cannot be planned."""
        ...

    def exported_functions(self, size: BatchSize, *, context: ParallelContext) -> Sequence[ExportedFunction]:
        """Returns the functions that `export` can write; none for a stage without any."""
        ...

    def diffusers_pipeline(self) -> DiffusersPipeline | None:
        """Returns how diffusers samples the stage; None for a stage that is a VAE.

        Raises:
          ConfigError: diffusers has nothing that samples it.
        """
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
    """Computes the loss of a network for evaluation, in which it is its own average.

    Args:
      stage: the stage.
      model: with the parameters to evaluate.
      noised: the noised batch.
      context: the parallel context.
    """
    return stage.loss(model, noised, context=context, average=model if stage.takes_average else None)
