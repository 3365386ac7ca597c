"""A list of prompts in a bucket whose process is killed between requests: a part of launch/check_services.sh."""

import random
import signal
import subprocess
import sys
import time

import pytest

from fv_jax.core.paths import as_path
from tests import runs
from tests.sampling import tiny
from tests.sampling.stored_files import content

COUNT, KILLS, LIMIT_S = 4, 3, 300


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp('weights')
    tiny.save_pipeline_and_vae(folder)
    (folder / 'prompts.txt').write_text('\n'.join(f'dog {i}' for i in range(COUNT)))
    return folder


@pytest.mark.parametrize('scheme', ['gs', 's3'])
def test_list_continues_after_kills_at_random_requests(scheme, request, weights, tmp_path):
    bucket = request.getfixturevalue(f'{scheme}_bucket')
    environment = runs.environment(weights / 'compiled') | bucket.environment | {'FV_JAX_CACHE': str(tmp_path)}

    def start(output) -> subprocess.Popen:
        flags = f'--checkpoint={weights}', f'--prompts={weights}/prompts.txt', f'--output={output}', '--batch-size=2'
        settings = '--enhance-all', '--stage1.num_steps=2', '--stage2.num_steps=1'
        command = [sys.executable, '-m', 'fv_jax.sample', 'preview', *flags, *settings]
        return subprocess.Popen(command, cwd=runs.ROOT, env=environment, stdout=subprocess.PIPE, text=True)

    def finish(output) -> None:
        process = start(output)
        out, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, out

    finish(tmp_path / 'whole')
    expected, run, rng = content(tmp_path / 'whole'), as_path(f'{bucket.url}/run'), random.Random(scheme)
    for kill in range(KILLS):
        bucket.proxy.reset()
        process, uploads = start(run), rng.randint(2, 5)
        while process.poll() is None and bucket.proxy.count('upload') < uploads:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        assert process.poll() is None, (kill, process.communicate()[0])
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=LIMIT_S)
        assert content(run).items() - {('.write-check', b'')} <= expected.items()
    finish(run)
    assert content(run) == expected
