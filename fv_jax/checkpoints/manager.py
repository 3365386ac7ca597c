"""Checkpoints of a run: DIR/checkpoints/STEP, each with its arrays and its configuration.

Items of a checkpoint:
  state    what training needs besides `params`: step, trainable variables, optimizer state
  params   what sampling needs: {'trainable', 'frozen'}, the moving average (EMA) where the run keeps one
  meta     JSON: step, data position (the step again: the loader needs no more), the whole configuration, `digests`
           (fingerprints) of the networks that made the training data, 'vae' and 'text' as far as there are any, and
           `progress`, the state of the run besides arrays

Orbax copies the arrays to the host and writes them in its own threads under a temporary name, which it changes at the
end: a save that fails leaves the earlier checkpoints alone. Then a thread of ours verifies the structure of what was
written and stores the checksums of its files (`checksums.py`). Not Orbax's `max_to_keep`: it deletes old checkpoints
when a new one is written, and here only once it is verified.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
import orbax.checkpoint as ocp

from fv_jax.checkpoints import checksums
from fv_jax.checkpoints.barrier import Barrier
from fv_jax.core.checks import require
from fv_jax.core.paths import StoragePath, absolute, as_path
from fv_jax.parallel import distributed

FOLDER = 'checkpoints'
ARRAYS = ('state', 'params')
META = 'meta'
TEMPORARY_SUFFIX = '.orbax-checkpoint-tmp'  # Orbax's, of a folder that is not complete
# Without the suffix: when Orbax's manager opens, a thread removes the folders that have it. If one of them vanishes
# meanwhile, the thread fails, and each save after it.
WRITE_CHECK = '.write-check'
QUIET_S = 0.3  # a failed save's folder is removed once it has not been created again for this long
MAX_REMOVAL_S = 10.0
POLL_S = 0.2  # between two collective checks of whether all processes have finished
ORBAX_TIMEOUT_S = 24 * 3600  # of a save, longer than any: stalls are the watchdog's task
SAVE_ERRORS = (OSError, ValueError, RuntimeError)  # raised by disks, Orbax and JAX


def list_steps(folder: Path) -> list[int]:
    """Lists the steps in a folder of checkpoints by its folders' names, ascending; empty if it does not exist."""
    return sorted(int(path.name) for path in folder.glob('*') if path.name.isdigit())


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read. The message is one line: where, why, what to do."""


class DamagedError(CheckpointError):
    """A checkpoint that was completed once, and cannot be read now."""


@dataclasses.dataclass(frozen=True)
class PendingSave:
    """A save in progress.

    Attributes:
      since: when it began, by the monotonic clock.
      done: completes when this process has written its part, with the error if it could not.
    """

    step: int
    since: float
    done: concurrent.futures.Future[None]

    @property
    def failed(self) -> bool:
        return self.done.done() and self.done.exception() is not None


class Checkpoints:
    """Saves, verifies, restores and deletes the checkpoints of one run."""

    def __init__(
        self,
        run: str | StoragePath,
        *,
        max_to_keep: int | None = None,
        keep_period: int | None = None,
        read_only: bool = False,
    ):
        """Opens the checkpoints of a run.

        Args:
          run: the run's folder; the checkpoints are in its folder 'checkpoints'.
          max_to_keep: number of the newest checkpoints that a save leaves; None keeps all.
          keep_period: checkpoints of steps that are multiples of it are kept as well.
          read_only: never writes, deletes or creates anything.

        Raises:
          CheckpointError: `read_only`, and the folder does not exist.
        """
        self.folder = absolute(as_path(run)) / FOLDER
        require(not read_only or self.folder.parent.exists(), f'{run}: does not exist', CheckpointError)
        lacks = f'{run}: contains no checkpoints (expected a folder {FOLDER!r} in it)'
        require(not read_only or self.folder.is_dir(), lacks, CheckpointError)
        self._max_to_keep, self._keep_period = max_to_keep, keep_period
        self._barrier = Barrier(str(self.folder))
        self._worker = concurrent.futures.ThreadPoolExecutor(1, 'save')
        self._pending: PendingSave | None = None
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=not read_only,
            async_options=ocp.AsyncOptions(timeout_secs=ORBAX_TIMEOUT_S, barrier_sync_fn=self._barrier),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
        )
        # Without the handlers a manager that has not saved anything itself cannot read the shapes of an item.
        arrays = {name: ocp.StandardCheckpointHandler() for name in ARRAYS}
        handlers = {**arrays, META: ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    @property
    def latest_step(self) -> int | None:
        """The step of the newest completed checkpoint; None without any."""
        return self._manager.latest_step()

    def reload(self) -> None:
        """Reads the folder again, after another process or object has changed it."""
        self._manager.reload()

    @property
    def steps(self) -> list[int]:
        """The steps of the completed checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def verify(self, step: int) -> str | None:
        """Returns what is wrong with the files of a checkpoint by their checksums, or None. Reads all of them."""
        return checksums.verify_checksums(self.folder / str(step))

    def save(
        self,
        step: int,
        arrays: dict[str, Any],
        config: dict[str, Any],
        digests: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves synchronously: `start`, then `wait`. Raises CheckpointError."""
        self.start(step, arrays, config, digests, more)
        self.wait()

    def start(
        self,
        step: int,
        arrays: dict[str, Any],
        config: dict[str, Any],
        digests: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts an asynchronous save. All processes call it, and then `wait` before the next one.

        It returns when the arrays have been copied to the host: they may be donated. It does not raise when the save
        fails; `wait` does.

        Args:
          step: number of updates done.
          arrays: item ('state', 'params') -> tree of arrays.
          config: of the run.
          digests: network ('vae', 'text') -> its fingerprint.
          more: further entries of the JSON.
        """
        assert self._pending is None, 'call wait() for the previous save first'
        meta = make_meta(step, config, digests) | dict(more or {})
        items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        args = ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta))
        shapes = {name: _shapes(tree) for name, tree in arrays.items()}
        since = time.monotonic()
        done: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._barrier.reset()
        try:
            self._check_writable()
            self._manager.save(step, args=args, force=True)
        except SAVE_ERRORS as error:
            done.set_exception(error)
        else:
            done = self._worker.submit(self._finish, step, shapes)
        self._pending = PendingSave(step, since, done)

    def _check_writable(self) -> None:
        """Creates a folder and removes it. Raises OSError in all processes if the first one cannot.

        If Orbax itself fails to create its folder, threads of all processes wait for it for five minutes, even when the
        process ends.
        """
        problem = None
        if jax.process_index() == 0:
            try:
                trial = self.folder / WRITE_CHECK
                trial.mkdir(exist_ok=True)  # exists if a process was killed just here
                trial.rmdir()
            except OSError as error:
                problem = error
        if distributed.any_process(problem is not None):
            raise problem or OSError('the first process cannot create a folder')

    def _finish(self, step: int, shapes: dict[str, Any]) -> None:
        """Completes a save when Orbax has written it; runs in the worker thread.

        The first process verifies that the structure on disk is the one that was given, writes the checksums, and only
        then deletes the oldest checkpoints.
        """
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            try:
                for name, expected in shapes.items():
                    self._check_structure(step, name, expected)
                checksums.write_checksums(self.folder / str(step))
            except BaseException:
                self._remove(step)  # a resumed run would take it as the newest one
                raise
            self._remove_oldest()

    def _remove_oldest(self) -> None:
        steps = list_steps(self.folder)
        for step in steps[: -self._max_to_keep] if self._max_to_keep else []:
            if not self._keep_period or step % self._keep_period:
                self._remove(step)

    def _remove(self, step: int) -> None:
        """Renames it first: if the process is killed, the rest is no checkpoint, and is removed at the next start."""
        temporary = self.folder / f'{step}{TEMPORARY_SUFFIX}'
        os.replace(self.folder / str(step), temporary)
        shutil.rmtree(temporary, ignore_errors=True)

    @property
    def saving_since(self) -> float | None:
        """When the save in progress began, by the monotonic clock; None while there is none."""
        pending = self._pending  # one read: the watchdog calls this from its own thread
        return None if pending is None or pending.done.done() else pending.since

    def poll(self) -> tuple[bool, bool]:
        """Returns whether the started save is in progress, and whether it has failed, both in this process alone."""
        return not self._pending.done.done(), self._pending.failed

    def wait(self) -> None:
        """Waits for the started save, if there is one. All processes call it.

        Raises CheckpointError if any of them could not write; earlier checkpoints are untouched.
        """
        if (pending := self._pending) is None:
            return
        done = pending.done
        while distributed.any_process(not done.done()) and not distributed.any_process(pending.failed):
            concurrent.futures.wait([done], timeout=POLL_S)
        failed = distributed.any_process(pending.failed)
        if failed:
            self._barrier.abort()
        self.close()
        self._pending = None
        self._manager.reload()  # Orbax's list does not know what this class has deleted
        if failed:
            self._raise(pending.step, done.exception())

    def close(self) -> None:
        """Waits until this process has nothing left to write. It does not communicate: for use after a failure."""
        if self._pending is not None:
            concurrent.futures.wait([self._pending.done])

    def _raise(self, step: int, error: BaseException | None) -> NoReturn:
        """Removes the rest of a failed save and raises CheckpointError."""
        if error is not None and not isinstance(error, SAVE_ERRORS):
            raise error
        with contextlib.suppress(*SAVE_ERRORS):
            self._manager.wait_until_finished()  # raises its error again, once in every thread that calls it
        self._remove_unfinished(step)
        last = max((found for found in list_steps(self.folder) if found < step), default=None)
        newest = 'there is no earlier checkpoint' if last is None else f'the newest checkpoint is step {last}'
        why = 'another process could not write' if error is None else summarize_error(error)
        raise CheckpointError(f'{self.folder}: step {step} could not be saved ({why}); {newest}') from error

    def _remove_unfinished(self, step: int) -> None:
        """Frees the disk at once. (What a killed process leaves is removed when the next one opens the folder.)

        After one of Orbax's writers has failed, others may still create files in the folder: it is removed repeatedly
        until it has stayed away for QUIET_S.
        """
        absent_since, deadline = time.monotonic(), time.monotonic() + MAX_REMOVAL_S
        while time.monotonic() < min(absent_since + QUIET_S, deadline):
            for path in self.folder.glob(f'{step}.*'):
                shutil.rmtree(path, ignore_errors=True)
                absent_since = time.monotonic()
            time.sleep(0.02)

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """Returns the JSON of a checkpoint; step None is the newest. Raises CheckpointError."""
        step = self._step(step)
        with self._reading(step):
            return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))[META]

    def contents(self, step: int | None = None) -> dict[str, dict[str, tuple[tuple[int, ...], np.dtype]]]:
        """Returns item -> path ('trainable/head/kernel') -> (shape, dtype), without reading arrays."""
        step = self._step(step)
        with self._reading(step):
            saved = self._manager.item_metadata(step)
            items = {name: saved[name] for name in ARRAYS if name in saved.keys() and saved[name] is not None}  # noqa: SIM118
            return {
                name: {path: (tuple(leaf.shape), np.dtype(leaf.dtype)) for path, leaf in _leaves(item.tree).items()}
                for name, item in items.items()
            }

    def restore(self, abstract: dict[str, Any], step: int | None = None) -> dict[str, Any]:
        """Restores the given items with the shapes, dtypes and shardings of `abstract`.

        Args:
          abstract: item -> tree of ShapeDtypeStructs (or arrays). Leaves without a sharding are put on the first
            device, wherever they were when they were saved.
          step: None is the newest.

        Returns:
          item -> tree of arrays.

        Raises:
          DamagedError: the checkpoint cannot be read.
          CheckpointError: no such checkpoint, or one of another architecture; the first difference is named.
        """
        step = self._step(step)
        with self._reading(step):
            for name, tree in abstract.items():
                self._check_structure(step, name, _shapes(tree))
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
                f'{self.folder}/{step}: cannot be read; other steps: {others} ({summarize_error(error)})'
            ) from error

    def _step(self, step: int | None) -> int:
        known = sorted(self._manager.all_steps())
        require(known, f'{self.folder}: contains no completed checkpoint', CheckpointError)
        if step is None:
            return known[-1]
        if step not in known:
            raise CheckpointError(f'{self.folder}: has no step {step}; it has {", ".join(map(str, known))}')
        return step

    def _check_structure(self, step: int, name: str, expected: dict[str, tuple[int, ...]]) -> None:
        saved = self._manager.item_metadata(step)
        if name not in saved.keys() or saved[name] is None:  # noqa: SIM118 - not a mapping
            raise DamagedError(f'{self.folder}/{step}: has no item {name!r}')
        found = _shapes(saved[name].tree)
        different = [path for path in sorted(found.keys() | expected.keys()) if found.get(path) != expected.get(path)]
        if different:
            path = different[0]
            raise CheckpointError(
                f'{self.folder}/{step}: has another architecture: {path} is {found.get(path, "absent")} there and '
                f'{expected.get(path, "absent")} in this configuration ({len(different)} differences in {name!r})'
            )


def make_meta(step: int, config: dict[str, Any], digests: Mapping[str, str] | None) -> dict[str, Any]:
    """Returns the JSON of a checkpoint. digests: None leaves them out."""
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
    """Returns a dict key, a sequence index or a field name as text: Orbax's metadata does not tell them apart."""
    return str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key))))


def summarize_error(error: BaseException) -> str:
    """Returns an error's message as one line of at most 300 characters."""
    return ' '.join(str(error).split())[:300] or type(error).__name__
