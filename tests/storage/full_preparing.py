"""`prepare` with videos and shards in a bucket: by two workers or two processes of a job, killed and continued, with
more videos.
"""

import subprocess
import sys

import pytest

from fv_jax.data.shards.shard_files import list_shards, read_records
from tests import runs
from tests.data import sample_videos
from tests.storage.pods import CLIPS, await_object, pod, upload_vae, upload_videos

COMMAND = ('--input=BUCKET/videos', '--output=BUCKET/clips', *CLIPS, '--config.shard_mb=0.001', '--workers=2')


def read_all(bucket, tmp_path, names) -> list[tuple]:
    """Returns source, first frame and content of the clips of the shards among `names`."""
    folder = tmp_path / 'read'
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name in names:
        if name.endswith('.array_record'):
            (folder / name.rpartition('/')[2]).write_bytes(bucket.read(name))
    return [(r['source'], r['start_frame'], r['caption'], r['video']) for r in read_records(list_shards(folder))]


@pytest.mark.parametrize('kind', ['gs_bucket', 's3_bucket'])
def test_set_in_a_bucket_is_continued_and_added_to(kind, request, tmp_path):
    bucket = request.getfixturevalue(kind)
    day = pod(bucket, tmp_path)
    upload_videos(bucket, tmp_path)
    day.run('prepare', *COMMAND, '--output=BUCKET/whole')
    whole = read_all(bucket, tmp_path, [name for name in bucket.sizes() if name.startswith('whole/')])
    assert {source for source, *_ in whole} == {f'{i}.mp4' for i in range(3)}

    command = [sys.executable, '-m', 'fv_jax.prepare', *day.name_bucket(COMMAND)]
    process = subprocess.Popen(command, cwd=day.folder, env=day.variables)
    await_object(bucket, [process], 'clips/.clips.partial/0000000.json')
    process.kill()
    process.wait()
    day.run('prepare', *COMMAND)
    names = [name for name in bucket.sizes() if name.startswith('clips/')]
    assert not [name for name in names if '.partial' in name]
    assert read_all(bucket, tmp_path, names) == whole

    before = {name: bucket.read(name) for name in names}
    sample_videos.write_two_shots(tmp_path / 'new.mp4', frames=40)
    bucket.write('videos/1a.mp4', (tmp_path / 'new.mp4').read_bytes())
    bucket.write('videos/1a.txt', b'new')
    assert 'adding 1 video(s); 3 were prepared before' in day.run('prepare', *COMMAND)
    after = {name: bucket.read(name) for name in bucket.sizes() if name.startswith('clips/')}
    assert before.items() <= after.items() and 'clips/clips.1.json' in after
    more = read_all(bucket, tmp_path, [name for name in after if 'clips.1-' in name])
    assert {source for source, *_ in more} == {'1a.mp4'}
    assert 'clips.1: ' in day.run('inspect', 'BUCKET/clips')


def test_latents_of_two_processes_are_in_a_bucket_as_of_one(gs_bucket, tmp_path):
    """The first try is killed."""
    day = pod(gs_bucket, tmp_path)
    day.variables |= {'XLA_FLAGS': runs.environment()['XLA_FLAGS']}  # one device a process
    upload_videos(gs_bucket, tmp_path)
    upload_vae(gs_bucket, tmp_path)
    latents = (*COMMAND, '--config.latents.vae=BUCKET/weights/vae.safetensors', '--config.text.encoder=hash')
    day.run('prepare', *latents, '--output=BUCKET/whole')

    def start() -> list[subprocess.Popen]:
        port, pipes = runs.free_port(), {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
        command = [sys.executable, '-m', 'fv_jax.prepare', *day.name_bucket(latents)]
        joins = [[f'--coordinator=127.0.0.1:{port}', '--num-processes=2', f'--process-id={i}'] for i in range(2)]
        return [subprocess.Popen([*command, *join], cwd=day.folder, env=day.variables, **pipes) for join in joins]

    started = start()
    await_object(gs_bucket, started, 'clips/.clips.partial/0000000.json')
    for process in started:
        process.kill()
        process.wait()
    assert not any(name.startswith('clips/clips') for name in gs_bucket.sizes())
    started = start()
    ended = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    assert 'continuing clips: ' in ended[0][0] and '2 processes share the shards' in ended[0][0]
    sets = [
        {name.partition('/')[2]: gs_bucket.read(name) for name in gs_bucket.sizes() if name.startswith(f'{folder}/')}
        for folder in ('clips', 'whole')
    ]
    assert sets[0] == sets[1] and len(sets[0]) == 3 + 3
