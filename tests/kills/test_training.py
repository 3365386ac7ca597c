"""Training runs in processes of their own: killed, preempted, stalled, and resumed."""

import functools
import json
import re
import shutil
import signal
import subprocess

import pytest

from fv_jax.core import exit_codes
from tests import runs
from tests.fuzz.faults import SOURCE_BLOCKS, STALLED_SAVE
from tests.fuzz.killed_runs import Moment, assert_equals_uninterrupted, kill_and_restart

LOOP = (
    '--config.loop.num_steps=20',
    '--config.loop.save_every=2',
    '--config.loop.eval_every=20',
    '--config.loop.max_to_keep=50',
)


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp('compiled')
    with runs.shared_compiling(folder):
        yield folder


@pytest.fixture(scope='module')
def process(compiled):
    """Arguments of the training command -> a process that runs it."""
    return functools.partial(runs.start, environment=runs.environment(compiled))


def finish(process: subprocess.Popen) -> str:
    """Returns the output of a process, which must succeed without errors or warnings."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and err == '', err
    return out


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory, process, vae_file):
    """A run of stage 2 that was not stopped."""
    folder = tmp_path_factory.mktemp('whole') / 'run'
    finish(process(runs.superres(folder, vae_file, *LOOP)))
    return folder


def test_resume_after_sigkill_is_bit_exact(uninterrupted, process, vae_file, tmp_path):
    """Between saves and inside one; `tests/fuzz/killed_runs.py` does it at 50 moments."""
    folder = tmp_path / 'run'
    moments = Moment(line='saved step 4'), Moment(lines=4, in_a_save=True, seconds=0.01)
    newest = kill_and_restart(process, runs.superres(folder, vae_file, *LOOP), folder, moments)
    assert 4 <= newest[0] <= newest[1] < 20
    assert_equals_uninterrupted(folder, uninterrupted, 20)


def test_resume_after_preemption_is_bit_exact(uninterrupted, process, vae_file, tmp_path):
    folder = tmp_path / 'run'
    arguments = runs.superres(folder, vae_file, *LOOP)
    with process(arguments) as preempted:
        for line in preempted.stdout:
            if line.startswith('step  5/'):
                preempted.send_signal(signal.SIGTERM)
        (line,) = preempted.stderr.read().splitlines()
    assert preempted.returncode == exit_codes.PREEMPTED == 75
    saved = runs.steps(folder)[-1]
    assert f'preempted at step {saved}, which is saved; run the same command again' in line and 5 <= saved < 20
    assert f'resuming from step {saved} of 20' in finish(process(arguments))
    assert runs.rows(folder) == runs.rows(uninterrupted)
    runs.assert_same(folder, uninterrupted, 20)
    starts = json.loads((folder / 'run.json').read_text())
    assert [start['step'] for start in starts] == [0, saved]
    assert starts[0]['command'][:3] == ['python', '-m', 'fv_jax.train'] and starts[0]['command'][3:] == arguments


def test_stalled_data_source_ends_the_run_with_all_stacks(process, vae_file, tmp_path):
    flags = *LOOP, '--config.loop.stall_timeout_minutes=0.1'
    stalled = process(runs.superres(tmp_path / 'run', vae_file, *flags), first=SOURCE_BLOCKS)
    _, err = stalled.communicate(timeout=300)
    assert stalled.returncode == exit_codes.STALLED and (tmp_path / 'run' / 'checkpoints' / '2').is_dir()
    assert err.startswith('STALLED: no progress for 6 s while waiting for data') and re.search(
        r'"<string>", line \d+ in train\n', err
    )


def test_stalled_save_ends_the_run(process, vae_file, tmp_path):
    flags = *LOOP, '--config.loop.stall_timeout_minutes=0.1'
    stalled = process(runs.superres(tmp_path / 'run', vae_file, *flags), first=STALLED_SAVE)
    out, err = stalled.communicate(timeout=300)
    assert stalled.returncode == exit_codes.STALLED and 'step  4/20' in out and 'saved' not in out
    assert err.startswith('STALLED: an asynchronous save has not ended for 6 s') and 'in mkdir' in err


def test_full_disk_stops_the_run_and_keeps_earlier_checkpoints(uninterrupted, process, vae_file, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(uninterrupted, folder)
    for step in runs.steps(folder):
        if step > 4:
            shutil.rmtree(folder / 'checkpoints' / str(step))
    flags = *LOOP, '--config.loop.max_failed_saves=1'
    out, line = (full := process(runs.superres(folder, vae_file, *flags), largest_file=32_000)).communicate(timeout=300)
    assert full.returncode == 1 and len(line.splitlines()) == 1, line
    (warning,) = [output for output in out.splitlines() if output.startswith('WARNING')]
    assert 'step 6 could not be saved' in warning and 'config.loop.max_failed_saves' in warning
    assert line.startswith('train: ') and 'step 8 could not be saved' in line
    assert 'the newest checkpoint is step 4' in line
    assert runs.steps(folder) == [2, 4]
    runs.assert_same(folder, uninterrupted, 4)
