"""Trees of arrays as a checkpoint names them: path ('trainable/head/kernel') -> leaf."""

from typing import Any

import jax
import numpy as np

Shapes = dict[str, tuple[int, ...]]


def leaves(tree: Any) -> dict[str, Any]:
    """Returns path -> leaf; a leaf is whatever has a shape."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, 'shape'))
    return {'/'.join(_key(k) for k in path): leaf for path, leaf in found}


def shapes(tree: Any) -> Shapes:
    """Returns path -> shape."""
    return {
        path: tuple(leaf.shape if hasattr(leaf, 'shape') else np.shape(leaf)) for path, leaf in leaves(tree).items()
    }


def place(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns a leaf's shape, dtype and sharding; without a sharding it is put on the first device."""
    sharding = getattr(leaf, 'sharding', None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def describe_difference(name: str, found: Shapes, expected: Shapes) -> str | None:
    """Names the first difference of the shapes of an item; None if there is none."""
    different = [path for path in sorted(found.keys() | expected.keys()) if found.get(path) != expected.get(path)]
    if not different:
        return None
    path = different[0]
    return (
        f'{path} is {found.get(path, "absent")} there and {expected.get(path, "absent")} in this configuration '
        f'({len(different)} differences in {name!r})'
    )


def _key(key: Any) -> str:
    """Returns a dict key, a sequence index or a field name as text: Orbax's metadata does not tell them apart."""
    return str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key))))
