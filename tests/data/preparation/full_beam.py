"""Apache Beam makes the shards that local processes make (extra `beam`): DirectRunner in memory and in processes."""

import json
from pathlib import Path

import pytest

pytest.importorskip('apache_beam')

from fv_jax import prepare
from fv_jax.core import exit_codes
from fv_jax.data.preparation import beam_runner
from fv_jax.data.preparation.plan import Plan
from fv_jax.data.shards.shard_files import list_shards, read_records
from tests.data import sample_videos

FLAGS = ['--config.frames=9', '--config.height=64', '--config.width=96', '--config.shard_mb=0.001']
RUNNERS = {
    'memory': ['--runner=DirectRunner', '--', '--direct_running_mode=in_memory'],
    'processes': ['--runner=DirectRunner', '--', '--direct_running_mode=multi_processing', '--direct_num_workers=2'],
}


@pytest.fixture(scope='module')
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('videos')
    for i in range(4):
        sample_videos.write_two_shots(folder / f'{i}.mp4', frames=30 + i)
    (folder / 'text.mkv').write_text('not a video')
    return folder


def run(videos: Path, output: Path, *more: str) -> int:
    return prepare.main([f'--input={videos}', f'--output={output}', *FLAGS, *more])


@pytest.mark.parametrize('kind', RUNNERS)
def test_beam_makes_the_same_set(kind: str, videos: Path, tmp_path: Path) -> None:
    assert run(videos, tmp_path / 'local', '--workers=1') == prepare.SKIPPED
    assert run(videos, tmp_path / 'beam', *RUNNERS[kind]) == prepare.SKIPPED
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ('local', 'beam')]
    assert files[0] == files[1] and len(files[0]) == 4 + 3


def test_shard_that_cannot_be_made_is_listed_and_tried_again(videos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    make = Plan.make

    def fail(self: Plan, number: int, *more: object) -> None:
        if number == 2:
            raise RuntimeError('no memory')
        make(self, number, *more)

    monkeypatch.setattr(Plan, 'make', fail)
    assert run(videos, tmp_path, *RUNNERS['memory']) == exit_codes.FAILED
    assert '1 of 5 shards could not be made' in capsys.readouterr().err
    folder = tmp_path / '.clips.partial'
    (line,) = (folder / beam_runner.FAILED).read_text().splitlines()
    assert json.loads(line) == {'shard': 2, 'sources': ['2.mp4'], 'error': 'RuntimeError: no memory'}
    assert sorted(path.name for path in folder.glob('*.json')) == [f'{i:07d}.json' for i in (0, 1, 3, 4)]
    monkeypatch.undo()
    assert run(videos, tmp_path, *RUNNERS['memory']) == prepare.SKIPPED
    assert {record['source'] for record in read_records(list_shards(tmp_path))} == {f'{i}.mp4' for i in range(4)}


def test_runner_and_options_that_do_not_exist(videos: Path, tmp_path: Path, capsys) -> None:
    assert run(videos, tmp_path / 'a', '--runner=DirctRunner') == exit_codes.USAGE
    assert '--runner=DirctRunner: ' in capsys.readouterr().err
    assert run(videos, tmp_path / 'b', '--runner=DirectRunner', '--', '--regoin=x') == exit_codes.USAGE
    assert '--regoin: not an option of DirectRunner' in capsys.readouterr().err
    assert run(videos, tmp_path / 'c', '--', '--region=x') == exit_codes.USAGE
    assert '--region=x: options after -- are those of a --runner' in capsys.readouterr().err
    assert not any((tmp_path / name).exists() for name in 'abc')
