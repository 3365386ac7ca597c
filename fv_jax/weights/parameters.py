"""Lazy parameters: read when they are used, stacked ones also layer by layer."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

Shape = tuple[int, ...]
Layer = Callable[[int], np.ndarray]  # computes one layer of a stacked parameter


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A lazy parameter: each call of `numpy` computes its values.

    Attributes:
      layer: computes one layer of a stacked parameter; None where its layers cannot be read one by one.
    """

    shape: Shape
    dtype: np.dtype
    numpy: Callable[[], np.ndarray]
    layer: Layer | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


Parameters = dict[str, Parameter]  # by dotted path in our module


def stacked_parameter(layer: Layer, shape: Shape, dtype: np.dtype) -> Parameter:
    """Makes a parameter of its layers. shape: of the parameter; shape[0] is the number of layers."""
    return Parameter(shape, dtype, lambda: _stack(layer, shape, dtype), layer)


def map_layers(compute: Callable[..., np.ndarray], *sources: Parameter) -> Parameter:
    """Makes a stacked parameter, of the shape and dtype of the first source, from stacked ones.

    Args:
      compute: computes a layer of it from that layer of every source.
      sources: the parameters. Layers are read one by one if those of all sources can be.
    """
    shape, dtype = sources[0].shape, sources[0].dtype

    def combine(layers: Sequence[Layer]) -> Layer:
        return lambda i: compute(*(layer(i) for layer in layers))

    def whole() -> np.ndarray:
        return _stack(combine([source.layer or source.numpy().__getitem__ for source in sources]), shape, dtype)

    layers = [source.layer for source in sources if source.layer is not None]
    return Parameter(shape, dtype, whole, combine(layers) if len(layers) == len(sources) else None)


def _stack(layer: Layer, shape: Shape, dtype: np.dtype) -> np.ndarray:
    out = np.empty(shape, dtype)
    for i in range(shape[0]):
        out[i] = layer(i)
    return out
