"""Bidirectional mapping between official tensors and our parameters; every tensor is used exactly once.

A `TensorMapping` states which official tensors, of which shapes, make one of our parameters, and the transform in both
directions. `check_keys` compares a file's keys and shapes with a `KeyTable` before any value is read: a key is mapped,
or known to be unused, or listed in one error with every unknown, missing and mismatched key. `{i}` in a key counts the
layers of a stacked parameter.

Both directions are lazy: `from_official` and `to_official` return shapes at once and compute one parameter at a time.
"""

import collections
import dataclasses
import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict

from fv_jax.parallel.rules import Partitioner
from fv_jax.parallel.sharding import parameter_shardings
from fv_jax.weights import placement
from fv_jax.weights.formats.memory_map import StoredTensor
from fv_jax.weights.formats.torch_zip import TensorSpec
from fv_jax.weights.parameters import Parameter, Parameters, Shape, stacked_parameter

Tensors = Mapping[str, StoredTensor]
Path = tuple[str | int, ...]
Module = TypeVar('Module', bound=nnx.Module)

# Tensors in official files that no computation reads (model guide 3).
POSITION_TABLE = '*.position_embeddings.weight'
UNUSED = (POSITION_TABLE, '*.freqs_sin', '*.freqs_cos', 'loss*', 'first_stage_model.*', 'conditioner.*')


class KeyMismatchError(ValueError):
    """Raised for a file whose tensors do not match a network; the message has a line for each key."""


class TensorTransform(NamedTuple):
    """How official tensors become a parameter (or one layer of it), and back.

    Attributes:
      to_ours: computes the parameter from the tensors, up to a reshape.
      to_official: computes the tensors from the parameter and the tensors' shapes.
    """

    to_ours: Callable[..., np.ndarray]
    to_official: Callable[[np.ndarray, tuple[Shape, ...]], tuple[np.ndarray, ...]]


# A bias or a norm's weight, unchanged.
vector = TensorTransform(lambda x: x, lambda p, shapes: (p.reshape(shapes[0]),))

# (out, in, ...) and (in ..., out): a linear, or a convolution whose kernel sees one patch or one point.
linear = TensorTransform(
    lambda x: x.reshape(x.shape[0], -1).T,
    lambda p, shapes: (p.reshape(-1, shapes[0][0]).T.reshape(shapes[0]),),
)

# (out, in, *kernel) and (*kernel, in, out).
conv = TensorTransform(
    lambda x: x.transpose(*range(2, x.ndim), 1, 0),
    lambda p, shapes: (p.transpose(p.ndim - 1, p.ndim - 2, *range(p.ndim - 2)),),
)

# The low-rank matrices of each part: A (rank, in) and (in, parts, rank); B (out / parts, rank) and (parts, rank, out).
lora_a = TensorTransform(
    lambda *x: np.stack([a.T for a in x], axis=1),
    lambda p, shapes: tuple(p[:, j].T for j in range(len(shapes))),
)
lora_b = TensorTransform(
    lambda *x: np.stack([b.T for b in x]),
    lambda p, shapes: tuple(p.reshape(*p.shape[:2], -1)[j].T for j in range(len(shapes))),
)


@dataclasses.dataclass(frozen=True)
class TensorMapping:
    """One of our parameters and the official tensors that it is made of.

    Attributes:
      path: dotted path of the parameter in our module.
      official: (key, shape) of each tensor.
      transform: between the tensors and the parameter.
    """

    path: str
    official: tuple[tuple[str, Shape], ...]
    transform: TensorTransform

    @property
    def to_ours(self) -> Callable[..., np.ndarray]:
        return self.transform.to_ours

    @property
    def stacked(self) -> bool:
        return any('{i}' in key for key, _ in self.official)


@dataclasses.dataclass(frozen=True)
class KeyTable:
    """The mappings of all parameters of a network.

    Attributes:
      rows: the mappings.
      layers: number of layers that `{i}` counts.
      names: keys that a file names differently: the key in the file, or None for a tensor that the file lacks and that
        is zero.
    """

    rows: list[TensorMapping]
    layers: int = 0
    names: Mapping[str, str | None] = dataclasses.field(default_factory=dict)

    def tensors(self, row: TensorMapping, layer: int) -> list[tuple[str | None, Shape]]:
        """Returns (key in the file, shape) of the tensors of one layer of a row."""
        keys = [(key.replace('{i}', str(layer)), shape) for key, shape in row.official]
        return [(self.names.get(key, key), shape) for key, shape in keys]

    def layers_of(self, row: TensorMapping) -> range:
        return range(self.layers if row.stacked else 1)

    def keys(self) -> dict[str, Shape]:
        """Returns the keys and shapes of all tensors that a file must hold."""
        each = [self.tensors(row, i) for row in self.rows for i in self.layers_of(row)]
        return {key: shape for tensors in each for key, shape in tensors if key is not None}


