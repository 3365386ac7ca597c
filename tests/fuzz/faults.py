"""Injects faults into training runs, each one or several processes, and prints the outcome:

    PYTHONPATH=. python -m tests.fuzz.faults [--only NAME,NAME] [--folder FOLDER] [--slow 1]

One line per fault: the outcome, and how many steps of training were lost. The outcome is asserted: a run that can
resume must end with parameters that equal those of an uninterrupted run bit for bit (with several processes: to 1e-5).
The machine's clock and disks are not touched; each fault documents how it is made. On a loaded machine the watchdog
needs a longer time-out: `--slow 20` makes it 20 times as long.
"""

import argparse
import dataclasses
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fv_jax.core import exit_codes
from tests import runs
from tests.sampling import tiny

STEPS, SAVE_EVERY, AT = 12, 4, 8  # AT: the step that a run is at, saved, when something is done to it
DEVICES = 4  # of runs of several processes, however many
MESH = ('--config.parallel.fsdp=2', '--config.parallel.context=2', '--config.data.loader.batch_size=2')
EXACT = '--config.optim.eps=1.0'  # or Adam makes much of the last bit of small gradients
SECONDS = 900

# Programs that come before the training command, in its process.
SOURCE_BLOCKS = """
import itertools, threading
from fv_jax.training.run import datasets
drawn = datasets.TrainBatches.train
def train(self, *arguments):
    yield from itertools.islice(drawn(self, *arguments), 3)
    threading.Event().wait()
datasets.TrainBatches.train = train
"""
# As a disk that was removed: the call that makes a checkpoint's folder does not come back, in the threads that save.
STALLED_SAVE = """
import os, threading
make = os.mkdir
def mkdir(path, *arguments, **more):
    trial, main = '.trial_save' in str(path), threading.current_thread() is threading.main_thread()
    if '.orbax-checkpoint-tmp' in str(path) and not trial and not main:
        threading.Event().wait()
    make(path, *arguments, **more)
os.mkdir = mkdir
"""
# The loader's workers are threads: none can be killed but by itself. One ends while it makes a row.
WORKER_DIES = """
from fv_jax.data import loader
made = loader._ProcessExamples.__getitem__
def row(self, index):
    if index == 10:
        raise SystemExit('killed')
    return made(self, index)
loader._ProcessExamples.__getitem__ = row
"""
NAN = f"""
import itertools
from fv_jax.training.run import datasets
drawn = datasets.TrainBatches.train
def train(self, start, order):
    for step, batch in enumerate(drawn(self, start, order), start + 1):
        bad = step == {AT + 2}
        yield {{k: v * float('nan') if bad and 'float' in str(v.dtype) else v for k, v in batch.items()}}
datasets.TrainBatches.train = train
"""
# A day, once the run has started: which Python's and Orbax's timestamps are made of. No machine's monotonic clock does.
CLOCK_BACK = """
import time
now, now_ns, start = time.time, time.time_ns, time.monotonic()
back = lambda: 86400 if time.monotonic() > start + 5 else 0
time.time, time.time_ns = lambda: now() - back(), lambda: now_ns() - back() * 10**9
"""
# In one process: a disk that is full for one save.
CANNOT_WRITE_ONCE = f"""
import resource
from fv_jax.checkpoints import manager
start = manager.Checkpoints.start
def limited(self, step, *arguments):
    limit = 4096 if step == {SAVE_EVERY} else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    start(self, step, *arguments)
manager.Checkpoints.start = limited
"""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a fault.

    Attributes:
      what: happened, for the report.
      lost: steps that were repeated or skipped.
    """

    what: str
    lost: int


class Laboratory:
    """The folder and the uninterrupted run of the fault tests, and their commands."""

    def __init__(self, folder: Path, slow: float = 1.0):
        """slow: times as long may a run be without movement."""
        self.slow = slow
        self.folder, self.vae = folder, folder / 'vae.safetensors'
        folder.mkdir(parents=True, exist_ok=True)
        self.environment = runs.environment(folder / 'compiled')
        tiny.save_vae(self.vae)

    @functools.cached_property
    def uninterrupted(self) -> Path:
        """One that nothing was done to."""
        run = self.folder / 'whole'
        if not run.exists():
            code, _, err = self.end(run)
            assert code == 0 and not err, err
        return run

    def flags(self, run: Path, *more: str) -> list[str]:
        loop = {'num_steps': STEPS, 'save_every': SAVE_EVERY, 'eval_every': 0, 'max_to_keep': 50, 'max_failed_saves': 0}
        return runs.superres(run, self.vae, *(f'--config.loop.{name}={value}' for name, value in loop.items()), *more)

    def stalled(self, seconds: float) -> str:
        """Returns the flag of a stall timeout of so many seconds."""
        return f'--config.loop.stall_timeout_minutes={self.slow * seconds / 60}'

    def wait_for_step(self, name: str, step: int = AT) -> Path:
        """Copies the run as it was when it had saved `step` and was killed later."""
        run = self.folder / name
        shutil.copytree(self.uninterrupted, run)
        for saved in runs.steps(run):
            if saved > step:
                shutil.rmtree(run / 'checkpoints' / str(saved))
        return run

    def end(self, run: Path, *more: str, **how: object) -> tuple[int, str, str]:
        """Returns the exit code and the output of the command."""
        process = runs.start(self.flags(run, *more), self.environment, **how)
        out, err = process.communicate(timeout=SECONDS)
        assert 'Traceback' not in err, err
        return process.returncode, out, err

    def resume(self, run: Path, output: str) -> None:
        """Starts it with the same command; it must end well, as if nothing had been."""
        code, out, err = self.end(run)
        assert code == 0 and not err and output in out, (output, out, err)
        assert runs.steps(run)[-1] == STEPS
        runs.assert_same(run, self.uninterrupted, STEPS)
        assert runs.rows(run) == runs.rows(self.uninterrupted)


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1].removeprefix('train: ')[:160]


def reached(out: str) -> int:
    """Returns the last step that a run logged."""
    output = [line for line in out.splitlines() if line.startswith('step ')]
    return max((int(line.split()[1].partition('/')[0]) for line in output), default=0)


# --- one process ---


def disk_full(lab: Laboratory) -> Outcome:
    run = lab.wait_for_step('disk_full', SAVE_EVERY)
    flags = '--config.loop.max_failed_saves=1', '--config.loop.num_steps=100'
    code, out, err = lab.end(run, *flags, largest_file=32_000)
    assert code == 1 and out.count('WARNING') == 1 and runs.steps(run) == [SAVE_EVERY], (code, out, err)
    lab.resume(run, f'resuming from step {SAVE_EVERY}')
    return Outcome(f'warned, stopped with code 1: {last_line(err)}', reached(out) - SAVE_EVERY)


def read_only(lab: Laboratory) -> Outcome:
    """Makes a folder read-only: by a bind mount in a mount namespace, or by chmod without the right to mount."""
    run = lab.wait_for_step('read_only')
    path, before = run / 'checkpoints', ()
    if os.geteuid() == 0:
        mounts = f'mount --bind {path} {path} && mount -o remount,ro,bind {path} && exec "$@"'
        before = ('unshare', '-m', 'sh', '-c', mounts, 'sh')
    else:
        path.chmod(0o555)
    code, out, err = lab.end(run, before=before)
    path.chmod(0o755)
    assert code == 1 and 'could not be saved' in err and runs.steps(run) == [SAVE_EVERY, AT], (code, out, err)
    lab.resume(run, f'resuming from step {AT}')
    return Outcome(f'stopped with code 1: {last_line(err)}', reached(out) - AT)


def delete_item(lab: Laboratory) -> Outcome:
    run = lab.wait_for_step('item_deleted')
    shutil.rmtree(run / 'checkpoints' / str(AT) / 'state')
    lab.resume(run, f'WARNING: the checkpoint of step {AT} is damaged')
    return Outcome('reported; fell back to the checkpoint before', AT - SAVE_EVERY)


def flip_byte(lab: Laboratory) -> Outcome:
    run = lab.wait_for_step('byte_flipped')
    files = (run / 'checkpoints' / str(AT) / 'params').rglob('d/*')
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    lab.resume(run, f'WARNING: the checkpoint of step {AT} is damaged')
    return Outcome('reported; fell back to the checkpoint before', AT - SAVE_EVERY)


def nan(lab: Laboratory) -> Outcome:
    run = lab.wait_for_step('nan')
    code, out, err = lab.end(run, first=NAN)
    assert code == 0 and f'BAD STEP at step {AT + 2}' in out and runs.rows(run)[-1]['bad_steps'] == 1, (out, err)
    assert runs.rows(run)[: AT + 1] == runs.rows(lab.uninterrupted)[: AT + 1]
    kept = run / 'bad_steps' / str(AT + 2) / 'step.npz'
    return Outcome(f'step {AT + 2} skipped, counted, dumped for a replay: {kept.is_file()}; the run ended well', 1)


def kill_worker(lab: Laboratory) -> Outcome:
    run = lab.wait_for_step('worker_dies')
    code, out, err = lab.end(run, lab.stalled(30), first=WORKER_DIES)
    assert code not in (0, exit_codes.PREEMPTED) and runs.steps(run)[:2] == [SAVE_EVERY, AT], (code, out, err)
    newest = runs.steps(run)[-1]
    lab.resume(run, f'resuming from step {newest}')
    return Outcome(f'ended with code {code}: {err.splitlines()[0][:120]}', reached(out) - newest)


def block_source(lab: Laboratory) -> Outcome:
    run = lab.wait_for_step('source_blocks')
    code, out, err = lab.end(run, lab.stalled(6), first=SOURCE_BLOCKS)
    assert code == exit_codes.STALLED and err.startswith('STALLED: no progress'), (code, out, err)
    lab.resume(run, f'resuming from step {AT}')
    return Outcome(f'stopped with code {code}: {err.splitlines()[0][:70]}', reached(out) - AT)


def stall_save(lab: Laboratory) -> Outcome:
    run = lab.wait_for_step('save_stuck', SAVE_EVERY)
    code, out, err = lab.end(run, lab.stalled(6), '--config.loop.save_every=2', first=STALLED_SAVE)
    assert code == exit_codes.STALLED and 'an asynchronous save has not ended' in err, (code, out, err)
    lab.resume(run, f'resuming from step {SAVE_EVERY}')
    return Outcome(f'stopped with code {code}: {err.splitlines()[0][:70]}', reached(out) - SAVE_EVERY)


def set_clock_back(lab: Laboratory) -> Outcome:
    run = lab.wait_for_step('clock_back')
    code, out, err = lab.end(run, '--config.loop.save_minutes=30', first=CLOCK_BACK)
    assert code == 0 and f'resuming from step {AT}' in out, (code, out, err)
    runs.assert_same(run, lab.uninterrupted, STEPS)
    assert runs.rows(run) == runs.rows(lab.uninterrupted) and runs.steps(run) == runs.steps(lab.uninterrupted)
    return Outcome('nothing: the same numbers', 0)


def edit_config(lab: Laboratory) -> Outcome:
    run = lab.wait_for_step('config_edited')
    before = {path: path.read_bytes() for path in run.rglob('*') if path.is_file()}
    code, out, err = lab.end(run, '--config.optim.learning_rate=0.5')
    assert code == 2 and 'contains another run: optim.learning_rate' in err, (code, out, err)
    assert {path: path.read_bytes() for path in run.rglob('*') if path.is_file()} == before
    lab.resume(run, f'resuming from step {AT}')
    return Outcome(f'refused with code 2, nothing changed: {last_line(err)}', 0)


# --- several processes ---


def wait_for_start(lab: Laboratory, run: Path, count: int, *more: str, **how: object) -> list[subprocess.Popen]:
    environment = runs.environment(lab.folder / 'compiled', DEVICES // count)
    flags = lab.flags(run, *MESH, EXACT, *more)
    return runs.start_several(flags, environment, count, **how) if count > 1 else [runs.start(flags, environment)]


def wait_for_end(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    try:
        output = [process.communicate(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, output, strict=True)]


def kill_peer(lab: Laboratory) -> Outcome:
    run, seconds = lab.folder / 'peer_killed', 30.0
    flags = '--config.loop.num_steps=100000', lab.stalled(seconds)
    left, killed = processes = wait_for_start(lab, run, 2, *flags)
    for line in left.stdout:
        if line.startswith(f'saved step {SAVE_EVERY}'):
            killed.send_signal(signal.SIGKILL)
            break
    began = time.monotonic()
    (code, out, err), _ = wait_for_end(processes)
    took, newest = time.monotonic() - began, runs.steps(run)[-1]
    assert code in (1, exit_codes.STALLED) and took < lab.slow * (seconds + 15), (code, took, out, err)
    (again, *_) = wait_for_end(wait_for_start(lab, run, 1, f'--config.loop.num_steps={newest + 1}'))
    assert again[0] == 0 and f'resuming from step {newest}' in again[1], again
    lost = max(reached(out) - newest, 0)
    return Outcome(f'the other ended with code {code} after {took:.0f} s: {err.splitlines()[0][:90]}', lost)


def make_one_unwritable(lab: Laboratory) -> Outcome:
    """Makes one of two processes unable to write; the other waits for it at Orbax's barrier."""
    run = lab.folder / 'one_cannot_write'
    first = ['', CANNOT_WRITE_ONCE]
    (code, out, err), (other, _, other_err) = wait_for_end(
        wait_for_start(lab, run, 2, '--config.loop.max_failed_saves=1', first=first)
    )
    assert code == other == 0 and 'WARNING' in out, (code, other, out, err, other_err)
    assert runs.steps(run) == [AT, STEPS]
    return Outcome('warned, went on, saved the next time', 0)


