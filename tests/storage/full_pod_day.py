"""The day of somebody who trains on a pod, with nothing but URLs: a part of launch/check_services.sh.

Videos in a bucket -> prepare -> train in two processes -> SIGTERM -> resume in one process on another mesh -> sample ->
evaluate -> export -> inspect, on 8 simulated devices and a local server of the bucket.
"""

import json
import signal

import numpy as np
from safetensors.numpy import load

from fv_jax.data.video import decoding
from tests import runs
from tests.storage.pods import CLIPS, LIMIT_S, STEPS, Pod, await_object, losses, pod, train, upload_vae, upload_videos


def preempt(pod: Pod, bucket, arguments: list[str]) -> None:
    """Trains in two processes of 4 devices each, and ends them by a SIGTERM of one after a few steps."""
    variables = pod.variables | {'XLA_FLAGS': pod.variables['XLA_FLAGS'].replace('count=8', 'count=4')}
    mesh = '--config.parallel.data=-1', '--config.parallel.context=1'
    started = runs.start_several(pod.name_bucket([*arguments, *mesh]), variables, 2)
    await_object(bucket, started, 'runs/a/checkpoints/4/')
    started[1].send_signal(signal.SIGTERM)
    for process in started:
        out, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 75, (process.returncode, out[-3000:], err[-3000:])


def test_the_day_of_a_pod_user(gs_bucket, tmp_path):
    bucket = gs_bucket
    day = pod(bucket, tmp_path)
    upload_videos(bucket, tmp_path)
    upload_vae(bucket, tmp_path)
    output = day.run('prepare', '--input=BUCKET/videos', '--output=BUCKET/clips', *CLIPS)
    assert f'{bucket.url}/clips' in output
    assert any(name.endswith('.array_record') for name in bucket.sizes() if name.startswith('clips/'))

    preempt(day, bucket, train('BUCKET/runs/a'))
    before = losses(bucket, 'runs/a')
    assert 4 <= max(before) < STEPS
    mesh = '--config.parallel.data=2', '--config.parallel.context=4'
    day.run('train', *train('BUCKET/runs/a', *mesh))
    day.run('train', *train('BUCKET/runs/undisturbed', *mesh))
    resumed, undisturbed = losses(bucket, 'runs/a'), losses(bucket, 'runs/undisturbed')
    assert list(resumed) == list(undisturbed) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(resumed.values()), list(undisturbed.values()), rtol=1e-4)

    clip = '--checkpoint=BUCKET/runs/a', '--input=BUCKET/videos/0.mp4', '--scale=1'
    day.run('sample', 'clip', *clip, '--output=BUCKET/out/larger.mp4')
    (tmp_path / 'larger.mp4').write_bytes(bucket.read('out/larger.mp4'))
    assert decoding.probe(tmp_path / 'larger.mp4').frames == 60

    day.run('evaluate', '--checkpoint=BUCKET/runs/a', '--num-clips=1', '--output=BUCKET/report')
    report = json.loads(bucket.read('report/report.json'))
    assert np.isfinite(report['losses']['model']) and b'<html' in bucket.read('report/report.html')

    day.run('export', '--checkpoint=BUCKET/runs/a', '--output=BUCKET/exported')
    assert any(name.startswith('exported/') for name in bucket.sizes())
    shown = day.run('inspect', 'BUCKET/runs/a')
    assert str(STEPS) in shown and 'preempted' not in shown.lower().splitlines()[0]


def test_the_same_with_data_weights_and_results_on_s3(s3_bucket, tmp_path):
    bucket = s3_bucket
    day = pod(bucket, tmp_path)
    upload_videos(bucket, tmp_path)
    upload_vae(bucket, tmp_path)
    day.run('prepare', '--input=BUCKET/videos', '--output=BUCKET/clips', *CLIPS)
    refused = day.run('train', *train('BUCKET/runs/a'), code=2)
    assert f'{bucket.url}/runs/a' in refused and refused.count('\n') == 1
    four = '--config.loop.num_steps=4', '--config.parallel.data=8', '--config.parallel.context=1'
    day.run('train', *train(f'{tmp_path}/run', *four))
    day.run('export', f'--checkpoint={tmp_path}/run', '--output=BUCKET/exported.safetensors')
    assert load(bucket.read('exported.safetensors'))
    clip = f'--checkpoint={tmp_path}/run', '--input=BUCKET/videos/0.mp4', '--scale=1'
    day.run('sample', 'clip', *clip, '--output=BUCKET/out/larger.mp4')
    day.run('evaluate', f'--checkpoint={tmp_path}/run', '--num-clips=1', '--output=BUCKET/report')
    assert json.loads(bucket.read('report/report.json'))['losses'] and bucket.sizes()['out/larger.mp4'] > 1000
