"""A user of a pod: commands in processes of their own, with a bucket and nothing else."""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests import runs
from tests.data import sample_videos
from tests.sampling import tiny

STEPS = 12
LIMIT_S = 600
CLIPS = ('--config.frames=9', '--config.height=32', '--config.width=48', '--config.shard_mb=0.01')


@dataclasses.dataclass
class Pod:
    """Runs commands with the bucket's environment, in an empty folder that must stay empty.

    Attributes:
      url: of the bucket.
      folder: where commands run.
      variables: their environment.
    """

    url: str
    folder: Path
    variables: dict[str, str]

    def name_bucket(self, arguments: Sequence[str]) -> list[str]:
        """Returns the arguments with the bucket's URL in place of BUCKET."""
        return [argument.replace('BUCKET', self.url) for argument in arguments]

    def run(self, name: str, *arguments: str, code: int = 0) -> str:
        """Runs a command on 8 devices; returns its output."""
        done = subprocess.run(
            [sys.executable, '-m', f'fv_jax.{name}', *self.name_bucket(arguments)],
            cwd=self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert done.returncode == code, f'{name}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
        assert not list(self.folder.iterdir())
        return done.stdout + done.stderr


def pod(bucket, tmp_path: Path) -> Pod:
    folder = tmp_path / 'cwd'
    folder.mkdir()
    variables = runs.environment(tmp_path / 'compiled', devices=8) | bucket.environment
    return Pod(bucket.url, folder, variables | {'FV_JAX_CACHE': str(tmp_path / 'cache'), 'PYTHONPATH': str(runs.ROOT)})


def upload_videos(bucket, tmp_path: Path) -> None:
    for i in range(3):
        video = tmp_path / f'{i}.mp4'
        sample_videos.write_two_shots(video, frames=30)
        bucket.write(f'videos/{i}.mp4', video.read_bytes())
        bucket.write(f'videos/{i}.txt', f'a moving pattern {i}'.encode())


def upload_vae(bucket, tmp_path: Path) -> None:
    tiny.save_vae(tmp_path / 'vae.safetensors')
    bucket.write('weights/vae.safetensors', (tmp_path / 'vae.safetensors').read_bytes())


def train(workdir: str, *more: str) -> list[str]:
    """The arguments of the training command; BUCKET in them is for `Pod.name_bucket`."""
    given = runs.superres(workdir, 'BUCKET/weights/vae.safetensors')
    data = [f'--config.data.{name}=BUCKET/clips' for name in ('train', 'heldout')]
    more = [
        '--config.data.loader.batch_size=8',
        f'--config.loop.num_steps={STEPS}',
        '--config.loop.save_every=4',
        *more,
    ]
    return [*given, *data, '--config.data.cache=none', '--config.loop.log_every=1', *more]


def await_object(bucket, processes: Sequence[subprocess.Popen], start_of_name: str) -> None:
    """Waits for an object that processes will write, none of which may end before."""
    deadline = time.monotonic() + LIMIT_S
    while not any(name.startswith(start_of_name) for name in bucket.sizes()):
        ended = [process.communicate() for process in processes if process.poll() is not None]
        assert time.monotonic() < deadline and not ended, ended
        time.sleep(0.1)


def losses(bucket, workdir: str) -> dict[int, float]:
    found: dict[int, float] = {}
    for line in bucket.read(f'{workdir}/metrics.jsonl').splitlines():
        row = json.loads(line)
        if 'loss' in row:
            assert row['step'] not in found, f'step {row["step"]} twice'
            found[row['step']] = row['loss']
    return found
