"""Programs that can be lowered from sharded ShapeDtypeStructs, and phases: programs that share their resident memory.

    phase             programs                                               resident in memory
    training          the training step; encoding, for clips that are video  the train state
    text              the T5 encoder, on one device                          T5, and the networks of the stage before
    preview           a step of the sampler; decoding                        the network, the VAE
    enhancement       resizing, encoding, a step of the sampler, decoding    both networks, the VAE

`training_phase` and `sampling_phases` make them.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from fv_jax.core import axes
from fv_jax.models.dit import DiTConfig
from fv_jax.parallel.rules import Partitioner
from fv_jax.planning import estimate
from fv_jax.planning.flops import Flops, SequenceLength

Tree = Any

NO_FLOPS = Flops()


class PlannedTarget(NamedTuple):
    """A kind of targets of a training step: the share of the steps that draw it, and its FLOPs for a batch."""

    name: str
    share: float
    flops: Flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedProgram:
    """A program that can be lowered and compiled ahead of time.

    Attributes:
      name: for display; what precedes a comma is that of the group of programs that it belongs to.
      lower: traces and lowers it.
      runs: in a training step, or for a batch of samples.
      flops: the model FLOPs of one run, over all devices.
      recompute: the FLOPs executed in addition (`flops.dit_recompute`).
      devices: that share the work; the others repeat a part of it.
      heads: of attention on a device, times its examples, in training.
      resident_argument_bytes: per device, of the arguments that are resident in its phase.
      estimated_bytes: per device, of its temporaries, by formula.
      targets: the FLOPs of each kind of targets of a training step; `flops` contains what is expected of them.
    """

    name: str
    lower: Callable[[], jax.stages.Lowered]
    runs: int = 1
    flops: Flops
    recompute: Flops = NO_FLOPS
    devices: int
    heads: int | None = None
    resident_argument_bytes: float = 0.0
    estimated_bytes: float
    targets: tuple[PlannedTarget, ...] = ()


@dataclasses.dataclass(frozen=True)
class Phase:
    """Programs that run with the same arrays resident in memory.

    Attributes:
      resident: bytes per device by cause.
      batch_size: the global number of examples.
      devices: that it occupies.
      head_dim: the size of an attention head.
      size: of an example, for display.
      mesh: what it runs on, for display.
    """

    name: str
    resident: dict[str, float]
    programs: tuple[PlannedProgram, ...]
    batch_size: int
    devices: int
    head_dim: int
    size: str
    mesh: str


def bytes_per_chip(tree: Tree) -> float:
    """Counts the bytes per device of a tree of arrays, or of ShapeDtypeStructs with shardings."""

    def count_bytes(x: Any) -> float:
        sharding = getattr(x, 'sharding', None)
        shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
        dtype = jnp.uint32 if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype
        return math.prod(shape) * jnp.dtype(dtype).itemsize

    return float(sum(count_bytes(leaf) for leaf in jax.tree.leaves(tree)))


def count_shards(sharding: Sharding, shape: tuple[int, ...]) -> int:
    """Counts the different parts that a sharding divides an array into."""
    return math.prod(shape) // math.prod(sharding.shard_shape(shape))


def estimate_layer_bytes(
    dit: DiTConfig, sequence: SequenceLength, batch_size: float, partitioner: Partitioner, *, training: bool
) -> float:
    """Estimates the bytes per device of activations in a pass through the DiT."""
    tokens = sequence.total * batch_size / partitioner.num_shards(axes.ACT_BATCH)
    local_tokens = tokens / partitioner.num_shards(axes.ACT_TOKENS)
    temporaries = estimate.dit_layer(dit, local_tokens, tokens)
    return temporaries + estimate.saved_activations(dit, local_tokens) if training else temporaries
