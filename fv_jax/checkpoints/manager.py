"""Checkpoints of a run: DIR/checkpoints/STEP, each with its arrays and its configuration.

Items of a checkpoint:
  state    what training needs besides `params`: step, trainable variables, optimizer state
  params   what sampling needs: {'trainable', 'frozen'}, the moving average (EMA) where the run keeps one
  meta     JSON: step, data position (the step again: the loader needs no more), the whole configuration, `digests`
           (fingerprints) of the networks that made the training data, 'vae' and 'text' as far as there are any, and
           `progress`, the state of the run besides arrays

Orbax copies the arrays to the host and writes them in its own threads. Locally it writes under a temporary name, which
it changes at the end; in object storage the last file that it writes completes a checkpoint. A save that fails leaves
the earlier checkpoints alone. Then a thread of ours verifies the structure of what was written and stores the checksums
of its files (`checksums.py`). Not Orbax's `max_to_keep`: it deletes old checkpoints when a new one is written, and here
only once it is verified.
"""

import concurrent.futures
import contextlib
import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import numpy as np
import orbax.checkpoint as ocp

from fv_jax.checkpoints import checksums, trees
from fv_jax.checkpoints.barrier import Barrier
from fv_jax.checkpoints.errors import SAVE_ERRORS, CheckpointError, DamagedError, convert_errors, summarize_error
from fv_jax.checkpoints.steps import FOLDER, Steps, check_supported
from fv_jax.core import files
from fv_jax.core.checks import require
from fv_jax.core.paths import StoragePath, absolute
from fv_jax.parallel import distributed

log = logging.getLogger(__name__)

