"""The mesh that sampling runs on: which devices hold which weights, examples, tokens and columns of frames.

    network   weights whole on every device where they fit, as a sampler gathers them at each of its evaluations;
              otherwise split like those of training
    rows      examples, twice as many where both branches of guidance are one batch: over `data` and `fsdp` as far as
              they divide. Two branches on two halves of the devices exchange less than one batch over all of them
    tokens    over `context` and what the rows leave of `data` and `fsdp`, as far as they fill them
    VAE       whole on every device; frames by examples, and by columns as far as those of latents divide

What is left over computes the same.

All of it is on the same devices in the same order, whatever the shape of a batch.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from fv_jax.core.abstract_module import abstract_module
from fv_jax.core.hardware import find_chip
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.parallel import arrays
from fv_jax.parallel.mesh import AUTO, ParallelConfig, count_slices, make_mesh
from fv_jax.parallel.rules import FRAMES, Partitioner, check_strategy
from fv_jax.parallel.sharding import ContextParallelConfig, fold_context, make_parallel_context
from fv_jax.stages.latent_stage import LatentStage

Tree = Any

DEFAULT_AXES = ParallelConfig(data=1, fsdp=AUTO)  # those that flags change
WHOLE, SPLIT = 'replicated_weights', 'fsdp'
WHOLE_SHARE = 0.4  # of a device's memory that the weights of one network may take whole: stage 1 on a v6e, not on a v5e


@dataclasses.dataclass(frozen=True)
class SamplingMesh:
    """The devices of a pipeline, and how its networks are placed on them.

    Attributes:
      mesh: of the devices.
      strategy: the sharding strategy of both networks (`parallel.rules.STRATEGIES`); None decides by their size.
      context_parallel: how attention uses the context axis.
    """

    mesh: Mesh
    strategy: str | None
    context_parallel: ContextParallelConfig

    @classmethod
    def create(
        cls, parallel: ParallelConfig | None = None, devices: Sequence[jax.Device] | None = None
    ) -> 'SamplingMesh':
        """Makes the mesh.

        Args:
          parallel: the axes; None for all devices along `fsdp`, where every batch divides them between its rows and
            its tokens, and TPU slices along `data`.
          devices: None for all devices of all processes.

        Raises:
          ConfigError: axes that do not fit the devices, or an unknown strategy.
        """
        devices = jax.devices() if devices is None else devices
        parallel = parallel or ParallelConfig(data=count_slices(devices), fsdp=AUTO)
        if parallel.strategy is not None:
            check_strategy(parallel.strategy)
        choice = ContextParallelConfig(parallel.ulysses_degree, parallel.ring_attention, training=False)
        return cls(make_mesh(parallel, devices), parallel.strategy, choice)

    def network_partitioner(self, stage: LatentStage) -> Partitioner:
        """Returns the partitioner of the weights of a stage's network."""
        return Partitioner(self.mesh, self.strategy or self._choose_strategy(stage))

    @property
    def frames_partitioner(self) -> Partitioner:
        """The partitioner of VAEs and their frames."""
        return Partitioner(self.mesh, FRAMES)

    def parallel_context(self, partitioner: Partitioner, rows: int, num_tokens: int) -> ParallelContext:
        """Returns the parallel context of a network; the arguments are those of `activation_partitioner`."""
        return make_parallel_context(self.activation_partitioner(partitioner, rows, num_tokens), self.context_parallel)

    def activation_partitioner(self, partitioner: Partitioner, rows: int, num_tokens: int) -> Partitioner:
        """Returns the partitioner of a network's activations.

        Args:
          partitioner: of its weights.
          rows: of its batch.
          num_tokens: of a row, without padding.
        """
        return fold_context(partitioner.fold_batch(rows), num_tokens)

    def replicate(self, tree: Tree) -> Tree:
        """Puts arrays of the host, which every process has in full, on every device."""
        sharding = self.frames_partitioner.replicated
        return arrays.put_sharded(tree, jax.tree.map(lambda _: sharding, tree))

    def to_host(self, x: jax.Array) -> np.ndarray:
        """Copies an array to the host of every process, all of which call it."""
        return arrays.to_host(x, self.frames_partitioner)

    def _choose_strategy(self, stage: LatentStage) -> str:
        chip = find_chip(self.mesh.devices.flat[0].device_kind)
        if chip is None:
            return WHOLE
        leaves = jax.tree.leaves(nnx.state(abstract_module(stage.init)))
        size = sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
        return SPLIT if size > WHOLE_SHARE * chip.memory else WHOLE
