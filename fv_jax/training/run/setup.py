"""A run's configuration, and what it stands for on a mesh: shared by those who run it and those who plan it."""

import dataclasses
import functools

import jax
import optax
from jax.sharding import Mesh

from fv_jax.core import axes
from fv_jax.core.config import ConfigError, check_range
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.data.buckets import Bucket
from fv_jax.data.pipeline import DataConfig
from fv_jax.models.dit import DiTConfig
from fv_jax.models.patch import patch_grid
from fv_jax.models.sequence import SequenceLayout
from fv_jax.parallel import arrays, sharding
from fv_jax.parallel.mesh import ParallelConfig
from fv_jax.parallel.rules import Placement, check_strategy
from fv_jax.stages import registry
from fv_jax.stages.protocol import Encoder, Stage
from fv_jax.training import optimizer, state
from fv_jax.training.config import LoopConfig


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A run.

    init_from: what its parameters start from: the folder of another run (its newest checkpoint), or a file or folder
      that `fv_jax.weights` reads, such as stage1.pt. None: new ones.
    """

    stage: registry.StageConfig
    data: DataConfig
    optim: optimizer.OptimConfig
    loop: LoopConfig
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    seed: int = 0
    init_from: str | None = None

    def __post_init__(self):
        check_range(self, 'seed', low=0)
        if (
            registry.needs_low_res(self.stage)
            and self.data.cache is not None
            and not self.data.cache.num_degraded_variants
        ):
            raise ConfigError(
                f'data.cache.num_degraded_variants=0: stage {self.stage.kind} needs degraded variants; use 1 or more'
            )
        if registry.takes_average(self.stage) and not self.optim.ema_decay:
            raise ConfigError(f'optim.ema_decay=0: the loss of stage {self.stage.kind} needs averaged parameters')
        check_strategy(self.strategy)

    @property
    def strategy(self) -> str:
        """The sharding strategy: the one that is named, or the stage's."""
        return self.parallel.strategy or registry.default_strategy(self.stage)


@dataclasses.dataclass(frozen=True)
class Assembly:
    """A run's parts. Nothing is allocated or compiled.

    latent_spec: of the VAE whose latents the stage works on. shardings: where each part of the training state lives.
    """

    config: RunConfig
    latent_spec: LatentSpec
    placement: Placement
    context: ParallelContext
    stage: Stage
    network: state.ModelDef
    tx: optax.GradientTransformation
    shardings: state.TrainState

    @property
    def ema(self) -> bool:
        return self.config.optim.ema_decay > 0

    def init_train_state(self, key: jax.Array) -> state.TrainState:
        """Step 0. To be compiled with `out_shardings=self.shardings`, so that no chip ever has all of it."""
        return state.init_train_state(self.network, self.stage, self.tx, key, ema=self.ema)

    def train_state_from_params(self, trainable: state.Params, frozen: state.Params) -> state.TrainState:
        """Step 0 from given numbers; otherwise as `init_train_state`."""
        return state.train_state_from_params(trainable, frozen, self.tx, ema=self.ema)

    @functools.cached_property
    def abstract_state(self) -> state.TrainState:
        """Shapes that know where they are to live."""
        return sharding.eval_shape_sharded(self.init_train_state, jax.random.key(0), shardings=self.shardings)


def placement_of(config: RunConfig, mesh: Mesh, latent_spec: LatentSpec) -> Placement:
    """Where the run's arrays live.

    Raises ConfigError when its batch, its heads or its tokens do not divide over the mesh, and for clips of a size that
    the VAE cannot take.
    """
    config.data.check_sizes(latent_spec)
    placement = Placement(mesh, config.strategy)
    data = config.data
    for bucket in data.sizes:
        what = 'config.data.loader.batch_size'
        if data.token_budget is not None:
            what = f'config.data.batch_multiple={data.batch_multiple}: the batch of {bucket}'
        arrays.check_batch_size(placement, data.batch_size(bucket, latent_spec), what, config.loop.microbatches)
    if isinstance(network := config.stage.network, DiTConfig):
        placement.sharding((axes.ACT_HEADS,), (network.num_heads,), 'config.stage.network.num_heads')
        for bucket in data.sizes:
            layout(config, bucket, latent_spec, sharding.make_parallel_context(placement))
    return placement


def layout(config: RunConfig, bucket: Bucket, latent_spec: LatentSpec, context: ParallelContext) -> SequenceLayout:
    """The sequence of a training row of this size."""
    text, _ = registry.build(config.stage).text_shape
    try:
        grid = patch_grid(latents_shape(config, bucket, latent_spec), config.stage.network.patch_size)
    except ValueError as error:
        cut = config.data.cache is not None and config.data.cache.crop is not None
        where = 'config.data.cache.crop' if cut else f'config.data: {bucket}'
        raise ConfigError(f'{where}: {error}') from None
    return SequenceLayout.from_grid(text, grid, context)


def latents_shape(config: RunConfig, bucket: Bucket, latent_spec: LatentSpec) -> tuple[int, int, int, int, int]:
    """(B, F, H, W, C) of the latents of a training batch of this size."""
    data, channels = config.data, config.stage.network.latent_channels
    frames, *size = latent_spec.latent_size(*bucket.size)
    if data.cache is not None and data.cache.crop is not None:
        size = data.cache.crop
    return (data.batch_size(bucket, latent_spec), frames, *size, channels)


def assemble(
    config: RunConfig, placement: Placement, latent_spec: LatentSpec, encoder: Encoder | None = None
) -> Assembly:
    """The parts of a run. encoder: the frozen VAE's, for batches that hold video.

    Raises ConfigError naming a parameter that does not divide over the mesh.
    """
    stage = registry.build(config.stage, encoder=encoder)
    network, tx = state.ModelDef.from_stage(stage), optimizer.make_optimizer(config.optim, config.loop.num_steps)
    shardings = state.state_shardings(network, tx, placement, ema=config.optim.ema_decay > 0)
    choice = sharding.ContextParallelConfig(config.parallel.ulysses_degree, config.parallel.ring_attention)
    return Assembly(
        config, latent_spec, placement, sharding.make_parallel_context(placement, choice), stage, network, tx, shardings
    )