def affine(official: str, path: str, shape: Shape, transform: TensorTransform = linear) -> list[TensorMapping]:
    """Maps `official`.weight, of `shape`, and .bias to `path`.kernel and .bias."""
    return [
        TensorMapping(f'{path}.kernel', ((f'{official}.weight', shape),), transform),
        TensorMapping(f'{path}.bias', ((f'{official}.bias', shape[:1]),), vector),
    ]


def norm(official: str, path: str, size: int) -> list[TensorMapping]:
    """Maps `official`.weight and .bias, of `size`, to `path`.scale and .bias."""
    return [
        TensorMapping(f'{path}.scale', ((f'{official}.weight', (size,)),), vector),
        TensorMapping(f'{path}.bias', ((f'{official}.bias', (size,)),), vector),
    ]


def common_size(tensors: Tensors, candidates: Iterable[tuple[str, int]], default: int) -> int:
    """Finds the size that most tensors agree on, so that `check_keys` can name those that differ.

    Args:
      tensors: of the file.
      candidates: (key pattern, dimension) pairs that all have the size; a `*` stands for anything.
      default: for a file that has none of them; `check_keys` lists them as missing.
    """
    counts = collections.Counter(
        tensor.shape[dim]
        for pattern, dim in candidates
        for key, tensor in _find_matching(tensors, pattern)
        if len(tensor.shape) > dim
    )
    return counts.most_common(1)[0][0] if counts else default


def common_count(tensors: Tensors, patterns: Iterable[str], default: int) -> int:
    """Finds the number of layers that most patterns agree on; each pattern has one `{i}`."""
    counts: collections.Counter[int] = collections.Counter()
    for pattern in patterns:
        regex = re.compile(re.escape(pattern).replace(r'\{i\}', r'(\d+)'))
        found = [int(match[1]) for key in tensors if (match := regex.fullmatch(key))]
        if found:
            counts[max(found) + 1] += 1
    return counts.most_common(1)[0][0] if counts else default


def _find_matching(tensors: Tensors, pattern: str) -> Iterable[tuple[str, StoredTensor]]:
    if '*' not in pattern:
        return [(pattern, tensors[pattern])] if pattern in tensors else []
    return [(key, tensor) for key, tensor in tensors.items() if fnmatch.fnmatchcase(key, pattern)]


def check_keys(name: str, tensors: Tensors, table: KeyTable) -> None:
    """Raises a KeyMismatchError that lists every unknown, missing and mismatched key; reads no values."""
    expected = table.keys()
    unknown = [k for k in tensors if k not in expected and not any(fnmatch.fnmatchcase(k, p) for p in UNUSED)]
    missing = [k for k in expected if k not in tensors]
    mismatched = [
        f'{key}: {tensors[key].shape} {tensors[key].dtype}, expected {shape} floating point'
        for key, shape in expected.items()
        if key in tensors and (tensors[key].shape != shape or not jnp.issubdtype(tensors[key].dtype, jnp.floating))
    ]
    problems = [
        f'{len(keys)} {kind}:\n  ' + '\n  '.join(sorted(keys))
        for kind, keys in (('unknown', unknown), ('missing', missing), ('mismatched', mismatched))
        if keys
    ]
    if problems:
        raise KeyMismatchError(f'{name}: tensor names or shapes do not match the network\n' + '\n'.join(problems))


# --- official to ours ---


def from_official(tensors: Tensors, table: KeyTable, specs: Mapping[str, Any]) -> Parameters:
    """Maps checked official tensors to our parameters, lazily.

    Args:
      tensors: of a file that `check_keys` accepted.
      table: the mappings.
      specs: objects with a shape and a dtype by each parameter's dotted path, such as `named_parameters` returns.

    Returns:
      Parameters by dotted path.
    """

    def parameter(row: TensorMapping) -> Parameter:
        spec = specs[row.path]
        dtype = np.dtype(spec.dtype)
        if not row.stacked:
            return Parameter(spec.shape, dtype, lambda: _read_layer(row, 0, spec.shape, dtype, tensors, table))

        def layer(i: int) -> np.ndarray:
            return _read_layer(row, i, spec.shape[1:], dtype, tensors, table)

        return stacked_parameter(layer, spec.shape, dtype)

    return {row.path: parameter(row) for row in table.rows}


def _read_layer(
    row: TensorMapping, i: int, shape: Shape, dtype: np.dtype, tensors: Tensors, table: KeyTable
) -> np.ndarray:
    """Reads layer i of the parameter of `row`, or a parameter that is not stacked."""
    sources, out = table.tensors(row, i), np.empty(shape, dtype)
    values = [np.zeros(shape, dtype) if key is None else tensors[key].numpy() for key, shape in sources]
    out[...] = row.to_ours(*values).reshape(shape)
    for key, _ in sources:
        if key is not None:
            tensors[key].drop_pages()
    return out


