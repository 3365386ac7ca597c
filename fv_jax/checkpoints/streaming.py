"""The parameters of a checkpoint written and read array by array, for networks that do not fit into memory twice.

What `save` writes is a checkpoint like any other, with 'params' and 'meta': `Checkpoints` reads it. What `Stored` reads
may have been written by either.
"""

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import orbax.checkpoint as ocp

from fv_jax.checkpoints.manager import FOLDER, META, CheckpointError, Checkpoints, meta_of, reason

PARAMS, STATE = 'params', 'state'
GROUPS = ('trainable', 'frozen')
CHUNK_BYTES = 2**27  # of an array on disk: what is compressed at once
BATCH_BYTES = 2**28  # of arrays that are written together: each write waits for the disk
SMALL_BYTES = 2**25  # of an array that is read together with others


class Array(Protocol):
    """An array that is made when it is asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def numpy(self) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """What Orbax must know of an array before it is made."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.array.dtype)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


class _InTurn(ocp.type_handlers.NumpyHandler):
    """Makes a few arrays, or a large one, writes them, lets them go, and only then makes the next."""

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)

    async def serialize(
        self, values: Sequence[_Leaf], infos: Sequence[Any], args: Sequence[ocp.SaveArgs] | None = None
    ) -> Sequence[Any]:
        args = args or [ocp.SaveArgs()] * len(values)
        rest = list(zip(values, infos, args, strict=True))
        while rest:
            ends = itertools.accumulate(value.nbytes for value, _, _ in rest)
            count = max(sum(end <= BATCH_BYTES for end in ends), 1)
            batch, rest = rest[:count], rest[count:]
            await self._write(*(list(column) for column in zip(*batch, strict=True)))
        return []

    async def _write(self, values: list[_Leaf], infos: list[Any], args: list[ocp.SaveArgs]) -> None:
        # Nothing that outlives this call may hold the arrays.
        for future in await super().serialize([value.array.numpy() for value in values], infos, args):
            await asyncio.to_thread(future.result)


def save(
    run: Path,
    step: int,
    params: dict[str, Any],
    config: dict[str, Any],
    digests: Mapping[str, str] | None = None,
) -> None:
    """Writes a checkpoint of nested dicts of `Array`s, 'trainable' and 'frozen', the configuration and the digests.

    No more than one large array exists at a time. Raises CheckpointError.
    """
    registry = ocp.type_handlers.create_type_handler_registry((_Leaf, _InTurn()))
    handlers = {
        PARAMS: ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        META: ocp.JsonCheckpointHandler(),
    }
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    leaves = jax.tree.map(_Leaf, params)
    chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), params)
    meta = meta_of(step, config, digests)
    items = {PARAMS: ocp.args.PyTreeSave(leaves, save_args=chunks), META: ocp.args.JsonSave(meta)}
    folder = run.absolute() / FOLDER
    with (
        _errors(f'{folder}: step {step} could not be saved'),
        ocp.CheckpointManager(folder, options=options, item_handlers=handlers) as manager,
    ):
        manager.save(step, args=ocp.args.Composite(**items), force=True)


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array in a checkpoint."""

    shape: tuple[int, ...]
    dtype: np.dtype
    numpy: Callable[[], np.ndarray]


class Stored:
    """A checkpoint's configuration and parameters; an array is read when it is asked for, and not kept.

    Small arrays are read together, when the first of them is asked for, and kept: each read opens the checkpoint anew.
    """

    def __init__(self, run: Path, step: int | None = None, item: str = PARAMS):
        """step: which; None takes the newest. item: 'params', averaged where the run keeps an average, or 'state', of
        which this has what learns as it was after the last step. Raises CheckpointError: none there, or damaged.
        """
        self.meta = Checkpoints(run, read_only=True).meta(step)
        self._folder = run.absolute() / FOLDER / str(self.meta['step']) / item
        if not self._folder.is_dir():
            raise CheckpointError(f'{self._folder}: is not there; the checkpoint has no item {item!r}')
        self._handler = ocp.PyTreeCheckpointHandler()
        with _errors(f'{self._folder}: cannot be read'):
            tree = self._handler.metadata(self._folder).tree
            leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, 'shape'))
        # Beside them 'state' holds what training needs.
        found = [(path, leaf) for path, leaf in leaves if str(path[0].key) in GROUPS]
        self._found = {tuple(str(key.key) for key in path): leaf for path, leaf in found}

    def arrays(self) -> dict[str, StoredArray]:
        """Every parameter by its dotted path in the network, trainable and frozen alike."""
        return {
            '.'.join(path[1:]): StoredArray(tuple(leaf.shape), np.dtype(leaf.dtype), lambda path=path: self._read(path))
            for path, leaf in self._found.items()
        }

    @functools.cached_property
    def _small(self) -> dict[tuple[str, ...], np.ndarray]:
        return self._restore([path for path, leaf in self._found.items() if self._is_small(leaf)])

    def _is_small(self, leaf: Any) -> bool:
        return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize <= SMALL_BYTES

    def _read(self, path: tuple[str, ...]) -> np.ndarray:
        return self._small[path] if self._is_small(self._found[path]) else self._restore([path])[path]

    def _restore(self, paths: list[tuple[str, ...]]) -> dict[tuple[str, ...], np.ndarray]:
        item: dict[str, Any] = {}
        for path in paths:
            group = item
            for key in path[:-1]:
                group = group.setdefault(key, {})
            group[path[-1]] = jax.ShapeDtypeStruct(self._found[path].shape, self._found[path].dtype)
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        with _errors(f'{self._folder}: {".".join(paths[0])} cannot be read'):
            restore = ocp.args.PyTreeRestore(item=item, restore_args=args, partial_restore=True)
            restored = self._handler.restore(self._folder, args=restore)
        leaves = jax.tree_util.tree_leaves_with_path(restored)
        return {tuple(str(key.key) for key in path): leaf for path, leaf in leaves}


@contextlib.contextmanager
def _errors(what: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f'{what} ({reason(error)})') from error
