"""Training runs in a bucket that are killed with SIGKILL 20 times and started again: a part of check_services.sh.

A kill comes after a random number of requests: in the start, in a save, an upload or a removal, which requests are
mostly made in. Whatever is complete can be read and equals the run that was not disturbed, and in the end so do the
parameters and the metrics.
"""

import concurrent.futures
import signal
import subprocess
import time
from collections.abc import Callable

import numpy as np
import orbax.checkpoint as ocp

from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.core.paths import StoragePath, as_path
from tests import runs
from tests.sampling import tiny
from tests.storage.faults import Fault
from tests.storage.proxy import Proxy

NUM_STEPS, SAVE_EVERY, KILLS, NUM_RUNS = 40, 4, 20, 2
KEPT = [NUM_STEPS - SAVE_EVERY, NUM_STEPS]
START, TRAIN = 150, 500  # requests before the first step, and those of a few saves
LIMIT_S = 600
LOOP = {'num_steps': NUM_STEPS, 'save_every': SAVE_EVERY, 'eval_every': 0}
SLOW = Fault(delay=0.005, kinds=('upload', 'delete', 'copy'))  # a request may arrive after its process was killed


def list_steps(run: StoragePath) -> list[int]:
    """Lists the complete checkpoints, without our own code."""
    return sorted(ocp.utils.checkpoint_steps(run / 'checkpoints'))


def kill(process: subprocess.Popen, requests: int, count: Callable[[], int]) -> None:
    """Kills a process after a number of requests, unless it ends before, and waits for its end."""
    started = count()
    while process.poll() is None and count() - started < requests:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode in (0, -signal.SIGKILL), err[-3000:]


def kill_repeatedly(
    start: Callable[[StoragePath], subprocess.Popen], run: StoragePath, proxy: Proxy, seed: int
) -> list[int]:
    """Kills a run and starts it again; returns its newest checkpoint after each time."""
    rng, newest, compared = np.random.default_rng(seed), [0], set()

    def count() -> int:
        return sum(request.call.name.startswith(f'{run.name}/') for request in list(proxy.requests))

    for _ in range(KILLS // NUM_RUNS):
        in_start = rng.random() < 0.3
        kill(start(run), rng.integers(START) if in_start else START + rng.integers(TRAIN), count)
        complete = list_steps(run)
        newest.append(max(complete, default=0))
        assert newest[-1] >= newest[-2], newest
        for step in set(complete) - compared:
            runs.assert_same(run, run.parent / 'whole', step)
            assert Checkpoints(run, read_only=True).verify(step) is None
            compared.add(step)
    return newest[1:]


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0 and 'Traceback' not in err, err[-3000:]
    return out


def test_killed_runs_equal_one_that_was_not_disturbed(gs_bucket, tmp_path):
    tiny.save_vae(tmp_path / 'vae.safetensors')
    environment = runs.environment(tmp_path / 'compiled') | gs_bucket.environment
    environment |= {'FV_JAX_CACHE': str(tmp_path / 'cache')}
    root = as_path(gs_bucket.url)

    def start(run: StoragePath, max_to_keep: int = 2) -> subprocess.Popen:
        loop = LOOP | {'max_to_keep': max_to_keep}
        flags = [f'--config.loop.{name}={value}' for name, value in loop.items()]
        return runs.start(runs.superres(run, tmp_path / 'vae.safetensors', *flags), environment)

    finish(start(root / 'whole', max_to_keep=NUM_STEPS))
    killed = [root / f'killed{i}' for i in range(NUM_RUNS)]
    with gs_bucket.proxy.inject(SLOW), concurrent.futures.ThreadPoolExecutor(NUM_RUNS) as pool:
        jobs = [pool.submit(kill_repeatedly, start, run, gs_bucket.proxy, i) for i, run in enumerate(killed)]
        newest = [job.result() for job in jobs]
    assert all(steps[-1] > 0 and steps[0] < NUM_STEPS for steps in newest), newest
    for process in [start(run) for run in killed]:
        finish(process)
    expected = runs.rows(root / 'whole')
    for run in killed:
        runs.assert_same(run, root / 'whole', NUM_STEPS)
        assert runs.rows(run) == expected
        assert list_steps(run) == KEPT
        names = {path.name for path in run.iterdir()}
        assert names == {'checkpoints', 'config.json', 'latents', 'metrics.jsonl', 'run.json', 'tensorboard'}
        assert sorted(path.name for path in (run / 'checkpoints').iterdir()) == [str(step) for step in KEPT]
        assert sorted(path.name for path in (run / 'latents').iterdir()) == sorted(
            path.name for path in (root / 'whole' / 'latents').iterdir()
        )
    print(f'newest checkpoints after each kill: {newest}')
