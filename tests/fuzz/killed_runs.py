"""Kills a training run with SIGKILL, many times, and starts it again each time; it must end as the one that was not:

    PYTHONPATH=. python tests/fuzz/killed_runs.py [--kills 50] [--seed 0]

A kill comes at a random time after the process was started, after a random line that it says, or in the middle of a
save. Afterwards every number of the last checkpoint, every row of metrics.jsonl and every step saved must be those of a
run that was left alone, and nothing that a killed save left may be there.
"""

import argparse
import dataclasses
import functools
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tests import runs
from tests.sampling import tiny

Start = Callable[[list[str]], subprocess.Popen]  # arguments of the training command -> a process that runs it
STEPS, SAVE_EVERY = 240, 2


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a process is killed: once it has logged `line` (or so many lines of any kind), once a save is under way, and
    then after so many seconds.
    """

    line: str = ''
    lines: int = 0
    in_a_save: bool = False
    seconds: float = 0.0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> 'Moment':
        kind = rng.integers(3)
        if kind == 0:
            return cls(seconds=float(rng.uniform(0, 8)))
        if kind == 1:
            return cls(lines=int(rng.integers(1, 30)), seconds=float(rng.uniform(0, 0.3)))
        return cls(lines=4, in_a_save=True, seconds=float(rng.uniform(0, 0.05)))


def kill(process: subprocess.Popen, folder: Path, moment: Moment) -> None:
    """Returns when the process has ended, by our hand or, if it was faster, by itself."""
    output: list[str] = []
    reader = threading.Thread(target=lambda: output.extend(process.stdout), daemon=True)
    reader.start()

    def reach() -> bool:
        if len(output) < moment.lines or not any(line.startswith(moment.line) for line in [*output, '']):
            return False
        return not moment.in_a_save or any((folder / 'checkpoints').glob('*.*tmp*'))

    while process.poll() is None and not reach():
        time.sleep(0.002)
    time.sleep(moment.seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reader.join()


def kill_and_restart(start: Start, arguments: list[str], folder: Path, moments: Sequence[Moment]) -> list[int]:
    """Starts and kills the run, once for each moment, and lets it end; the newest checkpoint after each kill."""
    newest = []
    for moment in moments:
        before = newest[-1] if newest else 0
        kill(start(arguments), folder, moment)
        saved = runs.steps(folder) if (folder / 'checkpoints').is_dir() else []
        newest.append(max(saved, default=0))
        assert newest[-1] >= before, f'{moment}: step {before} was saved, and the newest is {newest[-1]}'
    out, err = (last := start(arguments)).communicate(timeout=900)
    assert last.returncode == 0 and 'Traceback' not in err, err
    assert newest[-1] == 0 or f'resuming from step {newest[-1]} of' in out or 'already at the last step' in out, out
    return newest


def assert_equals_uninterrupted(folder: Path, reference: Path, step: int) -> None:
    """Asserts that a run that was killed and resumed equals one that was not interrupted."""
    runs.assert_same(folder, reference, step)
    assert runs.rows(folder) == runs.rows(reference)
    assert runs.steps(folder) == runs.steps(reference)
    left = [path.name for path in (folder / 'checkpoints').iterdir() if not path.name.isdigit()]
    assert not left, left


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='Kills and restarts a training run.')
    parser.add_argument('--kills', type=int, default=50)
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args(argv)
    rng = np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        tiny.save_vae(temporary / 'vae.safetensors')
        start = functools.partial(runs.start, environment=runs.environment(temporary / 'compiled'))

        def flags(folder: Path) -> list[str]:
            loop = {'num_steps': STEPS, 'save_every': SAVE_EVERY, 'eval_every': 60, 'max_to_keep': STEPS}
            more = [f'--config.loop.{field}={value}' for field, value in loop.items()]
            return runs.superres(folder, temporary / 'vae.safetensors', *more)

        assert start(flags(temporary / 'whole')).wait() == 0
        moments = [Moment.draw(rng) for _ in range(arguments.kills)]
        newest = kill_and_restart(start, flags(temporary / 'killed'), temporary / 'killed', moments)
        assert_equals_uninterrupted(temporary / 'killed', temporary / 'whole', STEPS)
    saves, late = sum(moment.in_a_save for moment in moments), newest[:-1].count(STEPS)
    print(
        f'{arguments.kills} kills ({saves} of them in a save, {late} of a run that was complete) over steps {newest}: '
        'no number differs, no row is lost'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