def named_parameters(state: nnx.State) -> dict[str, tuple[Path, Any]]:
    """Returns (path, variable) of every parameter by its dotted path."""
    return {'.'.join(map(str, path)): (path, leaf) for path, leaf in nnx.to_flat_state(state)}


def build_module(shapes: Module, values: Parameters, partitioner: Partitioner | None = None) -> Module:
    """Builds the module from an abstract one (`core.abstract_module`) and the values of all its parameters.

    Each parameter is read and placed before the next one is read, large stacked ones layer by layer.

    Args:
      shapes: the abstract module.
      values: of all its parameters.
      partitioner: of the mesh to place them on, each device its part; None is the default device. All processes of the
        mesh call this.

    Raises:
      ConfigError: a parameter does not divide over the mesh; it is named, and nothing has been read.
    """
    graphdef, state = nnx.split(shapes)
    leaves = named_parameters(state)
    assert leaves.keys() == values.keys(), f'table and module differ in {sorted(leaves.keys() ^ values.keys())}'
    shardings = flatten_dict(parameter_shardings(partitioner, state)) if partitioner else {}
    filled = [
        (path, leaf.replace(placement.place_parameter(values[name], shardings.get(path))))
        for name, (path, leaf) in leaves.items()
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def to_nested(state: nnx.State, values: Parameters) -> dict[str, Any]:
    """Nests the parameters of a part of a network as dicts of dicts."""
    tree: dict[str, Any] = {}
    for name, (path, _) in named_parameters(state).items():
        *groups, last = path
        group = tree
        for key in groups:
            group = group.setdefault(key, {})
        group[last] = values[name]
    return tree


def cast_parameters(values: Mapping[str, Any], dtype: str | np.dtype | None = None) -> Parameters:
    """Casts parameters (or stored arrays) lazily to `dtype`; None keeps each one's.

    Reading a parameter raises ValueError if one of its values is out of the range of the dtype.
    """

    def cast(name: str, value: Any, wanted: np.dtype) -> np.ndarray:
        with np.errstate(over='ignore'):
            out = np.asarray(before := value.numpy(), wanted)
        if wanted == np.float16 and np.isinf(out).any():
            raise ValueError(f'{name}: {np.abs(before).max():g} exceeds the range of float16, {np.finfo(wanted).max:g}')
        return out

    def parameter(name: str, value: Any) -> Parameter:
        wanted = np.dtype(jnp.dtype(dtype)) if dtype else np.dtype(value.dtype)
        return Parameter(value.shape, wanted, lambda: cast(name, value, wanted))

    return {name: parameter(name, value) for name, value in values.items()}


# --- ours to official ---


def module_parameters(state: nnx.State) -> Parameters:
    """Returns a module's parameters, read when they are used."""

    def parameter(leaf: nnx.Variable) -> Parameter:
        return Parameter(leaf.shape, np.dtype(leaf.dtype), lambda: np.asarray(leaf[...]))

    return {name: parameter(leaf) for name, (_, leaf) in named_parameters(state).items()}


def to_official(
    values: Parameters, table: KeyTable, dtype: np.dtype | None = None
) -> tuple[dict[str, TensorSpec], Iterator[tuple[str, np.ndarray]]]:
    """Maps our parameters to official tensors.

    Args:
      values: all parameters of the table.
      table: the mappings.
      dtype: of the tensors; None keeps each parameter's own.

    Returns:
      Shapes and dtypes of the tensors by key, and an iterator of (key, tensor) that computes one at a time.

    Raises:
      ValueError: the parameters are not those of the table.
    """
    ours = {row.path for row in table.rows}
    if ours != values.keys():
        raise ValueError(f'parameters do not match the network: {", ".join(sorted(ours ^ values.keys())[:5])}')

    def dtype_of(row: TensorMapping) -> np.dtype:
        return values[row.path].dtype if dtype is None else np.dtype(dtype)

    specs = {
        key: TensorSpec(shape, dtype_of(row))
        for row in table.rows
        for i in table.layers_of(row)
        for key, shape in table.tensors(row, i)
        if key is not None
    }

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for row in table.rows:
            parameter = values[row.path].numpy()
            for i in table.layers_of(row):
                names = table.tensors(row, i)
                taken = row.transform.to_official(
                    parameter[i] if row.stacked else parameter, tuple(shape for _, shape in names)
                )
                for (key, _), tensor in zip(names, taken, strict=True):
                    if key is not None:
                        yield key, np.ascontiguousarray(tensor, dtype_of(row))
            del parameter

    return specs, tensors()
