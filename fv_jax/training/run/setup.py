"""A run's configuration, and what it stands for on a mesh: shared by those who run it and those who plan it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fv_jax.core import axes
from fv_jax.core.config import AUTO, ConfigError, check_range
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.core.paths import PathText
from fv_jax.data.buckets import Bucket
from fv_jax.data.config import DataConfig
from fv_jax.models.dit import DiTConfig
from fv_jax.models.patch import patch_grid
from fv_jax.models.sequence import SequenceLayout
from fv_jax.parallel import arrays, sharding
from fv_jax.parallel.mesh import ParallelConfig
from fv_jax.parallel.rules import Partitioner, check_strategy
from fv_jax.stages import registry
from fv_jax.stages.protocol import Encoder, Stage
from fv_jax.training import optimizer, state
from fv_jax.training.config import LoopConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The configuration of a training run.

    Attributes:
      stage, data, optim, loop, parallel: the sections of the configuration.
      seed: of the parameters and the noise; the data has its own.
      init_from: where the parameters start: the folder of another run (its newest checkpoint) or of an export,
        RUN/checkpoints/STEP, or a file or folder that `fv_jax.weights` reads, such as stage1.pt. None initializes them.
    """

    stage: registry.StageConfig
    data: DataConfig
    optim: optimizer.OptimConfig
    loop: LoopConfig
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    seed: int = 0
    init_from: PathText | None = None

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
        if registry.is_distilled(self.stage) and self.init_from is None:
            raise ConfigError(f'init_from: missing; name what stage {self.stage.kind} is distilled from')
        check_strategy(self.strategy)

    @property
    def strategy(self) -> str:
        """The configured sharding strategy, or the default of the stage."""
        return self.parallel.strategy or registry.default_strategy(self.stage)


@dataclasses.dataclass(frozen=True)
class TrainSetup:
    """What a training run consists of on a mesh; nothing is allocated or compiled yet.

    Attributes:
      latent_spec: of the VAE whose latents the stage works on.
      partitioner, context: of the mesh: what shards arrays, and the parallel context of the network.
      network: the structure of the stage's network.
      tx: the optimizer.
      shardings: of the train state.
    """

    config: TrainConfig
    latent_spec: LatentSpec
    partitioner: Partitioner
    context: ParallelContext
    stage: Stage
    network: state.ModelDef
    tx: optax.GradientTransformation
    shardings: state.TrainState

    @property
    def ema(self) -> bool:
        """Whether the run keeps a moving average of the parameters."""
        return self.config.optim.ema_decay > 0

    def init_train_state(self, key: jax.Array) -> state.TrainState:
        """Initializes the state. Compile it with `out_shardings=self.shardings`: no chip ever has the whole state."""
        return state.init_train_state(self.network, self.stage, self.tx, key, ema=self.ema)

    def train_state_from_params(self, trainable: state.Params, frozen: state.Params) -> state.TrainState:
        """Returns the state at step 0 with existing parameters; otherwise as `init_train_state`."""
        return state.train_state_from_params(trainable, frozen, self.tx, ema=self.ema)

    @functools.cached_property
    def abstract_state(self) -> state.TrainState:
        """The train state with sharded ShapeDtypeStructs as leaves."""
        return sharding.eval_shape_sharded(self.init_train_state, jax.random.key(0), shardings=self.shardings)


def make_partitioner(config: TrainConfig, mesh: Mesh, latent_spec: LatentSpec) -> Partitioner:
    """Returns the partitioner of a run: its sharding strategy on a mesh.

    Raises ConfigError when its batch, heads or tokens do not divide over the mesh, and for clip sizes that the VAE
    cannot take.
    """
    config.data.check_sizes(latent_spec)
    partitioner = Partitioner(mesh, config.strategy)
    data = config.data
    for bucket in data.sizes:
        what = 'config.data.loader.batch_size'
        if data.token_budget is not None:
            what = f'config.data.batch_multiple={data.batch_multiple}: the batch of {bucket}'
        microbatches = 1 if config.loop.microbatches == AUTO else config.loop.microbatches
        arrays.check_batch_size(partitioner, data.batch_size(bucket, latent_spec), what, microbatches)
    if isinstance(network := config.stage.network, DiTConfig):
        partitioner.sharding((axes.ACT_HEADS,), (network.num_heads,), 'config.stage.network.num_heads')
        for bucket in data.sizes:
            sequence_layout(config, bucket, latent_spec, sharding.make_parallel_context(partitioner))
    return partitioner


def sequence_layout(
    config: TrainConfig, bucket: Bucket, latent_spec: LatentSpec, context: ParallelContext
) -> SequenceLayout:
    """Returns the layout of the token sequence of a training example. Raises ConfigError."""
    text, _ = registry.build(config.stage).text_shape
    try:
        grid = patch_grid(latents_shape(config, bucket, latent_spec), config.stage.network.patch_size)
    except ValueError as error:
        cut = config.data.cache is not None and config.data.cache.crop is not None
        where = 'config.data.cache.crop' if cut else f'config.data: {bucket}'
        raise ConfigError(f'{where}: {error}') from None
    return SequenceLayout.from_grid(text, grid, context)


def latents_shape(config: TrainConfig, bucket: Bucket, latent_spec: LatentSpec) -> tuple[int, int, int, int, int]:
    """Returns (B, F, H, W, C) of the latents of a training batch."""
    data, channels = config.data, config.stage.network.latent_channels
    frames, *size = latent_spec.latent_size(*bucket.size)
    if data.cache is not None and data.cache.crop is not None:
        size = data.cache.crop
    return (data.batch_size(bucket, latent_spec), frames, *size, channels)


def make_train_setup(
    config: TrainConfig, partitioner: Partitioner, latent_spec: LatentSpec, encoder: Encoder | None = None
) -> TrainSetup:
    """Makes the parts of a training run. encoder: of the frozen VAE, for batches that contain video.

    Raises ConfigError naming a parameter that does not divide over the mesh.
    """
    stage = registry.build(config.stage, encoder=encoder)
    network, tx = state.ModelDef.from_stage(stage), optimizer.make_optimizer(config.optim, config.loop.num_steps)
    _check_trainable_dtypes(network)
    shardings = state.state_shardings(network, tx, partitioner, ema=config.optim.ema_decay > 0)
    choice = sharding.ContextParallelConfig(config.parallel.ulysses_degree, config.parallel.ring_attention)
    return TrainSetup(
        config,
        latent_spec,
        partitioner,
        sharding.make_parallel_context(partitioner, choice),
        stage,
        network,
        tx,
        shardings,
    )


def _check_trainable_dtypes(network: state.ModelDef) -> None:
    """Raises ConfigError for trainable parameters of less precision than float32, to which small updates are lost.

    At a learning rate of 2e-5 an update of AdamW is below half of the last bit of most kernels in bfloat16.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(network.trainable):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype != jnp.float32:
            raise ConfigError(
                f'config.stage.network.param_dtype={leaf.dtype}: trainable parameters must be float32, or small '
                f'updates are rounded away ({jax.tree_util.keystr(path)}); use float32, which computes in bfloat16 '
                'with config.stage.network.dtype=bfloat16, or train LoRA, whose frozen parameters may be bfloat16'
            )
