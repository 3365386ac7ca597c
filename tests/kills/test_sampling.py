"""Lists of prompts in processes of their own: killed and interrupted, and continued by the same command."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import runs
from tests.sampling import tiny
from tests.sampling.stored_files import content

COUNT = 12
SAMPLE = (
    'import signal, sys; from fv_jax import sample; '
    # A shell lets what it starts in the background ignore Ctrl-C.
    'signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(sample.main(sys.argv[1:]))'
)


@pytest.fixture(scope='module')
def start(tmp_path_factory) -> Callable[[Path], subprocess.Popen]:
    """Returns a function that starts the list in a folder."""
    folder = tmp_path_factory.mktemp('weights')
    tiny.save_pipeline_and_vae(folder)
    (folder / 'prompts.txt').write_text('\n'.join(f'dog {i}' for i in range(COUNT)))
    environment = runs.environment(folder / 'compiled')

    def start(run: Path) -> subprocess.Popen:
        flags = f'--checkpoint={folder}', f'--prompts={folder}/prompts.txt', f'--output={run}', '--batch-size=2'
        settings = '--enhance-all', '--stage1.num_steps=2', '--stage2.num_steps=1'
        command = [sys.executable, '-c', SAMPLE, 'preview', *flags, *settings]
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
        return subprocess.Popen(command, cwd=runs.ROOT, env=environment, **pipes)

    return start


def is_hidden(name: str) -> bool:
    return name.startswith('.')


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and err == '', err
    return out


def interrupt(process: subprocess.Popen, number: int, reached: Callable[[], bool]) -> str:
    """Sends a signal as soon as a condition holds; returns what the process wrote to stderr."""
    while process.poll() is None and not reached():
        time.sleep(0.001)
    process.send_signal(number)
    return process.communicate(timeout=300)[1]


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory, start) -> Path:
    """A list that was not interrupted."""
    run = tmp_path_factory.mktemp('whole') / 'run'
    finish(start(run))
    files = content(run)
    assert len(files) == 3 * COUNT + 1 and len(set(files.values())) == len(files)
    return run


@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=lambda x: str(x)
)
def test_list_continues_after_a_signal(number, code, uninterrupted, start, tmp_path):
    run, whole, writes = tmp_path / 'run', content(uninterrupted), []

    def in_a_write(after: str, latest: str) -> Callable[[], bool]:
        """Until `latest` exists: a busy machine may see no file that is being written."""

        def reached() -> bool:
            with contextlib.suppress(FileNotFoundError):  # a folder that was being written
                writes[:] = run.rglob('.*.????????')
            return (run / latest).exists() or (bool(writes) and (run / after).exists())

        return reached

    for moment in (in_a_write('3/preview.mp4', '6/preview.mp4'), in_a_write('4/video.mp4', '6/video.mp4')):
        err = interrupt(process := start(run), number, moment)
        assert process.returncode == code, err
        assert number == signal.SIGKILL or err.endswith('; only complete files were written\n')
        # A temporary folder can be left by Ctrl-C too, where it comes as the folder is made or removed.
        complete = {name: data for name, data in content(run).items() if not any(map(is_hidden, Path(name).parts))}
        assert complete.items() <= whole.items()
    made = len(list(run.glob('[0-9]*/video.mp4')))
    assert 5 <= made < COUNT
    out = finish(start(run))
    assert f'{COUNT} of {COUNT} preview(s) exist already' in out and f'{made} of {COUNT} video(s) exist already' in out
    assert content(run) == whole and not list(run.rglob('.*'))


def test_complete_list_samples_nothing(uninterrupted, start):
    before = content(uninterrupted)
    out = finish(start(uninterrupted))
    assert 'generating' not in out and 'enhancing' not in out and content(uninterrupted) == before
