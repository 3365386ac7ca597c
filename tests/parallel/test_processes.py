"""A training run of two and of four processes, joined over gloo, is the run of one: same batches, same numbers."""

import signal
import subprocess

import numpy as np
import pytest

from fv_jax.core.exits import PREEMPTED
from tests import runs
from tests.inference import tiny

DEVICES = 4
# Of four processes, two share the tokens of a row and must read the same rows.
MESH = ('--config.parallel.data=2', '--config.parallel.context=2')
RUN = (
    '--config.data.loader.batch_size=2',
    '--config.loop.num_steps=2',
    '--config.loop.eval_every=0',
    '--config.loop.save_every=2',
    # Large, or Adam, which divides by a gradient's size, makes much of the last bit of the small ones.
    '--config.optim.eps=1.0',
)


def start(arguments: list[str], processes: int) -> list[subprocess.Popen]:
    """The command in so many processes."""
    environment = runs.environment(devices=DEVICES // processes)
    if processes == 1:
        return [runs.start(arguments, environment)]
    return runs.start_several(arguments, environment, processes)


def train(arguments: list[str], processes: int) -> list[list[str]]:
    """Runs the command in so many processes; the lines that each of them said."""
    started = start(arguments, processes)
    try:
        said = [process.communicate(timeout=600) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, err) in zip(started, said, strict=True):
        assert process.returncode == 0, err
    # The library that joins processes says so itself.
    return [[line for line in out.splitlines() if line and not line.startswith('[Gloo]')] for out, _ in said]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('processes')


@pytest.fixture(scope='module')
def run(folder):
    tiny.save_vae(folder / 'vae.safetensors')

    def run(processes):
        workdir = folder / f'of_{processes}'
        said = train(runs.superres(workdir, folder / 'vae.safetensors', *MESH, *RUN), processes)
        return workdir, said

    return run


@pytest.fixture(scope='module')
def one(run):
    return run(1)[0]


@pytest.mark.parametrize('processes', [2, 4])
def test_several_processes_are_one(one, run, processes):
    workdir, (first, *others) = run(processes)
    assert '4 cpu device(s) (data 2, context 2)' in first[2] and 'saved step 2' in first
    assert others == [[]] * (processes - 1)
    rows, expected = runs.rows(workdir), runs.rows(one)
    assert [row.keys() for row in rows] == [row.keys() for row in expected] and len(rows) == 2
    for row, other in zip(rows, expected, strict=True):
        for name, value in other.items():
            np.testing.assert_allclose(row[name], value, rtol=1e-5, err_msg=name)
    numbers, expected = runs.arrays(workdir, 2), runs.arrays(one, 2)
    assert numbers.keys() == expected.keys()
    for name, value in expected.items():
        scale = np.abs(value).max() or 1
        np.testing.assert_allclose(numbers[name] / scale, value / scale, atol=1e-5, err_msg=name)


def test_a_signal_to_one_process_ends_all_at_the_same_step(folder):
    """With one checkpoint, from which a single process goes on, with the same batches."""
    workdir = folder / 'preempted'
    more = '--config.loop.num_steps=40', '--config.loop.save_every=100'
    flags = runs.superres(workdir, folder / 'vae.safetensors', *MESH, *RUN, *more)
    tiny.save_vae(folder / 'vae.safetensors')
    first, second = started = start(flags, 2)
    try:
        for line in first.stdout:
            if line.startswith('step  2/'):
                second.send_signal(signal.SIGTERM)
            if line.startswith('saved step'):
                break
        ended = [process.wait(timeout=300) for process in started]
        errors = [process.stderr.read() for process in started]
    finally:
        for process in started:
            process.kill()
    assert ended == [PREEMPTED] * 2, errors
    (step,) = runs.steps(workdir)
    assert 2 <= step < 40 and all(f'preempted at step {step}, which is saved' in error for error in errors)
    go_on = f'--config.loop.num_steps={step + 1}'
    (said,) = train([*flags, go_on], 1)
    assert f'going on from step {step} of {step + 1}' in said and runs.steps(workdir) == [step, step + 1]
    assert [row['step'] for row in runs.rows(workdir)] == list(range(1, step + 2))