def preempt(lab: Laboratory) -> Outcome:
    """SIGTERM to one of two; then one, two and four processes resume, with the batches of an uninterrupted run."""
    run, uninterrupted = lab.folder / 'preempted', lab.folder / 'not_preempted'
    ((code, _, err),) = wait_for_end(wait_for_start(lab, uninterrupted, 1))
    assert code == 0, err
    first, second = processes = wait_for_start(lab, run, 2, '--config.loop.save_every=100')
    for line in first.stdout:
        if line.startswith('step  3/'):
            second.send_signal(signal.SIGTERM)
            break
    codes = [code for code, _, _ in wait_for_end(processes)]
    (step,) = runs.steps(run)
    assert codes == [exit_codes.PREEMPTED] * 2 and 3 <= step < STEPS, (codes, step)
    for count in (1, 2, 4):
        again = lab.folder / f'preempted_{count}'
        shutil.copytree(run, again)
        (code, out, err), *_ = wait_for_end(wait_for_start(lab, again, count))
        assert code == 0 and f'resuming from step {step}' in out, (code, out, err)
        rows, expected = runs.rows(again), runs.rows(uninterrupted)
        assert [row['step'] for row in rows] == [row['step'] for row in expected] == list(range(1, STEPS + 1))
        for row, other in zip(rows, expected, strict=True):
            np.testing.assert_allclose(row['loss'], other['loss'], rtol=1e-5, err_msg=f'{count} at step {row["step"]}')
    return Outcome(f'both ended with code 75 at step {step}; 1, 2 and 4 went on with the same batches', 0)


