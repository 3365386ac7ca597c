"""Training runs in a bucket: stopped and resumed, their lock, their metrics; and what is refused."""

import dataclasses
import json
import os
import re
import signal
import threading
import time

import jax.numpy as jnp
import pytest

from fv_jax import train
from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.core import exit_codes, files
from fv_jax.core.command_line import UsageError
from fv_jax.core.paths import as_path
from fv_jax.core.storage import append
from fv_jax.training.monitoring import metric_writer
from fv_jax.training.monitoring.metric_writer import JSONL, MetricWriter
from fv_jax.training.monitoring.profiler import Profiler, ProfileSteps
from fv_jax.training.run import launch_record, run_lock
from fv_jax.training.run.run_lock import LOCK, RunLock, lock_run
from tests import runs
from tests.storage.faults import Fault

LOOP = {'num_steps': 6, 'save_every': 2, 'eval_every': 0}
FLAGS = *(f'--config.loop.{name}={value}' for name, value in LOOP.items()), '--config.data.cache=none'


@pytest.fixture
def folder(gs_bucket):
    return as_path(f'{gs_bucket.url}/runs/a')


# A run.


def test_run_in_a_bucket_is_stopped_and_resumed_as_a_local_one(folder, vae_file, tmp_path, monkeypatch, capsys):
    with runs.shared_compiling(tmp_path / 'compiled'):
        assert train.main(runs.superres(tmp_path / 'run', vae_file, *FLAGS)) == 0
        capsys.readouterr()
        arguments = runs.superres(folder, vae_file, *FLAGS)
        with monkeypatch.context() as patch:
            patch.setattr(MetricWriter, 'scalars', stop_after(1))
            assert train.main(arguments) == exit_codes.PREEMPTED
        (stopped,) = re.findall(r'preempted at step (\d), which is saved', capsys.readouterr().err)
        assert 2 <= int(stopped) < 6 and train.main(arguments) == 0
    assert f'resuming from step {stopped} of 6' in capsys.readouterr().out
    assert runs.rows(folder) == runs.rows(tmp_path / 'run')
    runs.assert_same(folder, tmp_path / 'run', 6)
    names = {path.name for path in folder.iterdir()}
    assert names == {'checkpoints', 'config.json', 'metrics.jsonl', 'run.json', 'tensorboard'}
    assert [start['step'] for start in json.loads((folder / launch_record.RUN).read_text())] == [0, int(stopped)]


def stop_after(last, scalars=MetricWriter.scalars):
    """Returns the method of a metric writer that sends SIGTERM when it writes the metrics of a step."""

    def write(self, step, values, text):
        if step == last and 'loss' in values:
            os.kill(os.getpid(), signal.SIGTERM)
        scalars(self, step, values, text)

    return write


def test_run_on_s3_is_refused_before_anything_is_created(s3_bucket, vae_file, capsys):
    assert train.main(runs.superres(f'{s3_bucket.url}/run', vae_file, *FLAGS)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'train: --workdir={s3_bucket.url}/run: ') and 'gs://' in line and 'export' in line
    assert not s3_bucket.sizes() and not s3_bucket.proxy.count('upload')


def test_start_that_fails_leaves_nothing_in_the_bucket(folder, gs_bucket, vae_file, tmp_path, capsys):
    code = train.main(runs.superres(folder, vae_file, *FLAGS, f'--config.init_from={tmp_path}/nowhere.pt'))
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and 'nowhere.pt' in line and not gs_bucket.sizes()


# Its lock.


def rewrite(folder, **fields):
    files.write_json(folder / LOCK, json.loads((folder / LOCK).read_text()) | fields)


def test_lock_refuses_a_second_run_and_is_removed_at_the_end(folder, gs_bucket):
    with lock_run(folder) as check:
        check()
        with pytest.raises(UsageError, match=rf'another run trains there \(process {os.getpid()} on '):
            lock_run(folder).__enter__()
        assert list(gs_bucket.sizes()) == [f'runs/a/{LOCK}']
    assert not gs_bucket.sizes()


