"""`prepare` in processes of its own, killed at random moments and started again: the set is as of an undisturbed run.

With Apache Beam (extra `beam`) also under its DirectRunner; without it that part is skipped.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fv_jax.data.shards.shard_files import list_shards, read_records
from tests import runs
from tests.data import sample_videos

KILLS = 20
FLAGS = ['--config.frames=9', '--config.height=64', '--config.width=96', '--config.shard_mb=0.001']
FLAGS += ['--config.preset=ultrafast', '--config.detector=none']
KINDS = {
    'pool': ['--workers=2'],
    'beam': ['--runner=DirectRunner'],
}
NEEDS_BEAM = pytest.mark.skipif(importlib.util.find_spec('apache_beam') is None, reason='needs the extra beam')
VIDEOS = 30


@pytest.fixture(scope='module')
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('videos')
    for i in range(VIDEOS):
        sample_videos.write_two_shots(folder / f'{i:02d}.mp4', frames=20 + i)
    (folder / 'text.mkv').write_text('not a video')
    return folder


def start(videos: Path, output: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, '-m', 'fv_jax.prepare', f'--input={videos}', f'--output={output}', *FLAGS, *more]
    environment = os.environ | {'PYTHONPATH': str(runs.ROOT), 'JAX_PLATFORMS': 'cpu'}
    return subprocess.Popen(
        command, cwd=output.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 3 and 'Traceback' not in err, err
    return out


def content(output: Path) -> list[tuple]:
    return [(record['source'], record['start_frame'], record['video']) for record in read_records(list_shards(output))]


@pytest.fixture(scope='module')
def whole(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that was made by one process without a disturbance."""
    output = tmp_path_factory.mktemp('whole') / 'out'
    finish(start(videos, output, '--workers=1'))
    found = content(output)
    assert len({(source, first) for source, first, _ in found}) == len(found) > 200
    return output


@pytest.mark.parametrize('kind', ['pool', pytest.param('beam', marks=NEEDS_BEAM)])
def test_killed_command_continues(kind: str, videos: Path, whole: Path, tmp_path: Path) -> None:
    rng, output, kills, complete = np.random.default_rng(0), tmp_path / 'out', 0, [0]
    partial = output / '.clips.partial'
    while kills < KILLS:
        process = start(videos, output, *KINDS[kind])
        # The time until some shards are complete, so that the command is in every state when it is killed.
        wanted = complete[-1] + int(rng.integers(0, 2))
        while process.poll() is None and len(list(partial.glob('*.json'))) < wanted:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.5) if rng.random() < 0.5 else rng.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        assert not (output / 'clips.json').exists() or content(output) == content(whole)
        complete.append(len(list(partial.glob('*.json'))))
        if (output / 'clips.json').exists():
            shutil.rmtree(output)  # was faster than the kill: begin again
            complete.append(0)
    finish(start(videos, output, *KINDS[kind]))
    assert content(output) == content(whole)
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert max(complete) > 3, complete


def test_workers_end_with_the_command(videos: Path, tmp_path: Path) -> None:
    output = tmp_path / 'out'
    process = start(videos, output, '--workers=2')
    while not list((output / '.clips.partial').glob('*.json')):
        assert process.poll() is None
        time.sleep(0.01)
    workers = [
        int(found)
        for found in subprocess.run(['pgrep', '-P', str(process.pid)], capture_output=True, text=True).stdout.split()
    ]
    assert len(workers) >= 2
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 10
    while any(Path(f'/proc/{worker}').exists() for worker in workers):
        assert time.monotonic() < deadline, 'a worker still runs'
        time.sleep(0.05)


def test_adding_ten_videos_to_twenty_touches_no_shard(videos: Path, whole: Path, tmp_path: Path) -> None:
    source, output = tmp_path / 'in', tmp_path / 'out'
    source.mkdir()
    names = sorted(path.name for path in videos.glob('*.mp4'))
    shutil.copy(videos / 'text.mkv', source)
    for name in names[::3] + names[1::3]:
        shutil.copy(videos / name, source)
    finish(start(source, output))
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()) for path in output.iterdir()}
    for name in names[2::3]:
        shutil.copy(videos / name, source)
    process = start(source, output)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert 'adding 10 video(s); 21 were prepared before' in out
    after = {path.name: (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()) for path in output.iterdir()}
    assert before.items() <= after.items()
    assert sorted(content(output)) == sorted(content(whole))
