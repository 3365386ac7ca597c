"""What is missing, refused or impossible in a bucket is one line of the command, and nothing is half-written."""

import pytest

from fv_jax import convert, degrade, evaluate, export, inspect, plan, sample
from fv_jax.core import files
from fv_jax.core.paths import as_path
from fv_jax.data.video import encoding
from tests.data import sample_videos
from tests.sampling import tiny
from tests.storage.faults import Fault

DENIED = 'permission denied; check the credentials'


@pytest.fixture(scope='module')
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    tiny.save_pipeline_and_vae(folder)
    encoding.encode(folder / 'clip.mp4', sample_videos.pattern(9, 16, 16), 12)
    return folder


@pytest.fixture
def root(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv('FV_JAX_CACHE', str(tmp_path))
    return as_path(bucket.url)


def fail(capfd, code, command, *arguments) -> str:
    """Runs a command that fails; returns its one line of error."""
    capfd.readouterr()
    assert command.main([str(argument) for argument in arguments]) == code
    # TensorStore warns where there are no credentials.
    (error,) = [line for line in capfd.readouterr().err.splitlines() if 'google_auth_provider' not in line]
    assert error.startswith(f'{command.__name__.rpartition(".")[2]}: '), error
    return error


# (command, arguments, exit code, words of the line)
MISSING = [
    (sample, ('enhance', 'ROOT/none'), 2, 'ROOT/none: holds no stored preview (no latents.safetensors)'),
    (sample, ('reproduce', 'ROOT/none.mp4', '--output=ROOT/out.mp4'), 2, 'ROOT/none.mp4: no such file'),
    (
        sample,
        ('clip', '--checkpoint=embedded', '--input=ROOT/none.mp4', '--output=ROOT/out.mp4'),
        2,
        '--input=ROOT/none.mp4: no such file',
    ),
    (sample, ('preview', '--prompts=ROOT/none.txt', '--output=ROOT/out'), 2, '--prompts=ROOT/none.txt: '),
    (sample, ('vbench', '--prompts=ROOT/none.json', '--output=ROOT/out'), 2, '--prompts=ROOT/none.json: '),
    (
        sample,
        ('preview', '--prompt=a bee', '--output=ROOT/out', '--checkpoint=ROOT/none'),
        2,
        'ROOT/none: does not exist',
    ),
    (
        sample,
        ('preview', '--prompt=a bee', '--output=ROOT/out', '--official=ROOT/none'),
        1,
        'ROOT/none: no such folder',
    ),
    (export, ('--checkpoint=ROOT/none', '--output=ROOT/out.safetensors'), 1, 'ROOT/none: '),
    (convert, ('--input=ROOT/none.pt', '--output=ROOT/out.safetensors'), 2, '--input=ROOT/none.pt: does not exist'),
    (evaluate, ('--pairs=ROOT/none', '--output=ROOT/out'), 2, 'ROOT/none/GT: no such folder'),
    (evaluate, ('--checkpoint=ROOT/none', '--output=ROOT/out'), 1, 'ROOT/none: '),
    (evaluate, ('--pairs=LOCAL', '--output=ROOT/out', '--compare', 'ROOT/none,shift=1'), 2, 'ROOT/none does not exist'),
    (evaluate, ('--pairs=LOCAL', '--output=ROOT/out', '--metrics-folder=ROOT/none'), 2, 'ROOT/none: no such folder'),
    (inspect, ('ROOT/none',), 1, 'ROOT/none: does not exist'),
    (degrade, ('--input=ROOT/none.mp4', '--output=ROOT/out.png'), 1, 'ROOT/none.mp4: no such file'),
]


def title(row) -> str:
    return f'{row[0].__name__.rpartition(".")[2]} {" ".join(row[1])}'


@pytest.mark.parametrize(('command', 'arguments', 'code', 'words'), MISSING, ids=map(title, MISSING))
def test_missing_object(command, arguments, code, words, root, bucket, local, capfd):
    arguments = [text.replace('ROOT', str(root)).replace('LOCAL', str(local)) for text in arguments]
    assert words.replace('ROOT', str(root)) in fail(capfd, code, command, *arguments)
    assert bucket.sizes() == {}


WRITERS = [
    (sample, ('preview', '--prompt=a bee', '--output=ROOT/out')),
    (sample, ('vbench', '--prompts=ROOT/p.txt', '--output=ROOT/out')),
    (sample, ('clip', '--checkpoint=embedded', '--input=LOCAL/clip.mp4', '--output=ROOT/out.mp4')),
    (sample, ('reproduce', 'LOCAL/clip.mp4', '--output=ROOT/out.mp4')),
    (export, ('--checkpoint=LOCAL/stage2', '--output=ROOT/out.safetensors')),
    (convert, ('--input=LOCAL/stage2', '--output=ROOT/out.pt')),
    (evaluate, ('--pairs=LOCAL', '--output=ROOT/out')),
    (degrade, ('--input=LOCAL/clip.mp4', '--output=ROOT/out.png')),
]


@pytest.mark.parametrize(('command', 'arguments'), WRITERS, ids=map(title, WRITERS))
def test_denied_output_is_found_before_anything_is_computed(command, arguments, root, bucket, local, capfd):
    arguments = [text.replace('ROOT', str(root)).replace('LOCAL', str(local)) for text in arguments]
    with bucket.proxy.inject(Fault(status=403, kinds=('upload',))):
        error = fail(capfd, 2, command, *arguments)
    assert f'--output={root}/out' in error and 'cannot be written' in error and DENIED in error
    assert bucket.sizes() == {}


def test_denied_weights(root, bucket, local, capfd):
    files.write_bytes(root / 'vae.safetensors', (local / 'vae.safetensors').read_bytes())
    with bucket.proxy.inject(Fault(status=403, kinds=('read',), pattern='vae')):
        error = fail(capfd, 1, inspect, root / 'vae.safetensors')
    assert f'{root}/vae.safetensors: permission denied' in error


def test_denied_in_the_middle_of_an_export_leaves_nothing(gs_bucket, local, capfd):
    output = f'{gs_bucket.url}/out'
    with gs_bucket.proxy.inject(Fault(status=403, kinds=('upload',), pattern='README')):
        error = fail(capfd, 1, export, f'--checkpoint={local / "stage2"}', f'--output={output}')
    assert f'{output}/README.md: {DENIED}' in error
    assert gs_bucket.sizes() == {}


def test_checkpoints_are_refused_on_s3(s3_bucket, local, capfd):
    output = f'--output={s3_bucket.url}/out'
    error = fail(capfd, 2, convert, f'--input={local / "vae.safetensors"}', output)
    assert f'{output}: no checkpoint can be saved' in error
    assert s3_bucket.sizes() == {}


def test_json_of_a_plan_needs_a_folder(tmp_path, capfd):
    flags = '--only=sample', '--topology=h100-1', f'--json={tmp_path}/none/plan.json'
    assert 'its folder does not exist' in fail(capfd, 2, plan, *flags)
