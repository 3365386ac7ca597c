"""Checkpoints of a run: DIR/checkpoints/STEP, each with its arrays and its configuration.

Items of a checkpoint:
  state    what training needs beside `params`: step, trainable variables, optimizer state
  params   what sampling needs: {'trainable', 'frozen'}, averaged where the run keeps an average
  meta     JSON: step, data position (the step again: the loader needs no more), the whole configuration, `digests`
           of the networks that made what the stage learnt from: 'vae' and 'text', as far as there are any, and
           `progress`, what else a run remembers

Orbax copies the arrays to the host, and writes them in threads of its own under a temporary name that it changes at
the end: a save that fails leaves the ones before it alone. In a thread of ours a saved one is looked at again, and its
files' checksums are written beside them (`integrity.py`).
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
from fv_jax.parallel import distributed

FOLDER = 'checkpoints'
ARRAYS = ('state', 'params')
META = 'meta'
UNFINISHED = '.orbax-checkpoint-tmp'  # how Orbax calls a folder until it is whole
WRITERS_QUIET_S = 0.3  # a failed save's folder that has not come back for so long is taken for gone
WRITERS_END_S = 10.0
WAIT_S = 0.2  # between two questions to the other processes
# Orbax gives a save up by itself after so long. What is too long is the watchdog's to say.
ORBAX_S = 24 * 3600
FAILURES = (OSError, ValueError, RuntimeError)  # of disks, of Orbax and of JAX


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read. The message is one line: where, why, what to do."""


class DamagedError(CheckpointError):
    """A checkpoint that was whole once, and cannot be read now."""


@dataclasses.dataclass(frozen=True)
class _UnderWay:
    """A save. since: when it began, by the monotonic clock. done: how it ended in this process."""

    step: int
    since: float
    done: concurrent.futures.Future[None]

    @property
    def failed(self) -> bool:
        return self.done.done() and self.done.exception() is not None


