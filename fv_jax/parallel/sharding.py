"""A network's parameters and activations on a mesh."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from fv_jax.core import axes
from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.hardware import chip_of
from fv_jax.core.parallel_context import Rules
from fv_jax.kernels import context_parallel
from fv_jax.kernels.attention import BACKENDS, attention
from fv_jax.kernels.context_cost import Method, Work, choose
from fv_jax.parallel.mesh import CONTEXT
from fv_jax.parallel.rules import Names, Placement

Tree = Any


@dataclasses.dataclass(frozen=True)
class ContextChoice:
    """How attention goes over the context axis: `heads` and `ring` as in `Method`, None for whatever is cheapest; and
    whether its backward pass counts.
    """

    heads: int | None = None
    ring: bool | None = None
    training: bool = True


def rules_on(placement: Placement, choice: ContextChoice = ContextChoice()) -> Rules:
    """What a network is called with. On one chip nothing is placed."""
    platform = placement.mesh.devices.flat[0].platform
    if placement.mesh.size == 1:
        return Rules(functools.partial(attention, platform=platform), padded=functools.partial(padded, placement))

    def constrain(x: jax.Array, names: Names) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, placement.sharding(names, x.shape, f'an activation {names}'))

    def attend(q_BMNK: jax.Array, k_BMNK: jax.Array, v_BMNK: jax.Array, num_tokens: int) -> jax.Array:
        names = (axes.ACT_BATCH, axes.ACT_TOKENS, axes.ACT_HEADS, None)
        sharding = placement.sharding(names, q_BMNK.shape, 'attention')
        return context_parallel.attention(
            q_BMNK,
            k_BMNK,
            v_BMNK,
            num_tokens,
            sharding=sharding,
            context=CONTEXT,
            method=context_method(placement, choice, q_BMNK.shape, q_BMNK.dtype.itemsize),
        )

    return Rules(attend, constrain, functools.partial(padded, placement))


def context_method(placement: Placement, choice: ContextChoice, shape_BMNK: tuple[int, ...], itemsize: int) -> Method:
    """How attention over global arrays of this shape goes. Raises ConfigError when the choice cannot be."""
    batch, tokens, heads, head_dim = shape_BMNK
    rows, heads = batch // placement.shards(axes.ACT_BATCH), heads // placement.shards(axes.ACT_HEADS)
    work = Work(rows, tokens, heads, head_dim, itemsize, choice.training)
    device, ring = placement.mesh.devices.flat[0], choice.ring
    if BACKENDS[device.platform].part is None:
        require(
            not ring,
            f'config.parallel.context_ring=True: no kernel for a {device.platform} can do it; set it to False',
            ConfigError,
        )
        ring = False
    return choose(work, placement.shards(axes.ACT_TOKENS), chip_of(device.device_kind), heads=choice.heads, ring=ring)


def padded(placement: Placement, num_tokens: int) -> int:
    """How long a sequence is made, so that every chip of the context axis has the same number of whole tiles.

    Raises ConfigError when a chip would have nothing but padding.
    """
    shards = placement.shards(axes.ACT_TOKENS)
    tile = BACKENDS[placement.mesh.devices.flat[0].platform].tile(-(-num_tokens // shards))
    share = -(-num_tokens // (shards * tile)) * tile
    if (used := -(-num_tokens // share)) < shards:
        raise ConfigError(
            f'config.parallel.context={shards}: {num_tokens} tokens in tiles of {tile} are enough for {used} chip(s); '
            f'use at most {used}'
        )
    return share * shards


def parameter_shardings(placement: Placement, variables: nnx.State) -> dict[str, Any]:
    """The sharding of every parameter, as nested dicts like `nnx.to_pure_dict(variables)`. Raises ConfigError naming
    the parameter that cannot be split.
    """

    def sharding(path: tuple, variable: nnx.Variable) -> jax.sharding.NamedSharding:
        name = '/'.join(map(str, path))
        return placement.sharding(variable.get_metadata('axes'), variable.get_value().shape, name)

    return nnx.to_pure_dict(nnx.map_state(sharding, variables))


def like_parameters(tree: Tree, parameters: Tree, shardings: Tree, otherwise: jax.sharding.Sharding) -> Tree:
    """Shardings for a tree that holds things shaped like parameters under the parameters' own paths, as an optimizer's
    state does: theirs. The rest gets `otherwise`.
    """
    known = {
        _names(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(parameters), jax.tree.leaves(shardings), strict=True
        )
    }

    def of(path: tuple, leaf: Any) -> jax.sharding.Sharding:
        names = _names(path)
        for start in range(len(names)):
            shape, sharding = known.get(names[start:], (None, None))
            if shape == leaf.shape:
                return sharding
        return otherwise

    return jax.tree_util.tree_map_with_path(of, tree)


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key)))) for key in path)


def abstract(create: Callable[..., Tree], *arguments: Any, shardings: Tree) -> Tree:
    """What `create` would return, as shapes that know where they are to live. Nothing is computed."""
    shapes = jax.eval_shape(create, *arguments)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
