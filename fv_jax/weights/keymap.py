"""From official tensors to our parameters, by a table, with strict accounting.

A `Row` says which official tensors, of which shapes, make which of our parameters, and how. `load` checks the whole
file against the whole table before it reads a value: a key is used, or known to be unused, or part of one error that
lists every unknown, missing and misshapen key. A `{i}` in a row's keys counts the layers of a stacked parameter.
"""

import collections
import dataclasses
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fv_jax.weights.torch_file import StoredTensor

Tensors = Mapping[str, StoredTensor]
Shape = tuple[int, ...]
Module = TypeVar('Module', bound=nnx.Module)

# What official files carry beside the networks, and no computation reads (FACTS 3).
UNUSED = ('*.position_embeddings.weight', '*.freqs_sin', '*.freqs_cos', 'loss*', 'first_stage_model.*', 'conditioner.*')


def vector(x: np.ndarray) -> np.ndarray:
    """A bias or a norm's weight: as it is."""
    return x


def linear(x: np.ndarray) -> np.ndarray:
    """(out, in, ...) -> (in ..., out): a linear, or a convolution whose kernel sees one patch or one point."""
    return x.reshape(x.shape[0], -1).T


def conv(x: np.ndarray) -> np.ndarray:
    """(out, in, *kernel) -> (*kernel, in, out)."""
    return x.transpose(*range(2, x.ndim), 1, 0)


@dataclasses.dataclass(frozen=True)
class Row:
    """One of our parameters, made from one or more official tensors.

    ours: dotted path in our module.
    official: (key, shape) of each tensor it is made of.
    make: these tensors, float32 -> the parameter (or one layer of it), up to a reshape.
    """

    ours: str
    official: tuple[tuple[str, Shape], ...]
    make: Callable[..., np.ndarray]


def affine(official: str, ours: str, shape: Shape, make: Callable = linear) -> list[Row]:
    """Rows for `official`.weight, of `shape`, and .bias as `ours`.kernel and .bias."""
    return [
        Row(f'{ours}.kernel', ((f'{official}.weight', shape),), make),
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
      default: for a file that has none of them; `load` will list them as missing.
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


def load(name: str, tensors: Tensors, rows: Sequence[Row], layers: int, create: Callable[[], Module]) -> Module:
    """The module that `create` makes, with every parameter read from `tensors` as float32.

    Args:
      name: of the file, for messages.
      tensors: the file's keys and tensors.
      rows: the table.
      layers: how many layers `{i}` counts.
      create: makes the module; only its shapes are evaluated.

    Raises:
      ValueError: lists every unknown, missing and misshapen key.
    """
    check(name, tensors, rows, layers)
    graphdef, abstract = nnx.split(nnx.eval_shape(create))
    by_path = {row.ours: row for row in rows}
    flat = nnx.to_flat_state(abstract)
    paths = {'.'.join(map(str, path)) for path, _ in flat}
    assert paths == by_path.keys(), f'table and module differ in {sorted(paths ^ by_path.keys())}'
    filled = [
        (path, leaf.replace(_assemble(by_path['.'.join(map(str, path))], leaf.shape, tensors, layers)))
        for path, leaf in flat
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def check(name: str, tensors: Tensors, rows: Sequence[Row], layers: int) -> None:
    """Raises the ValueError that lists every unknown, missing and misshapen key; reads no values."""
    expected = {
        key.replace('{i}', str(i)): shape
        for row in rows
        for i in range(layers if _is_stacked(row) else 1)
        for key, shape in row.official
    }
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
        raise ValueError(f'{name}: not the tensors of the network that its shapes imply\n' + '\n'.join(problems))


def _matching(tensors: Tensors, pattern: str) -> Iterable[tuple[str, StoredTensor]]:
    if '*' not in pattern:
        return [(pattern, tensors[pattern])] if pattern in tensors else []
    return [(key, tensor) for key, tensor in tensors.items() if fnmatch.fnmatchcase(key, pattern)]


def _is_stacked(row: Row) -> bool:
    return any('{i}' in key for key, _ in row.official)


def _assemble(row: Row, shape: Shape, tensors: Tensors, layers: int) -> jax.Array:
    """The parameter of `row`, layer by layer, so that no more than one parameter is in memory twice."""

    def one(i: int) -> np.ndarray:
        return row.make(*(tensors[key.replace('{i}', str(i))].numpy().astype(np.float32) for key, _ in row.official))

    if not _is_stacked(row):
        return jnp.asarray(one(0).reshape(shape))
    stacked = np.empty(shape, np.float32)
    for i in range(layers):
        stacked[i] = one(i).reshape(shape[1:])
    return jnp.asarray(stacked)
