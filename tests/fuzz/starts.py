"""Starts many training runs that fail, and checks how each ends:

    PYTHONPATH=. python tests/fuzz/starts.py [--starts 200] [--seed 0] [--at-once 2]

A start has mutated paths, environment, devices or fields; or a second start of the same work directory comes at a
random moment of the first. Each must either work (the last checkpoint exists and is readable) or end with one line and
an exit code other than 0, and then leave no new folder behind. Where two start together, one trains and
the other is refused, or they train one after the other, and no checkpoint is lost.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import functools
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.core.commands import silence_third_party_logs
from tests import runs
from tests.sampling import tiny

STEPS = 4
SECONDS = 600  # that a process may take
FOLDERS = (
    'run', 'a/b/run', 'with space', 'exp[1]', 'back\\slash', 'colon:name', 'ünï', 'x' * 300, '{a}', 'q?', 'star*', '~',
    '', 'file/run', 'file', 'readonly/run', 'gs://bucket/run', 'gcs://bucket/run', '-run', 'a@b+c',
)  # fmt: skip
ENVIRONMENTS = (
    {'JAX_PLATFORMS': 'tpu'}, {'JAX_PLATFORMS': 'cuda'}, {'JAX_PLATFORMS': 'cpuu'}, {'JAX_DEFAULT_PRNG_IMPL': 'rbg'},
    {'JAX_THREEFRY_PARTITIONABLE': '0'}, {'LC_ALL': 'C', 'PYTHONUTF8': '0'}, {'HOME': '/nowhere'},
    {'TMPDIR': '/nowhere'}, {'FV_JAX_CACHE': '/proc/nowhere'}, {'JAX_ENABLE_X64': '1'}, {'JAX_NUM_CPU_DEVICES': '2'},
    {'SLURM_JOB_ID': '7'},
)  # fmt: skip
FIELDS = (
    'data.train=/nowhere', 'data.heldout=/nowhere', 'stage.vae=/nowhere.pt', 'data.eval_clips=3', 'data.eval_clips=0',
    'loop.num_steps=0', 'loop.microbatches=3', 'data.loader.batch_size=3', 'data.height=33',
    'data.heldout_size=(9, 16, 33)', 'stage.network.param_dtype=bfloat16', 'stage.network.num_heads=5',
    'init_from=/nowhere', 'init_from=none', 'data.cache=none', 'parallel.context=3', 'parallel.fsdp=-1',
    'optim.algorithm=sgd', 'seed=-1', 'parallel.strategy=x',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Start:
    """A start that is mutated.

    Attributes:
      second: seconds after which the same run is started again; None for no second start.
    """

    folder: str = 'run'
    environment: tuple[tuple[str, str], ...] = ()
    fields: tuple[str, ...] = ()
    devices: int = 1
    second: float | None = None

    @classmethod
    def draw(cls, rng: np.random.Generator) -> 'Start':
        kind = rng.integers(5)
        if kind == 0:
            return cls(folder=str(rng.choice(FOLDERS)))
        if kind == 1:
            return cls(environment=tuple(ENVIRONMENTS[rng.integers(len(ENVIRONMENTS))].items()))
        if kind == 2:
            return cls(fields=(str(rng.choice(FIELDS)),))
        if kind == 3:
            return cls(devices=int(rng.integers(2, 9)), fields=tuple(rng.choice(FIELDS, rng.integers(2)).tolist()))
        return cls(second=float(rng.uniform(0, 12)))


def try_start(start: Start, world: Path, vae: Path, compiled: Path) -> str:
    """Returns the outcome of a start. Raises AssertionError."""
    (world / 'file').write_text('')
    (world / 'readonly').symlink_to('/proc')
    (home := world / 'home').mkdir()
    before = set(world.iterdir())
    workdir = start.folder if '://' in start.folder or start.folder in ('', '~') else str(world / start.folder)
    environment = runs.environment(compiled, start.devices) | {'HOME': str(home)} | dict(start.environment)
    if 'JAX_NUM_CPU_DEVICES' in environment:
        environment['XLA_FLAGS'] = ''
    arguments = runs.superres(Path('WORKDIR'), vae, f'--config.loop.num_steps={STEPS}')
    arguments = [argument.replace('--workdir=WORKDIR', f'--workdir={workdir}') for argument in arguments]
    if not any('heldout' in field or 'eval' in field for field in start.fields):
        arguments.append('--config.loop.eval_every=0')  # evaluation takes most of a short run's time
    arguments += [f'--config.{field}' for field in start.fields]
    processes = [runs.start(arguments, environment)]
    if start.second is not None:
        time.sleep(start.second)
        processes.append(runs.start(arguments, environment))
    ended = _communicate(processes)
    outcomes = [_check_result(start, code, error) for code, _, error in ended]
    if 'worked' in outcomes:
        workdir = home if workdir == '~' else Path(workdir)
        checkpoints = Checkpoints(workdir, read_only=True)
        assert checkpoints.steps[-1] == STEPS, f'{start}: the checkpoints are {checkpoints.steps}'
        assert all(checkpoints.verify(step) is None for step in checkpoints.steps), f'{start}: a checkpoint is damaged'
        assert not (workdir / 'run.lock').exists(), f'{start}: the lock is left'
    else:
        assert start.second is None, f'{start}: neither start worked: {ended}'
        assert set(world.iterdir()) == before, f'{start}: left {set(world.iterdir()) - before}: {ended}'
    return ' and '.join(outcomes)


def _communicate(processes: list) -> list[tuple[int, str, str]]:
    """(exit code, output, errors) of each, read side by side."""
    found: dict[int, tuple[str, str]] = {}

    def read(index: int) -> None:
        found[index] = processes[index].communicate(timeout=SECONDS)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(len(processes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [(process.returncode, *found[i]) for i, process in enumerate(processes)]


def _check_result(start: Start, code: int, error: str) -> str:
    # libtpu reports its own errors before JAX does.
    of_libtpu = dict(start.environment).get('JAX_PLATFORMS') == 'tpu'
    lines = [line for line in error.splitlines() if line.strip()][-1 if of_libtpu else 0 :]
    if code == 0:
        assert 'Traceback' not in error, f'{start}: {error}'
        return 'worked'
    assert len(lines) == 1 and lines[0].startswith('train: '), f'{start}: exit code {code}, {len(lines)} lines: {error}'
    return 'refused'


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='Starts training runs in ways that go wrong.')
    parser.add_argument('--starts', type=int, default=200)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--first', type=int, default=0, help='leave out the starts before this one')
    parser.add_argument('--at-once', type=int, default=2, help='processes')
    arguments = parser.parse_args(argv)
    silence_third_party_logs()
    rng, outcomes, wrong = np.random.default_rng(arguments.seed), collections.Counter(), []
    starts = [Start.draw(rng) for _ in range(arguments.starts)][arguments.first :]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        tiny.save_vae(root / 'vae.safetensors')
        attempt = functools.partial(_attempt, root=root)
        with concurrent.futures.ThreadPoolExecutor(arguments.at_once) as pool:
            for start, outcome, problem in pool.map(attempt, range(len(starts)), starts):
                kind = 'second start' if start.second is not None else 'start'
                outcomes[f'{kind}: {outcome}'] += 1
                if problem:
                    wrong.append(problem)
                    print(f'WRONG {problem}', flush=True)
    print(f'{len(starts)} starts: {dict(outcomes)}; {len(wrong)} not as they should be')
    return 1 if wrong else 0


def _attempt(index: int, start: Start, *, root: Path) -> tuple[Start, str, str]:
    world = root / f'world{index}'
    world.mkdir()
    try:
        return start, try_start(start, world, root / 'vae.safetensors', root / 'compiled'), ''
    except AssertionError as error:
        return start, 'wrong', str(error)


if __name__ == '__main__':
    sys.exit(main())
