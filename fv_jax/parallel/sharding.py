"""Shardings of a network's parameters and activations on a mesh, and the parallel context made of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from fv_jax.core import axes
from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.hardware import find_chip_or_default
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.kernels import context_parallel
from fv_jax.kernels.attention import attention, find_backend
from fv_jax.kernels.context_cost import AttentionShape, ContextParallelPlan, cheapest_plan
from fv_jax.parallel.mesh import CONTEXT
from fv_jax.parallel.rules import Names, Partitioner

Tree = Any


@dataclasses.dataclass(frozen=True)
class ContextParallelConfig:
    """How attention is computed over the context axis.

    Attributes:
      ulysses_degree, ring: as in `ContextParallelPlan`; None leaves it to the cost model.
      training: whether the backward pass counts in the cost model.
    """

    ulysses_degree: int | None = None
    ring: bool | None = None
    training: bool = True


@dataclasses.dataclass(frozen=True)
class _OnMesh:
    """Base of the functions of a parallel context.

    They are equal where their fields are: as static arguments of jitted functions they compile once.
    """

    partitioner: Partitioner
    choice: ContextParallelConfig


class _Constrain(_OnMesh):
    def __call__(self, x: jax.Array, names: Names) -> jax.Array:
        if self.partitioner.mesh.size == 1:
            return x
        sharding = self.partitioner.sharding(names, x.shape, f'an activation {names}')
        return jax.lax.with_sharding_constraint(x, sharding)


class _Attend(_OnMesh):
    def __call__(self, q_BMNK: jax.Array, k_BMNK: jax.Array, v_BMNK: jax.Array, num_tokens: int) -> jax.Array:
        mesh = self.partitioner.mesh
        if mesh.size == 1:
            return attention(q_BMNK, k_BMNK, v_BMNK, num_tokens, backend=find_backend(mesh.devices.flat[0]))
        names = (axes.ACT_BATCH, axes.ACT_TOKENS, axes.ACT_HEADS, None)
        return context_parallel.attention(
            q_BMNK,
            k_BMNK,
            v_BMNK,
            num_tokens,
            sharding=self.partitioner.sharding(names, q_BMNK.shape, 'attention'),
            context=CONTEXT,
            plan=context_parallel_plan(self.partitioner, self.choice, q_BMNK.shape, q_BMNK.dtype.itemsize),
        )


class _Pad(_OnMesh):
    def __call__(self, num_tokens: int) -> int:
        return padded_length(self.partitioner, num_tokens)


def make_parallel_context(
    partitioner: Partitioner, choice: ContextParallelConfig = ContextParallelConfig()
) -> ParallelContext:
    """Returns the parallel context that a network is called with. On one device it constrains nothing.

    Contexts of equal arguments are equal.
    """
    return ParallelContext(*(function(partitioner, choice) for function in (_Attend, _Constrain, _Pad)))


def context_parallel_plan(
    partitioner: Partitioner, choice: ContextParallelConfig, shape_BMNK: tuple[int, ...], itemsize: int
) -> ContextParallelPlan:
    """Returns the plan for attention over global arrays of a shape. Raises ConfigError if `choice` is impossible."""
    batch, tokens, heads, head_dim = shape_BMNK
    examples, heads = batch // partitioner.num_shards(axes.ACT_BATCH), heads // partitioner.num_shards(axes.ACT_HEADS)
    shape = AttentionShape(examples, tokens, heads, head_dim, itemsize, choice.training)
    device, ring = partitioner.mesh.devices.flat[0], choice.ring
    if find_backend(device).partial is None:
        require(
            not ring,
            f'config.parallel.ring_attention=True: no kernel for a {device.platform} supports it; set it to False',
            ConfigError,
        )
        ring = False
    return cheapest_plan(
        shape,
        partitioner.num_shards(axes.ACT_TOKENS),
        find_chip_or_default(device.device_kind),
        ulysses_degree=choice.ulysses_degree,
        ring=ring,
    )


def padded_length(partitioner: Partitioner, num_tokens: int) -> int:
    """Returns the padded length of a sequence, with which every chip of the context axis has equally many whole tiles.

    Raises ConfigError when a chip would have nothing but padding.
    """
    shards = partitioner.num_shards(axes.ACT_TOKENS)
    share, tile = _share(partitioner, num_tokens, shards), _tile(partitioner, num_tokens, shards)
    if (used := -(-num_tokens // share)) < shards:
        raise ConfigError(
            f'config.parallel.context={shards}: {num_tokens} tokens in tiles of {tile} fill only {used} chip(s); '
            f'use at most {used}'
        )
    return share * shards


def fold_context(partitioner: Partitioner, num_tokens: int) -> Partitioner:
    """Returns the partitioner whose context axis has as many chips as the tokens fill, the rest of them as copies."""
    shards = partitioner.num_shards(axes.ACT_TOKENS)
    filled = [
        parts
        for parts in range(1, shards + 1)
        if shards % parts == 0 and -(-num_tokens // _share(partitioner, num_tokens, parts)) == parts
    ]
    return partitioner.fold_context(max(filled))


def _tile(partitioner: Partitioner, num_tokens: int, shards: int) -> int:
    return find_backend(partitioner.mesh.devices.flat[0]).tile(-(-num_tokens // shards))


def _share(partitioner: Partitioner, num_tokens: int, shards: int) -> int:
    """Returns the tokens of a chip, in whole tiles, where they are split over so many."""
    tile = _tile(partitioner, num_tokens, shards)
    return -(-num_tokens // (shards * tile)) * tile


def parameter_shardings(partitioner: Partitioner, variables: nnx.State) -> dict[str, Any]:
    """Returns the sharding of every parameter, as nested dicts like `nnx.to_pure_dict(variables)`.

    Raises ConfigError naming a parameter that does not divide over the mesh.
    """

    def sharding(path: tuple, variable: nnx.Variable) -> jax.sharding.NamedSharding:
        name = '/'.join(map(str, path))
        return partitioner.sharding(variable.get_metadata('axes'), variable.get_value().shape, name)

    return nnx.to_pure_dict(nnx.map_state(sharding, variables))


def shardings_like_params(tree: Tree, parameters: Tree, shardings: Tree, otherwise: jax.sharding.Sharding) -> Tree:
    """Returns the shardings of a tree such as an optimizer state.

    A leaf whose path ends in that of a parameter of the same shape gets the sharding of the parameter, any other
    `otherwise`.
    """
    known = {
        _names(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(parameters), jax.tree.leaves(shardings), strict=True
        )
    }

    def sharding_of(path: tuple, leaf: Any) -> jax.sharding.Sharding:
        names = _names(path)
        for start in range(len(names)):
            shape, sharding = known.get(names[start:], (None, None))
            if shape == leaf.shape:
                return sharding
        return otherwise

    return jax.tree_util.tree_map_with_path(sharding_of, tree)


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key)))) for key in path)


def eval_shape_sharded(create: Callable[..., Tree], *arguments: Any, shardings: Tree) -> Tree:
    """Returns ShapeDtypeStructs with shardings of what `create` would return, without computing it."""
    shapes = jax.eval_shape(create, *arguments)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
