"""Training from and into a bucket that fails: no run is lost, nothing differs silently. A part of check_services.sh."""

from collections.abc import Iterator

import numpy as np
import pytest

from tests import runs
from tests.storage.buckets import Bucket, make_bucket
from tests.storage.faults import Fault
from tests.storage.pods import CLIPS, LIMIT_S, STEPS, Pod, await_object, losses, pod, train, upload_vae, upload_videos

MESH = '--config.parallel.data=-1', '--config.parallel.context=1'


@pytest.fixture(scope='module')
def faulty(gs_proxy) -> Iterator[Bucket]:
    with make_bucket(gs_proxy, 'training-faults') as bucket:
        yield bucket


@pytest.fixture(scope='module')
def day(faulty, tmp_path_factory) -> Pod:
    """Clips and a VAE in the bucket, and the run `runs/undisturbed`."""
    folder = tmp_path_factory.mktemp('day')
    day = pod(faulty, folder)
    upload_videos(faulty, folder)
    upload_vae(faulty, folder)
    day.run('prepare', '--input=BUCKET/videos', '--output=BUCKET/clips', *CLIPS)
    day.run('train', *train('BUCKET/runs/undisturbed', *MESH))
    return day


def start(day: Pod, workdir: str, *more: str):
    variables = day.variables | {'FV_JAX_CACHE': f'{day.variables["FV_JAX_CACHE"]}-{workdir.replace("/", "-")}'}
    return runs.start(day.name_bucket(train(f'BUCKET/{workdir}', *MESH, *more)), variables)


def finish(process, code: int) -> str:
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code, (process.returncode, out[-3000:], err[-3000:])
    assert 'Traceback' not in err, err[-3000:]
    return out + err


def assert_undisturbed(bucket, workdir: str) -> None:
    found, expected = losses(bucket, workdir), losses(bucket, 'runs/undisturbed')
    assert list(found) == list(expected) == list(range(1, STEPS + 1))
    np.testing.assert_array_equal(list(found.values()), list(expected.values()))


def test_faults_that_pass_change_nothing(faulty, day):
    with faulty.proxy.inject(Fault(status=503, every=10)):
        assert 'is repeated' in finish(start(day, 'runs/503'), 0)
    assert_undisturbed(faulty, 'runs/503')
    cut = Fault(cut_after=1000, kinds=('read',), pattern='clips/.*array_record', times=3)
    with faulty.proxy.inject(cut):
        finish(start(day, 'runs/cut'), 0)
    assert cut.num_applied == 3
    assert_undisturbed(faulty, 'runs/cut')
    process = start(day, 'runs/away')
    await_object(faulty, [process], 'runs/away/checkpoints/4/')
    faulty.proxy.start_outage(20)
    assert 'is repeated' in finish(process, 0)
    assert_undisturbed(faulty, 'runs/away')


def test_permission_denied_at_the_start_and_in_the_middle(faulty, day):
    with faulty.proxy.inject(Fault(status=403)):
        output = finish(start(day, 'runs/denied'), 2)
    assert output.count('\n') == 1 and 'permission denied' in output and 'runs/denied' in output
    assert not any(name.startswith('runs/denied') for name in faulty.sizes())
    process = start(day, 'runs/denied', '--config.loop.max_failed_saves=0')
    await_object(faulty, [process], 'runs/denied/checkpoints/4/')
    with faulty.proxy.inject(Fault(status=403, kinds=('upload', 'delete', 'batch'))):
        assert 'permission denied' in finish(process, 1)
    finish(start(day, 'runs/denied'), 0)
    assert_undisturbed(faulty, 'runs/denied')


def test_cache_that_holds_no_shard_is_refused(faulty, day):
    output = finish(start(day, 'runs/small', '--config.data.cache_gb=0.000001'), 1)
    assert 'cache_gb' in output.splitlines()[-1]


def test_shard_that_is_replaced_under_its_name_is_refused(faulty, day):
    (name, *_) = (name for name in faulty.sizes() if name.endswith('.array_record'))
    replaced = faulty.read(name)[:-1] + b'x'
    with faulty.proxy.inject(Fault(replacement=replaced, kinds=('read',), pattern=name, times=1)):
        output = finish(start(day, 'runs/replaced'), 1)
    assert name in output.splitlines()[-1] and 'replaced' in output.splitlines()[-1]