def test_one_of_many_takes_a_stale_lock_at_once(folder, monkeypatch):
    lock = RunLock(folder)
    rewrite(folder, process_start='1')
    taken, refused = [], []
    monkeypatch.setattr(run_lock, 'SETTLE_S', 0.05)
    monkeypatch.setattr(run_lock, 'update', update_together(8))

    def take():
        try:
            taken.append(RunLock(folder))
        except UsageError:
            refused.append(True)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1 and len(refused) == 7
    assert lock.is_lost() and not taken[0].is_lost()
    lock.release()
    taken[0].release()


def update_together(count):
    """Returns `files.update` whose first calls in so many threads have all read the file before one writes it."""
    barrier, met = threading.Barrier(count), set()

    def update(path, change):
        def change_together(content):
            if threading.get_ident() not in met:
                met.add(threading.get_ident())
                barrier.wait(timeout=60)
            return change(content)

        return files.update(path, change_together)

    return update


def test_heartbeat_of_a_suspended_process_leaves_the_lock_of_its_successor(folder, gs_bucket, monkeypatch):
    """It had read its lock before it was suspended: only the bucket can refuse what it writes."""
    monkeypatch.setattr(run_lock, 'HEARTBEAT_S', 0.05)
    lock = RunLock(folder)
    with gs_bucket.proxy.inject(Fault(delay=1.0, kinds=('upload',), pattern=LOCK, times=1)) as suspended:
        while not suspended.num_applied:
            time.sleep(0.01)
        gs_bucket.write(f'runs/a/{LOCK}', json.dumps(dataclasses.asdict(lock._mine) | {'token': 'successor'}).encode())
        time.sleep(1.5)
    assert json.loads((folder / LOCK).read_text())['token'] == 'successor' and lock.is_lost()
    lock.release()
    assert (folder / LOCK).exists()


def test_run_that_lost_its_lock_stops_and_one_that_cannot_read_it_continues(folder, gs_bucket, log_lines):
    with lock_run(folder) as check:
        with gs_bucket.proxy.inject(Fault(status=403, pattern=LOCK)):
            check()
        assert 'run.lock: cannot be read' in log_lines[0] and 'permission denied' in log_lines[0]
        rewrite(folder, token='another')
        with pytest.raises(CheckpointError, match='another process has taken'):
            check()


# Its metrics and traces.


def lines(folder):
    return [json.loads(line)['step'] for line in (folder / JSONL).read_text().splitlines()]


def test_metrics_are_complete_when_a_checkpoint_is_saved_and_not_doubled_by_a_resume(folder, gs_bucket, monkeypatch):
    monkeypatch.setattr(append, 'INTERVAL_S', 60.0)
    writer = MetricWriter(folder, start_step=0)
    for step in (1, 2):
        writer.scalars(step, {'loss': 1.0}, '')
    assert gs_bucket.proxy.count('upload') == 0
    writer.flush()
    assert lines(folder) == [1, 2] and gs_bucket.proxy.count('upload') == 2
    writer.flush()
    assert gs_bucket.proxy.count('upload') == 2  # nothing is new
    writer.scalars(3, {'loss': 1.0}, '')
    writer.rewind(1)
    writer.scalars(2, {'loss': 2.0}, '')
    writer.close()
    assert lines(folder) == [1, 2]
    with MetricWriter(folder, start_step=1) as resumed:
        resumed.scalars(2, {'loss': 3.0}, '')
    assert lines(folder) == [1, 2] and len(list((folder / metric_writer.TENSORBOARD).iterdir())) >= 2


def test_metrics_that_cannot_be_written_are_kept(folder, gs_bucket, log_lines):
    writer = MetricWriter(folder, start_step=0)
    writer.scalars(1, {'loss': 1.0}, '')
    with gs_bucket.proxy.inject(Fault(status=403, kinds=('upload',))):
        writer.flush()
    assert log_lines[-1].startswith('WARNING: metrics are kept in memory: ') and 'permission denied' in log_lines[-1]
    writer.close()
    assert lines(folder) == [1]


def test_profile_is_copied_to_the_bucket(folder, gs_bucket, log_lines):
    with Profiler(ProfileSteps(1, 1), folder / 'profile') as trace:
        for step in (1, 2):
            trace(step, jnp.ones(3))
    (name,) = (name for name in gs_bucket.sizes() if name.endswith('.xplane.pb'))
    assert name.startswith('runs/a/profile/plugins/profile/') and f'{folder}/profile' in log_lines[0]