ARRAYS = ('state', 'params')
META = 'meta'
QUIET_S = 0.3  # a failed save's folder is removed once it has not been created again for this long
MAX_REMOVAL_S = 10.0
POLL_S = 0.2  # between two collective checks of whether all processes have finished
# Orbax's own time-out of a save: longer than any. Stalls are the watchdog's task.
ORBAX_TIMEOUT_S = 24 * 3600


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
        run: StoragePath,
        *,
        max_to_keep: int | None = None,
        keep_period: int | None = None,
        read_only: bool = False,
    ):
        """Opens the checkpoints of a run; unless `read_only`, removes what unfinished saves have left.

        Args:
          run: the run's folder; the checkpoints are in its folder 'checkpoints'.
          max_to_keep: number of the newest checkpoints that a save leaves; None keeps all.
          keep_period: checkpoints of steps that are multiples of it are kept as well.
          read_only: never writes, deletes or creates anything.

        Raises:
          CheckpointError: Orbax cannot write there, or `read_only`, and the folder does not exist.
        """
        check_supported(run)
        self._steps = Steps(absolute(run))
        self.folder = self._steps.folder
        if read_only and not self.folder.is_dir():
            require(self._steps.run.exists(), f'{run}: does not exist', CheckpointError)
            raise CheckpointError(f'{run}: contains no checkpoints (expected a folder {FOLDER!r} in it)')
        self._max_to_keep, self._keep_period = max_to_keep, keep_period
        self._removed: set[int] = set()  # steps that Orbax's list still has
        self._barrier = Barrier(str(self.folder))
        self._worker = concurrent.futures.ThreadPoolExecutor(1, 'save')
        self._pending: PendingSave | None = None
        if not read_only and jax.process_index() == 0:
            self._steps.remove_unfinished()
        self._manager = self._open(read_only)

    def _open(self, read_only: bool) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=not read_only,
            async_options=ocp.AsyncOptions(timeout_secs=ORBAX_TIMEOUT_S, barrier_sync_fn=self._barrier),
            read_only=read_only,
            create=not read_only,
            step_name_format=self._steps,
            lightweight_initialize=True,  # no times of the steps, which are read from each
        )
        # Without the handlers a manager that has not saved anything itself cannot read the shapes of an item.
        arrays = {name: ocp.StandardCheckpointHandler() for name in ARRAYS}
        handlers = {**arrays, META: ocp.JsonCheckpointHandler()}
        return ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    @property
    def latest_step(self) -> int | None:
        """The step of the newest intact checkpoint; None without any."""
        return max(self.steps, default=None)

    @property
    def steps(self) -> list[int]:
        """The steps of the complete, intact checkpoints, ascending."""
        return sorted(set(self._manager.all_steps()) - self._removed)

    def list_damaged(self) -> set[int]:
        """Lists the steps that were marked as damaged."""
        return self._steps.list_damaged()

    def mark_damaged(self, step: int, problem: str) -> None:
        """Marks a step as damaged: it is not one of `steps` from the next `reload` on. Raises OSError."""
        self._steps.mark_damaged(step, problem)

    def reload(self) -> None:
        """Reads the folder again, after another process or object has changed it."""
        self._manager.reload()
        self._removed.clear()

    def verify(self, step: int) -> str | None:
        """Returns what is wrong with the files of a checkpoint by their checksums, or None. Local ones are all read."""
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
        shapes = {name: trees.shapes(tree) for name, tree in arrays.items()}
        since = time.monotonic()
        done: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._barrier.reset()
        try:
            self._prepare(step)
            self._manager.save(step, args=args, force=True)
        except SAVE_ERRORS as error:
            done.set_exception(error)
        else:
            done = self._worker.submit(self._finish, step, shapes)
        self._pending = PendingSave(step, since, done)

    def _prepare(self, step: int) -> None:
        """Removes a damaged checkpoint of this step. Raises OSError in all processes if the first one cannot write.

        If Orbax itself fails to create its folder, threads of all processes wait for it for five minutes, even when the
        process ends.
        """
        problem = None
        if jax.process_index() == 0:
            try:
                files.check_writable(self.folder)
                if step in self._steps.list_damaged():
                    self._steps.remove_damaged(step)
            except OSError as error:
                problem = error
        if distributed.any_process(problem is not None):
            raise problem or OSError('the first process cannot write to the folder')

    def _finish(self, step: int, shapes: dict[str, trees.Shapes]) -> None:
        """Completes a save when Orbax has written it; runs in the worker thread.

        The first process verifies that the structure in storage is the one that was given, writes the checksums, and
        only then removes the oldest checkpoints.
        """
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            try:
                self._check_structure(step, shapes)
                checksums.write_checksums(self.folder / str(step))
            except BaseException:
                self._steps.remove(step)  # a resumed run would take it as the newest one
                raise
            self._remove_oldest()

    def _remove_oldest(self) -> None:
        for step in self.steps[: -self._max_to_keep] if self._max_to_keep else []:
            if not self._keep_period or step % self._keep_period:
                try:
                    self._steps.remove(step)
                    self._removed.add(step)
                except OSError as error:  # the next save tries it again
                    log.warning(f'{self.folder / str(step)}: cannot be removed ({summarize_error(error)})')

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
            self._barrier.release(distributed.gather_texts(self._barrier.abort()))
        self.close()
        self._pending = None
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
        # Each raises an error of the save again. The second waits for writers that have not failed yet.
        for end in (self._manager.wait_until_finished, self._manager.close):
            with contextlib.suppress(*SAVE_ERRORS):
                end()
        self._remove_unfinished(step)
        self._manager = self._open(read_only=False)  # the one that has failed would report its errors at the next save
        self._removed.clear()
        last = max((found for found in self.steps if found < step), default=None)
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
            if self._steps.remove_unfinished(step):
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
                name: {
                    path: (tuple(leaf.shape), np.dtype(leaf.dtype)) for path, leaf in trees.leaves(item.tree).items()
                }
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
            self._check_structure(step, {name: trees.shapes(tree) for name, tree in abstract.items()})
            placed = jax.tree.map(trees.place, abstract)
            args = {name: ocp.args.StandardRestore(tree) for name, tree in placed.items()}
            restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        return {name: restored[name] for name in abstract}

    def _reading(self, step: int) -> contextlib.AbstractContextManager[None]:
        """A context in which errors are raised as DamagedError."""

        def convert(reason: str) -> DamagedError:
            others = ', '.join(str(s) for s in self.steps if s != step) or 'none'
            return DamagedError(f'{self.folder}/{step}: cannot be read; other steps: {others} ({reason})')

        return convert_errors(convert)

    def _step(self, step: int | None) -> int:
        known = self.steps
        if step is not None and step not in known and step in self._steps.list_damaged():
            raise DamagedError(f'{self.folder}: step {step} is damaged: {self._steps.read_damage(step)}')
        require(known, f'{self.folder}: contains no completed checkpoint', CheckpointError)
        if step is None:
            return known[-1]
        if step not in known:
            raise CheckpointError(f'{self.folder}: has no step {step}; it has {", ".join(map(str, known))}')
        return step

    def _check_structure(self, step: int, expected: dict[str, trees.Shapes]) -> None:
        """Raises DamagedError where an item is missing, and CheckpointError where its shapes are others."""
        saved = self._manager.item_metadata(step)
        for name, wanted in expected.items():
            if name not in saved.keys() or saved[name] is None:  # noqa: SIM118 - not a mapping
                raise DamagedError(f'{self.folder}/{step}: has no item {name!r}')
            if difference := trees.describe_difference(name, trees.shapes(saved[name].tree), wanted):
                raise CheckpointError(f'{self.folder}/{step}: has another architecture: {difference}')


def make_meta(step: int, config: dict[str, Any], digests: Mapping[str, str] | None) -> dict[str, Any]:
    """Returns the JSON of a checkpoint. digests: None leaves them out."""
    meta = {'step': step, 'data_position': step, 'config': config}
    return meta if digests is None else meta | {'digests': dict(digests)}
