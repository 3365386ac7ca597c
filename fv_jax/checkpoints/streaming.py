"""Streaming reader and writer: a checkpoint's parameters array by array, for networks that fit into memory only once.

What `save` writes is a checkpoint like any other, with 'params' and 'meta', which `Checkpoints` reads too.
`CheckpointReader` reads the checkpoints of both.
"""

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import orbax.checkpoint as ocp

from fv_jax.checkpoints.errors import CheckpointError, convert_errors
from fv_jax.checkpoints.manager import META, Checkpoints, make_meta
from fv_jax.checkpoints.steps import Steps, check_supported
from fv_jax.core.paths import StoragePath, absolute

PARAMS, STATE = 'params', 'state'
GROUPS = ('trainable', 'frozen')
CHUNK_BYTES = 2**27  # of an array on disk: the unit of compression
BATCH_BYTES = 2**28  # of arrays that are written together, since each write waits for the disk
SMALL_BYTES = 2**25  # arrays up to this size are read together


class Array(Protocol):
    """An array whose values are computed or read only when `numpy` is called."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def numpy(self) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class _LazyLeaf:
    """What Orbax must know of an array before its values exist."""

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


class _SequentialHandler(ocp.type_handlers.NumpyHandler):
    """Computes a few arrays or one large one, writes and frees them, and only then computes the next."""

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)

    async def serialize(
        self, values: Sequence[_LazyLeaf], infos: Sequence[Any], args: Sequence[ocp.SaveArgs] | None = None
    ) -> Sequence[Any]:
        args = args or [ocp.SaveArgs()] * len(values)
        rest = list(zip(values, infos, args, strict=True))
        while rest:
            ends = itertools.accumulate(value.nbytes for value, _, _ in rest)
            count = max(sum(end <= BATCH_BYTES for end in ends), 1)
            batch, rest = rest[:count], rest[count:]
            await self._write(*(list(column) for column in zip(*batch, strict=True)))
        return []

    async def _write(self, values: list[_LazyLeaf], infos: list[Any], args: list[ocp.SaveArgs]) -> None:
        # Nothing that outlives this call may refer to the arrays, so that they can be freed.
        for future in await super().serialize([value.array.numpy() for value in values], infos, args):
            await asyncio.to_thread(future.result)


def save(
    run: StoragePath,
    step: int,
    params: dict[str, Any],
    config: dict[str, Any],
    digests: Mapping[str, str] | None = None,
) -> None:
    """Writes a checkpoint with at most one large array in memory at a time.

    Args:
      run: the run's folder.
      step: number of updates done.
      params: {'trainable', 'frozen'}, each nested dicts of `Array`.
      config: of the run.
      digests: network ('vae', 'text') -> its fingerprint.

    Raises:
      CheckpointError: it cannot be written.
    """
    registry = ocp.type_handlers.create_type_handler_registry((_LazyLeaf, _SequentialHandler()))
    handlers = {
        PARAMS: ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        META: ocp.JsonCheckpointHandler(),
    }
    check_supported(run)
    steps = Steps(absolute(run))
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False, step_name_format=steps)
    leaves = jax.tree.map(_LazyLeaf, params)
    chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), params)
    meta = make_meta(step, config, digests)
    items = {PARAMS: ocp.args.PyTreeSave(leaves, save_args=chunks), META: ocp.args.JsonSave(meta)}
    with (
        _errors(f'{steps.folder}: step {step} could not be saved'),
        ocp.CheckpointManager(steps.folder, options=options, item_handlers=handlers) as manager,
    ):
        manager.save(step, args=ocp.args.Composite(**items), force=True)


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array in a checkpoint, read when `numpy` is called and not kept."""

    shape: tuple[int, ...]
    dtype: np.dtype
    numpy: Callable[[], np.ndarray]


class CheckpointReader:
    """Reads a checkpoint's configuration (`meta`) and its parameters lazily.

    Each read opens the checkpoint again; small arrays are therefore read together with the first of them, and kept.
    """

    def __init__(self, run: StoragePath, step: int | None = None, item: str = PARAMS):
        """Opens a checkpoint.

        Args:
          run: the run's folder.
          step: None is the newest.
          item: 'params', the moving average where the run keeps one, or 'state', the trainable parameters as they were
            after the last step.

        Raises:
          CheckpointError: it does not exist, or cannot be read.
        """
        self.meta = Checkpoints(run, read_only=True).meta(step)
        self._folder = Steps(absolute(run)).folder / str(self.meta['step']) / item
        if not self._folder.is_dir():
            raise CheckpointError(f'{self._folder}: does not exist; the checkpoint has no item {item!r}')
        self._handler = ocp.PyTreeCheckpointHandler()
        with _errors(f'{self._folder}: cannot be read'):
            tree = self._handler.metadata(self._folder).tree
            leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, 'shape'))
        # 'state' also has the step and the optimizer state.
        found = [(path, leaf) for path, leaf in leaves if str(path[0].key) in GROUPS]
        self._found = {tuple(str(key.key) for key in path): leaf for path, leaf in found}

    def arrays(self) -> dict[str, LazyArray]:
        """Returns dotted path in the network -> array, for trainable and frozen parameters alike."""
        return {
            '.'.join(path[1:]): LazyArray(tuple(leaf.shape), np.dtype(leaf.dtype), lambda path=path: self._read(path))
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


def _errors(what: str) -> contextlib.AbstractContextManager[None]:
    return convert_errors(lambda reason: CheckpointError(f'{what} ({reason})'))
