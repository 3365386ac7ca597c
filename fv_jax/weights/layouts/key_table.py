"""Between official tensors and our parameters, by one table, with strict accounting.

A `Row` says which official tensors, of which shapes, make which of our parameters, and how, in both directions. `check`
compares a whole file with a whole table before a value is read: a key is used, or known to be unused, or part of one
error that lists every unknown, missing and misshapen key. A `{i}` in a row's keys counts the layers of a stacked
parameter.

Both directions are lazy: `parameters` and `official` name shapes at once and make one parameter at a time.
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

from fv_jax.weights.formats.memory_map import StoredTensor
from fv_jax.weights.formats.torch_zip import TensorSpec

Tensors = Mapping[str, StoredTensor]
Shape = tuple[int, ...]
Path = tuple[str | int, ...]
Module = TypeVar('Module', bound=nnx.Module)

# What official files carry beside the networks, and no computation reads (model guide 3).
POSITION_TABLE = '*.position_embeddings.weight'
UNUSED = (POSITION_TABLE, '*.freqs_sin', '*.freqs_cos', 'loss*', 'first_stage_model.*', 'conditioner.*')


class KeysError(ValueError):
    """A file whose tensors are not a network's. The message has a line for each key."""


class Layout(NamedTuple):
    """How official tensors make a parameter (or one layer of it), and how it is taken apart again.

    make: the tensors -> the parameter, up to a reshape.
    take: the parameter and the tensors' shapes -> the tensors.
    """

    make: Callable[..., np.ndarray]
    take: Callable[[np.ndarray, tuple[Shape, ...]], tuple[np.ndarray, ...]]


# A bias or a norm's weight: as it is.
vector = Layout(lambda x: x, lambda p, shapes: (p.reshape(shapes[0]),))

# (out, in, ...) and (in ..., out): a linear, or a convolution whose kernel sees one patch or one point.
linear = Layout(
    lambda x: x.reshape(x.shape[0], -1).T,
    lambda p, shapes: (p.reshape(-1, shapes[0][0]).T.reshape(shapes[0]),),
)

# (out, in, *kernel) and (*kernel, in, out).
conv = Layout(
    lambda x: x.transpose(*range(2, x.ndim), 1, 0),
    lambda p, shapes: (p.transpose(p.ndim - 1, p.ndim - 2, *range(p.ndim - 2)),),
)