class Checkpoints:
    """The checkpoints under `run`, a run's folder."""

    def __init__(
        self,
        run: Path | str,
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
        self.folder = Path(run).absolute() / FOLDER
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f'{run}: holds no checkpoints (expected a folder {FOLDER!r} in it)')
        self._max_to_keep, self._keep_period = max_to_keep, keep_period
        self._barrier = Barrier(str(self.folder))
        self._worker = concurrent.futures.ThreadPoolExecutor(1, 'save')
        self._under_way: _UnderWay | None = None
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=not read_only,
            async_options=ocp.AsyncOptions(timeout_secs=ORBAX_S, barrier_sync_fn=self._barrier),
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
        return checksums.damage(self.folder / str(step))

    def save(
        self,
        step: int,
        arrays: dict[str, Any],
        config: dict[str, Any],
        digests: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """`start`, and waits for the end of it. Raises CheckpointError."""
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
        """Begins to write the items of `arrays` ('state', 'params'), the configuration, the digests, and `more` JSON.

        It returns when the arrays are copied: they may be donated. How it ends, `wait` says; that has to be called
        before the next one, and both by all processes.
        """
        assert self._under_way is None, 'wait for the save before'
        meta = meta_of(step, config, digests) | dict(more or {})
        items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        args = ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta))
        shapes = {name: _shapes(tree) for name, tree in arrays.items()}
        since = time.monotonic()
        done: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._barrier.renew()
        try:
            self._try_to_write(step)
            self._manager.save(step, args=args, force=True)
        except FAILURES as error:
            done.set_exception(error)
        else:
            done = self._worker.submit(self._finish, step, shapes)
        self._under_way = _UnderWay(step, since, done)

    def _try_to_write(self, step: int) -> None:
        """Makes a folder as Orbax will, and takes it away. Raises OSError, in all processes if one process cannot.

        Where Orbax itself cannot make one, threads of all processes wait for it, five minutes, also at the end of the
        process.
        """
        problem = None
        if jax.process_index() == 0:
            try:
                trial = self.folder / f'{step}.trial{UNFINISHED}'  # taken away at the next start, if we are killed
                trial.mkdir(exist_ok=True)
                with contextlib.suppress(FileNotFoundError):  # Orbax clears such folders away after it has started
                    trial.rmdir()
            except OSError as error:
                problem = error
        if distributed.any_process(problem is not None):
            raise problem or OSError('the first process cannot make a folder there')

    def _finish(self, step: int, shapes: dict[str, Any]) -> None:
        """What is left to do when Orbax has written, and what one process does for all: it looks whether what is on
        disk is of the structure that was given, writes down its checksums, and only then takes away the oldest ones.
        """
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            try:
                for name, there in shapes.items():
                    self._check(step, name, there)
                checksums.seal(self.folder / str(step))
            except BaseException:
                self._remove(step)  # or it would be the newest one
                raise
            self._remove_oldest()

    def _remove_oldest(self) -> None:
        steps = sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())
        for step in steps[: -self._max_to_keep] if self._max_to_keep else []:
            if not self._keep_period or step % self._keep_period:
                self._remove(step)

    def _remove(self, step: int) -> None:
        """Under another name first: what a kill leaves of it is no checkpoint, and goes at the next start."""
        aside = self.folder / f'{step}{UNFINISHED}'
        os.replace(self.folder / str(step), aside)
        shutil.rmtree(aside, ignore_errors=True)

    @property
    def saving_since(self) -> float | None:
        """When the save that is being written began, by the monotonic clock."""
        under_way = self._under_way  # the watchdog's thread asks too
        return None if under_way is None or under_way.done.done() else under_way.since

    def ended(self) -> tuple[bool, bool]:
        """Whether the save that was started is at work, and whether it has failed, as far as this process knows."""
        return not self._under_way.done.done(), self._under_way.failed

    def wait(self) -> None:
        """Returns when what was started is saved. All processes call it.

        Raises CheckpointError if any of them could not write; the checkpoints before this one are untouched.
        """
        if (under_way := self._under_way) is None:
            return
        done = under_way.done
        while distributed.any_process(not done.done()) and not distributed.any_process(under_way.failed):
            concurrent.futures.wait([done], timeout=WAIT_S)
        failed = distributed.any_process(under_way.failed)
        if failed:
            self._barrier.give_up()
        self.close()
        self._under_way = None
        self._manager.reload()  # of what came and went it knows a part
        if failed:
            self._raise(under_way.step, done.exception())

    def close(self) -> None:
        """Returns when this process has nothing left to write. It asks no other: for the way out of a failure."""
        if self._under_way is not None:
            concurrent.futures.wait([self._under_way.done])

    def _raise(self, step: int, error: BaseException | None) -> NoReturn:
        """Clears away what is left of a save that has failed."""
        if error is not None and not isinstance(error, FAILURES):
            raise error
        with contextlib.suppress(*FAILURES):
            self._manager.wait_until_finished()  # raises what it raised before, once in every thread that asks
        self._remove_unfinished(step)
        last = self._newest_before(step)
        good = 'there is none before it' if last is None else f'the last good one is step {last}'
        why = 'another process could not write' if error is None else reason(error)
        raise CheckpointError(f'{self.folder}: step {step} could not be saved ({why}); {good}') from error

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
                self._check(step, name, _shapes(tree))
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
        require(known, f'{self.folder}: holds no finished checkpoint', CheckpointError)
        if step is None:
            return known[-1]
        if step not in known:
            raise CheckpointError(f'{self.folder}: has no step {step}; it has {", ".join(map(str, known))}')
        return step

    def _check(self, step: int, name: str, here: dict[str, tuple[int, ...]]) -> None:
        saved = self._manager.item_metadata(step)
        if name not in saved.keys() or saved[name] is None:  # noqa: SIM118 - not a mapping
            raise DamagedError(f'{self.folder}/{step}: has no item {name!r}')
        there = _shapes(saved[name].tree)
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
