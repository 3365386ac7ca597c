"""Abstract modules: Flax modules whose parameters are ShapeDtypeStructs (`nnx.eval_shape`)."""

from collections.abc import Callable
from typing import TypeVar

from flax import nnx

Module = TypeVar('Module', bound=nnx.Module)


class _ConstantRngStream(nnx.RngStream):
    """Returns the same key at each call: advancing the stream would be most of the work of tracing shapes."""

    def __call__(self):
        return self.key[...]


def abstract_module(create: Callable[..., Module]) -> Module:
    """Returns the module of `create(rngs=...)` with shape, dtype and axes of every parameter, without allocating it."""

    def make() -> Module:
        rngs = nnx.Rngs(0)
        rngs.default = _ConstantRngStream(0, tag='default')
        return create(rngs=rngs)

    return nnx.eval_shape(make)
