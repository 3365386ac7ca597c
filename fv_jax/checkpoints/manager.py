"""Checkpoints of a run: DIR/checkpoints/STEP, each with its arrays and its configuration.

Items of a checkpoint:
  state    what training needs beside `params`: step, trainable variables, optimizer state
  params   what sampling needs: {'trainable', 'frozen'}, averaged where the run keeps an average
  meta     JSON: step, data position (the step again: the loader needs no more), the whole configuration, `digests`
           of the networks that made what the stage learnt from: 'vae' and 'text', as far as there are any, and
           `progress`, what else a run remembers

Orbax writes under a temporary name and renames, so a save that fails leaves the ones before it alone. A saved one is
looked at again, and its files' checksums are kept beside them (`integrity.py`).
"""

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from fv_jax.checkpoints import integrity

FOLDER = 'checkpoints'
ARRAYS = ('state', 'params')
META = 'meta'
WRITERS_QUIET_S = 0.3  # a failed save's folder that has not come back for so long is taken for gone
WRITERS_END_S = 10.0


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read. The message is one line: where, why, what to do."""


class DamagedError(CheckpointError):
    """A checkpoint that was whole once, and cannot be read now."""


class Checkpoints:
    """The checkpoints under `run`, a run's folder."""

    def __init__(
        self, run: Path | str, *, keep: int | None = None, keep_every: int | None = None, read_only: bool = False
    ):
        """keep: how many of the newest stay; None keeps all. keep_every: multiples of it stay too. read_only: never
        write or clean up.
        """
        self.folder = Path(run).absolute() / FOLDER
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f'{run}: holds no checkpoints (expected a folder {FOLDER!r} in it)')
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep,
            keep_period=None if read_only else keep_every or None,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
        )
        # Named here, or a manager that has not saved itself knows no item's shapes.
        arrays = {name: ocp.StandardCheckpointHandler() for name in ARRAYS}
        handlers = {**arrays, META: ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def reload(self) -> None:
        """To be called when somebody else has changed the folder."""
        self._manager.reload()

    @property
    def steps(self) -> list[int]:
        """Of the finished checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def damage(self, step: int) -> str | None:
        """What is wrong with the files of a checkpoint, by their checksums, in words. Reads them all."""
        return integrity.damage(self.folder / str(step))

    def save(
        self,
        step: int,
        arrays: dict[str, Any],
        config: dict[str, Any],
        digests: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes the items of `arrays` ('state' and 'params'), the configuration, the digests, and `more` JSON.

        Raises CheckpointError; the checkpoints before this one are untouched.
        """
        meta = meta_of(step, config, digests) | dict(more or {})
        items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        try:
            saved = self._manager.save(step, args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta)), force=True)
            self._manager.wait_until_finished()
            if saved:
                self._verify(step, arrays)
        except (OSError, ValueError, RuntimeError) as error:
            self._remove_unfinished(step)
            last = self._newest_before(step)
            good = 'there is none before it' if last is None else f'the last good one is step {last}'
            raise CheckpointError(f'{self.folder}: step {step} could not be saved ({reason(error)}); {good}') from error
        if not saved:
            raise CheckpointError(f'{self.folder}: step {step} is there already')

    def _verify(self, step: int, arrays: dict[str, Any]) -> None:
        """That what is on disk is of the structure that was given; then its checksums are written down."""
        for name, tree in arrays.items():
            self._check(step, name, tree)
        if jax.process_index() == 0:
            integrity.seal(self.folder / str(step))

    def _remove_unfinished(self, step: int) -> None:
        """Frees the disk at once; what a killed process leaves goes when the next one opens the folder.

        Orbax's other writers may still be at work on the same folder after the first has failed: it is removed until it
        has stayed away.
        """
        gone_since, deadline = time.monotonic(), time.monotonic() + WRITERS_END_S
        while time.monotonic() < min(gone_since + WRITERS_QUIET_S, deadline):
            for path in self.folder.glob(f'{step}.*'):
                shutil.rmtree(path, ignore_errors=True)
                gone_since = time.monotonic()
            time.sleep(0.02)

    def _newest_before(self, step: int) -> int | None:
        steps = [int(p.name) for p in self.folder.iterdir() if p.name.isdigit() and int(p.name) < step]
        return max(steps, default=None)

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """The JSON of a checkpoint; None takes the newest."""
        step = self._step(step)
        with self._reading(step):
            return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))[META]

    def contents(self, step: int | None = None) -> dict[str, dict[str, tuple[tuple[int, ...], np.dtype]]]:
        """Item -> path ('trainable/head/kernel') -> shape and type. No array is read."""
        step = self._step(step)
        with self._reading(step):
            saved = self._manager.item_metadata(step)
            items = {name: saved[name] for name in ARRAYS if name in saved.keys() and saved[name] is not None}  # noqa: SIM118
            return {
                name: {path: (tuple(leaf.shape), np.dtype(leaf.dtype)) for path, leaf in _leaves(item.tree).items()}
                for name, item in items.items()
            }

    def restore(self, abstract: dict[str, Any], step: int | None = None) -> dict[str, Any]:
        """Arrays of the given items, shaped, typed and placed like `abstract`.

        Args:
          abstract: item -> tree of ShapeDtypeStructs (or arrays). What names no sharding goes to the first device,
            wherever it was when it was saved.
          step: which; None takes the newest.

        Raises:
          CheckpointError: no such checkpoint, a damaged one, or one of another architecture (the first difference is
            named).
        """
        step = self._step(step)
        with self._reading(step):
            for name, tree in abstract.items():
                self._check(step, name, tree)
            placed = jax.tree.map(_placed, abstract)
            args = {name: ocp.args.StandardRestore(tree) for name, tree in placed.items()}
            restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        return {name: restored[name] for name in abstract}

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        try:
            yield
        except CheckpointError:
            raise
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            others = ', '.join(str(s) for s in sorted(self._manager.all_steps()) if s != step) or 'none'
            raise DamagedError(
                f'{self.folder}/{step}: cannot be read; other steps there: {others} ({reason(error)})'
            ) from error

    def _step(self, step: int | None) -> int:
        known = sorted(self._manager.all_steps())
        if not known:
            raise CheckpointError(f'{self.folder}: holds no finished checkpoint')
        if step is None:
            return known[-1]
        if step not in known:
            raise CheckpointError(f'{self.folder}: has no step {step}; it has {", ".join(map(str, known))}')
        return step

    def _check(self, step: int, name: str, wanted: Any) -> None:
        saved = self._manager.item_metadata(step)
        if name not in saved.keys() or saved[name] is None:  # noqa: SIM118 - not a mapping
            raise DamagedError(f'{self.folder}/{step}: has no item {name!r}')
        there, here = _shapes(saved[name].tree), _shapes(wanted)
        different = [path for path in sorted(there.keys() | here.keys()) if there.get(path) != here.get(path)]
        if different:
            path = different[0]
            raise CheckpointError(
                f'{self.folder}/{step}: made by another architecture: {path} is {there.get(path, "absent")} there and '
                f'{here.get(path, "absent")} in this configuration ({len(different)} differences in {name!r})'
            )


def meta_of(step: int, config: dict[str, Any], digests: Mapping[str, str] | None) -> dict[str, Any]:
    """The JSON of a checkpoint. digests: None leaves them out, as checkpoints once did."""
    meta = {'step': step, 'data_position': step, 'config': config}
    return meta if digests is None else meta | {'digests': dict(digests)}


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, 'sharding', None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _leaves(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, 'shape'))
    return {'/'.join(_key(k) for k in path): leaf for path, leaf in leaves}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        path: tuple(leaf.shape if hasattr(leaf, 'shape') else np.shape(leaf)) for path, leaf in _leaves(tree).items()
    }


def _key(key: Any) -> str:
    """Dict keys, sequence indices and field names alike: Orbax's metadata knows containers by their keys only."""
    return str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key))))


def reason(error: BaseException) -> str:
    """What went wrong, in one line of bearable length."""
    return ' '.join(str(error).split())[:300] or type(error).__name__