FAULTS: dict[str, Callable[[Laboratory], Outcome]] = {
    fault.__name__: fault
    for fault in (
        disk_full, read_only, delete_item, flip_byte, nan, kill_worker, block_source, stall_save, set_clock_back,
        edit_config, kill_peer, make_one_unwritable, preempt,
    )
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='Does to training runs what happens to them.')
    parser.add_argument('--only', help='names, with commas between: ' + ', '.join(FAULTS))
    parser.add_argument('--folder', type=Path, help='where the runs stay; otherwise they go')
    parser.add_argument('--slow', type=float, default=1.0, help='how much more patience the watchdog needs')
    arguments = parser.parse_args(argv)
    names = arguments.only.split(',') if arguments.only else list(FAULTS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if arguments.folder is None else arguments.folder.absolute()
        lab = Laboratory(folder, arguments.slow)
        lost = 0
        print(f'{"fault":17} {"lost":>4}  what happened')
        for name in names:
            outcome = FAULTS[name](lab)
            lost += outcome.lost
            print(f'{name:17} {outcome.lost:4}  {outcome.what}', flush=True)
    print(f'{len(names)} faults, 0 runs lost, 0 silent differences, {lost} steps repeated or skipped')
    return 0


if __name__ == '__main__':
    sys.exit(main())
