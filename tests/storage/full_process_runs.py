"""Two processes that train into one bucket, a resume in one on another mesh: a part of check_services.sh."""

from fv_jax.core.paths import StoragePath, as_path
from tests import runs
from tests.parallel import joined
from tests.sampling import tiny
from tests.storage.faults import Fault

RESUME = '--config.loop.num_steps=4', '--config.parallel.data=1', '--config.parallel.context=4'


def arguments(run: StoragePath | str, folder, *more: str) -> list[str]:
    return runs.superres(run, folder / 'vae.safetensors', *joined.RUN, '--config.data.cache=none', *more)


def test_two_processes_and_a_resume_on_another_mesh_equal_a_local_run(gs_bucket, tmp_path):
    tiny.save_vae(tmp_path / 'vae.safetensors')
    local, remote = tmp_path / 'run', as_path(f'{gs_bucket.url}/run')
    for run in (local, remote):
        (output, other) = joined.train(arguments(run, tmp_path), 2)
        assert '4 cpu device(s) (data 2, context 2)' in output[2] and other == []
        (output,) = joined.train(arguments(run, tmp_path, *RESUME), 1)
        assert any('resuming from step 2 of 4' in line for line in output)
    assert runs.rows(remote) == runs.rows(local)
    for step in (2, 4):
        runs.assert_same(remote, local, step)
    assert not any('run.lock' in name for name in gs_bucket.sizes())


def test_two_processes_continue_after_a_save_that_failed(gs_bucket, tmp_path):
    """Of a file that both write, and of one that the first process writes."""
    tiny.save_vae(tmp_path / 'vae.safetensors')
    for pattern in ('checkpoints/2/.*ocdbt.process_1/', 'checkpoints/2/.*_METADATA'):
        run = as_path(f'{gs_bucket.url}/{len(pattern)}')
        with gs_bucket.proxy.inject(Fault(status=403, kinds=('upload',), pattern=pattern)) as fault:
            (output, _) = joined.train(arguments(run, tmp_path, '--config.loop.num_steps=4'), 2)
        assert fault.num_applied and any('step 2 could not be saved' in line for line in output), output
        assert 'saved step 4' in output and [path.name for path in (run / 'checkpoints').iterdir()] == ['4']
