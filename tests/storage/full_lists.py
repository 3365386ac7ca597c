"""Lists of prompts in buckets are continued by the same command, whatever a process that was killed had uploaded."""

import json

import pytest

from fv_jax import sample
from fv_jax.core import files
from fv_jax.core.paths import as_path
from tests.sampling import grey
from tests.sampling.stored_files import content
from tests.storage.faults import Fault

PROMPTS = ('a dog', 'a cat', 'what is a bee?')


@pytest.fixture(autouse=True)
def pipeline(tmp_path, monkeypatch):
    monkeypatch.setenv('FV_JAX_CACHE', str(tmp_path))
    return grey.use_grey_pipeline(monkeypatch)


@pytest.fixture
def folder(bucket):
    path = as_path(bucket.url)
    files.write_text(path / 'prompts.txt', '\n'.join(PROMPTS))
    files.write_text(path / 'prompts.json', json.dumps([{'prompt_en': p, 'dimension': ['color']} for p in PROMPTS]))
    return path


def preview(run, *flags: str) -> int:
    return sample.main(['preview', f'--prompts={run.parent}/prompts.txt', f'--output={run}', '--batch-size=2', *flags])


def vbench(run) -> int:
    flags = f'--prompts={run.parent}/prompts.json', '--dimension=color', '--num-samples=2', '--batch-size=2'
    return sample.main(['vbench', f'--output={run}', *flags])


def list_uploads(bucket, run) -> list[str]:
    """Lists the objects of a folder in the order in which they were uploaded."""
    found = [request.call.name for request in bucket.proxy.requests if request.call.kind == 'upload']
    return [name for name in dict.fromkeys(found) if name.startswith(f'{run.name}/') and bucket.sizes().get(name)]


def test_preview_list_continues_after_a_kill_between_any_two_uploads(folder, bucket):
    run = folder / 'whole'
    assert preview(run, '--enhance-all') == 0
    whole, uploads = content(run), list_uploads(bucket, run)
    assert len(whole) == 3 * len(PROMPTS) + 1 and len(uploads) == len(whole)
    for count in (1, 4, 6, 8):
        killed = folder / f'killed_{count}'
        for name in uploads[:count]:
            bucket.write(name.replace(run.name, killed.name, 1), bucket.read(name))
        bucket.write(f'{killed.name}/.write-check', b'')  # of a check that was killed
        assert preview(killed, '--enhance-all') == 0
        assert content(killed) == whole, count


def test_preview_list_is_overwritten_after_a_failed_upload(folder, bucket, capfd):
    run = folder / 'run'
    assert preview(run, '--enhance-all') == 0
    whole = content(run)
    assert preview(run, '--enhance-all', '--seed=7', '--overwrite') == 0
    assert content(run).keys() == whole.keys() and content(run) != whole
    capfd.readouterr()
    with bucket.proxy.inject(Fault(status=403, kinds=('upload',), pattern='run/1/latents')):
        assert preview(run, '--enhance-all', '--overwrite') == 1
    error = capfd.readouterr().err
    assert '1 of 3 previews failed' in error and error.count('\n') == 1
    assert '1/latents.safetensors' not in files.list_files(run)  # none of two previews
    assert preview(run, '--enhance-all', '--overwrite') == 0
    assert content(run) == whole


def test_vbench_list_continues_without_copies_of_its_videos(folder, bucket, tmp_path):
    run = folder / 'whole'
    assert vbench(run) == 0
    whole, uploads = content(run), list_uploads(bucket, run)
    assert sorted(whole) == sorted(f'{prompt}-{i}.mp4' for prompt in PROMPTS for i in range(2))
    for name in uploads[:3]:
        bucket.write(name.replace(run.name, 'killed', 1), bucket.read(name))
    assert vbench(folder / 'killed') == 0
    assert content(folder / 'killed') == whole
    assert not (tmp_path / 'files').exists()