# The low-rank matrices of each part: A (rank, in) and (in, parts, rank); B (out / parts, rank) and (parts, rank, out).
lora_a = Layout(
    lambda *x: np.stack([a.T for a in x], axis=1),
    lambda p, shapes: tuple(p[:, j].T for j in range(len(shapes))),
)
lora_b = Layout(
    lambda *x: np.stack([b.T for b in x]),
    lambda p, shapes: tuple(p.reshape(*p.shape[:2], -1)[j].T for j in range(len(shapes))),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One of our parameters, made from one or more official tensors.

    ours: dotted path in our module.
    official: (key, shape) of each tensor it is made of.
    """

    ours: str
    official: tuple[tuple[str, Shape], ...]
    layout: Layout

    @property
    def make(self) -> Callable[..., np.ndarray]:
        return self.layout.make

    @property
    def stacked(self) -> bool:
        return any('{i}' in key for key, _ in self.official)


@dataclasses.dataclass(frozen=True)
class Table:
    """A network's rows.

    layers: how many `{i}` counts.
    names: keys that this file writes otherwise: key -> the key in the file, or None where zeros stand for what the file
      has not.
    """

    rows: list[Row]
    layers: int = 0
    names: Mapping[str, str | None] = dataclasses.field(default_factory=dict)

    def tensors(self, row: Row, layer: int) -> list[tuple[str | None, Shape]]:
        """(key in the file, shape) of what makes one layer of a row."""
        keys = [(key.replace('{i}', str(layer)), shape) for key, shape in row.official]
        return [(self.names.get(key, key), shape) for key, shape in keys]

    def layers_of(self, row: Row) -> range:
        return range(self.layers if row.stacked else 1)

    def keys(self) -> dict[str, Shape]:
        """Everything that a file holds."""
        each = [self.tensors(row, i) for row in self.rows for i in self.layers_of(row)]
        return {key: shape for tensors in each for key, shape in tensors if key is not None}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter whose values are made when `numpy` is called: nothing is kept."""

    shape: Shape
    dtype: np.dtype
    numpy: Callable[[], np.ndarray]


Parameters = dict[str, Parameter]  # by dotted path in our module


def affine(official: str, ours: str, shape: Shape, layout: Layout = linear) -> list[Row]:
    """Rows for `official`.weight, of `shape`, and .bias as `ours`.kernel and .bias."""
    return [
        Row(f'{ours}.kernel', ((f'{official}.weight', shape),), layout),
        Row(f'{ours}.bias', ((f'{official}.bias', shape[:1]),), vector),
    ]


def norm(official: str, ours: str, size: int) -> list[Row]:
    """Rows for `official`.weight and .bias as `ours`.scale and .bias."""
    return [
        Row(f'{ours}.scale', ((f'{official}.weight', (size,)),), vector),
        Row(f'{ours}.bias', ((f'{official}.bias', (size,)),), vector),
    ]


def common_size(tensors: Tensors, candidates: Iterable[tuple[str, int]], default: int) -> int:
    """The size that most tensors agree on, so that a misshapen one is named, not believed.

    Args:
      tensors: the file.
      candidates: (key pattern, dimension) pairs that all have the size; a `*` stands for anything.
      default: for a file that has none of them; `check` will list them as missing.
    """
    votes = collections.Counter(
        tensor.shape[dim]
        for pattern, dim in candidates
        for key, tensor in _matching(tensors, pattern)
        if len(tensor.shape) > dim
    )
    return votes.most_common(1)[0][0] if votes else default


def common_count(tensors: Tensors, patterns: Iterable[str], default: int) -> int:
    """The number of layers that most patterns agree on; each has one `{i}`."""
    votes: collections.Counter[int] = collections.Counter()
    for pattern in patterns:
        regex = re.compile(re.escape(pattern).replace(r'\{i\}', r'(\d+)'))
        found = [int(match[1]) for key in tensors if (match := regex.fullmatch(key))]
        if found:
            votes[max(found) + 1] += 1
    return votes.most_common(1)[0][0] if votes else default


def _matching(tensors: Tensors, pattern: str) -> Iterable[tuple[str, StoredTensor]]:
    if '*' not in pattern:
        return [(pattern, tensors[pattern])] if pattern in tensors else []
    return [(key, tensor) for key, tensor in tensors.items() if fnmatch.fnmatchcase(key, pattern)]


def check(name: str, tensors: Tensors, table: Table) -> None:
    """Raises the KeysError that lists every unknown, missing and misshapen key; reads no values."""
    expected = table.keys()
    unknown = [k for k in tensors if k not in expected and not any(fnmatch.fnmatchcase(k, p) for p in UNUSED)]
    missing = [k for k in expected if k not in tensors]
    misshapen = [
        f'{key}: {tensors[key].shape} {tensors[key].dtype}, expected {shape} floating point'
        for key, shape in expected.items()
        if key in tensors and (tensors[key].shape != shape or not jnp.issubdtype(tensors[key].dtype, jnp.floating))
    ]
    problems = [
        f'{len(keys)} {kind}:\n  ' + '\n  '.join(sorted(keys))
        for kind, keys in (('unknown', unknown), ('missing', missing), ('misshapen', misshapen))
        if keys
    ]
    if problems:
        raise KeysError(f'{name}: not the tensors of the network that its shapes imply\n' + '\n'.join(problems))


# --- official to ours ---


def parameters(tensors: Tensors, table: Table, specs: Mapping[str, Any]) -> Parameters:
    """Our parameters, from checked tensors. specs: dotted path -> anything with a shape and a dtype (`leaves_of`)."""

    def parameter(row: Row) -> Parameter:
        spec = specs[row.ours]
        return Parameter(spec.shape, np.dtype(spec.dtype), lambda: _assemble(row, spec, tensors, table))

    return {row.ours: parameter(row) for row in table.rows}


def _assemble(row: Row, spec: Any, tensors: Tensors, table: Table) -> np.ndarray:
    """The parameter of `row`, layer by layer, so that no more than one layer is in memory twice."""
    out = np.empty(spec.shape, spec.dtype)
    for i in table.layers_of(row):
        sources = table.tensors(row, i)
        values = [np.zeros(shape, spec.dtype) if key is None else tensors[key].numpy() for key, shape in sources]
        into = out[i] if row.stacked else out
        into[...] = row.layout.make(*values).reshape(into.shape)
        for key, _ in sources:
            if key is not None:
                tensors[key].release()
    return out


def leaves_of(state: nnx.State) -> dict[str, tuple[Path, Any]]:
    """Dotted path -> (path, variable)."""
    return {'.'.join(map(str, path)): (path, leaf) for path, leaf in nnx.to_flat_state(state)}


def module_of(shapes: Module, values: Parameters) -> Module:
    """The module of these shapes (`core.abstract`) with these parameters."""
    graphdef, state = nnx.split(shapes)
    leaves = leaves_of(state)
    assert leaves.keys() == values.keys(), f'table and module differ in {sorted(leaves.keys() ^ values.keys())}'
    filled = [(path, leaf.replace(jnp.asarray(values[name].numpy()))) for name, (path, leaf) in leaves.items()]
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def nested(state: nnx.State, values: Parameters) -> dict[str, Any]:
    """The parameters of a part of a network, as nested dicts."""
    tree: dict[str, Any] = {}
    for name, (path, _) in leaves_of(state).items():
        *groups, last = path
        group = tree
        for key in groups:
            group = group.setdefault(key, {})
        group[last] = values[name]
    return tree


def typed_as(values: Mapping[str, Any], dtype: str | np.dtype | None = None) -> Parameters:
    """The same parameters (or stored arrays) in `dtype`; None keeps each one's.

    Asking for a number that `dtype` cannot hold raises ValueError.
    """

    def converted(name: str, value: Any, wanted: np.dtype) -> np.ndarray:
        with np.errstate(over='ignore'):
            out = np.asarray(before := value.numpy(), wanted)
        if wanted == np.float16 and np.isinf(out).any():
            raise ValueError(f'{name}: holds {np.abs(before).max():g}, and float16 ends at {np.finfo(wanted).max:g}')
        return out

    def parameter(name: str, value: Any) -> Parameter:
        wanted = np.dtype(jnp.dtype(dtype)) if dtype else np.dtype(value.dtype)
        return Parameter(value.shape, wanted, lambda: converted(name, value, wanted))

    return {name: parameter(name, value) for name, value in values.items()}


# --- ours to official ---


def parameters_of(state: nnx.State) -> Parameters:
    """A module's own parameters."""

    def parameter(leaf: nnx.Variable) -> Parameter:
        return Parameter(leaf.shape, np.dtype(leaf.dtype), lambda: np.asarray(leaf[...]))

    return {name: parameter(leaf) for name, (_, leaf) in leaves_of(state).items()}


def official(
    values: Parameters, table: Table, dtype: np.dtype | None = None
) -> tuple[dict[str, TensorSpec], Iterator[tuple[str, np.ndarray]]]:
    """The official tensors' shapes and types, and the tensors one by one. dtype: None keeps each parameter's own.

    Raises ValueError when the parameters are not those of the table.
    """
    ours = {row.ours for row in table.rows}
    if ours != values.keys():
        raise ValueError(f'not the parameters of this network: {", ".join(sorted(ours ^ values.keys())[:5])}')

    def dtype_of(row: Row) -> np.dtype:
        return values[row.ours].dtype if dtype is None else np.dtype(dtype)

    specs = {
        key: TensorSpec(shape, dtype_of(row))
        for row in table.rows
        for i in table.layers_of(row)
        for key, shape in table.tensors(row, i)
        if key is not None
    }

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for row in table.rows:
            whole = values[row.ours].numpy()
            for i in table.layers_of(row):
                names = table.tensors(row, i)
                taken = row.layout.take(whole[i] if row.stacked else whole, tuple(shape for _, shape in names))
                for (key, _), tensor in zip(names, taken, strict=True):
                    if key is not None:
                        yield key, np.ascontiguousarray(tensor, dtype_of(row))
            del whole

    return specs, tensors()
