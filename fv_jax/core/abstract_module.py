"""Networks without numbers."""

from collections.abc import Callable
from typing import TypeVar

from flax import nnx

Module = TypeVar('Module', bound=nnx.Module)


class _SameKey(nnx.RngStream):
    """Does not count: where only shapes are wanted, counting the keys is most of the work."""

    def __call__(self):
        return self.key[...]


def abstract(create: Callable[..., Module]) -> Module:
    """What `create(rngs=...)` makes, with the shape, dtype and axes of every parameter and no memory for it."""

    def make() -> Module:
        rngs = nnx.Rngs(0)
        rngs.default = _SameKey(0, tag='default')
        return create(rngs=rngs)

    return nnx.eval_shape(make)
