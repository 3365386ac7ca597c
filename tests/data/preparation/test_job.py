"""Sets of shards: made by any number of processes, continued, added to, replaced."""

import json
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet
import pytest

from fv_jax import inspect, prepare
from fv_jax.core import exit_codes
from fv_jax.data.preparation import pool, sets
from fv_jax.data.preparation.plan import Plan
from fv_jax.data.shards.shard_files import list_shards, read_records
from fv_jax.data.shards.source import Shards
from fv_jax.data.video import encoding
from tests.data import sample_videos

FLAGS = ['--config.frames=9', '--config.height=64', '--config.width=96', '--config.preset=ultrafast']
FLAGS += ['--config.detector=none', '--config.shard_mb=0.001', '--workers=1']


@pytest.fixture(scope='module')
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos, each of which is a shard, and one that cannot be read."""
    folder = tmp_path_factory.mktemp('videos')
    for i, name in enumerate('abcd'):
        sample_videos.write_two_shots(folder / f'{name}.mp4', frames=10 + 5 * i)
    (folder / 'text.mkv').write_text('not a video')
    (folder / 'captions.json').write_text(json.dumps({'b.mp4': 'two'}))
    return folder


def run(source: Path, output: Path, *more: str) -> int:
    return prepare.main([f'--input={source}', f'--output={output}', *FLAGS, *more])


def content(folder: Path) -> list[dict]:
    return list(read_records(list_shards(folder)))


def states(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


@pytest.fixture(scope='module')
def whole(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set of all videos, made at once."""
    folder = tmp_path_factory.mktemp('whole')
    assert run(videos, folder) == prepare.SKIPPED
    return folder


class StoppedError(BaseException):
    """What a test ends `prepare` with."""


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    make, made = Plan.make, []

    def make_some(self: Plan, number: int, *more: object) -> None:
        if len(made) == count:
            raise StoppedError
        made.append(number)
        make(self, number, *more)

    monkeypatch.setattr(Plan, 'make', make_some)


def test_set_has_a_manifest_of_clips_and_a_table_of_units(whole: Path, videos: Path, capsys) -> None:
    names = [f'clips-{i:05d}-of-00004.array_record' for i in range(4)]
    assert sorted(path.name for path in whole.iterdir()) == [
        *names, 'clips.json', 'clips.parquet', 'clips.units.parquet'
    ]  # fmt: skip
    shards = Shards([whole / name for name in names])
    rows = pyarrow.parquet.read_table(whole / 'clips.parquet').to_pylist()
    assert len(shards) == len(rows) == 2 + 3 + 4 + 5
    for i, row in enumerate(rows):
        record = shards[i]
        assert (row['source'], row['caption']) == (record['source'], record.get('caption'))
        assert row['first_seconds'] == pytest.approx(record['start_frame'] / record['fps'])
        assert [row[key] for key in ('frames', 'height', 'width')] == [9, 64, 96]
    assert shards.sizes().to_array().tolist() == [[9, 64, 96]] * len(rows)
    units = pyarrow.parquet.read_table(whole / 'clips.units.parquet').to_pylist()
    assert [(unit['source'], unit['shard'], unit['clips']) for unit in units] == [
        *(('a.mp4', 0, 2), ('b.mp4', 1, 3), ('c.mp4', 2, 4), ('d.mp4', 3, 5), ('text.mkv', None, 0))
    ]
    assert units[0]['bytes'] == (videos / 'a.mp4').stat().st_size and units[0]['last_seconds'] is None
    assert inspect.main([str(whole)]) == 0
    shown = capsys.readouterr().out
    assert '14 clips in 4 shards' in shown and 'units: 5, of which 4 have clips' in shown
    assert units[0]['failed'] is None and 'not a video' in units[-1]['failed']


def test_two_processes_make_the_same_set(whole: Path, videos: Path, tmp_path: Path, capsys) -> None:
    assert run(videos, tmp_path, '--workers=2') == prepare.SKIPPED
    assert {name: data for name, (_, data) in states(tmp_path).items()} == {
        name: data for name, (_, data) in states(whole).items()
    }
    out, err = capsys.readouterr()
    assert '14 clips' in err and '14 clips of 9 frames' in out


def test_process_that_is_killed_is_an_error_that_names_its_video(videos: Path, tmp_path: Path, capsys) -> None:
    process = pool._describe_end(-9, 'a.mp4')
    assert process.startswith('a process ended with -9 when it read a.mp4')


@pytest.mark.parametrize('count', [0, 2])
def test_interrupted_set_is_continued(
    whole: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, count: int
) -> None:
    output = tmp_path / 'out'
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        stop_after(patch, count)
        run(videos, output)
    if not count:
        assert not output.exists()
        return
    before = states(output / '.clips.partial')
    assert sum(name.endswith('.array_record') for name in before) == count
    assert run(videos, output, '--config.crf=5') == exit_codes.USAGE
    assert 'was begun with other settings: config.crf is 18' in capsys.readouterr().err
    made = []
    monkeypatch.setattr(
        Plan, 'make', lambda self, number, *more, make=Plan.make: (made.append(number), make(self, number, *more))
    )
    assert run(videos, output) == prepare.SKIPPED
    assert made == list(range(count, 5)) and f'{count} of 5 shards exist' in capsys.readouterr().out
    assert content(output) == content(whole)
    times = [before[f'{i:07d}.array_record'][0] for i in range(count)]
    assert [Path(shard).stat().st_mtime_ns for shard in list_shards(output)][:count] == times


def test_new_videos_are_added_as_a_set_of_their_own(whole: Path, videos: Path, tmp_path: Path, capsys) -> None:
    source, output = tmp_path / 'in', tmp_path / 'out'
    source.mkdir()
    shutil.copy(videos / 'captions.json', source)
    for name in ('b.mp4', 'd.mp4'):
        shutil.copy(videos / name, source)
    assert run(source, output) == 0
    before = states(output)
    assert run(source, output) == 0 and states(output) == before
    for name in ('a.mp4', 'c.mp4'):
        shutil.copy(videos / name, source)
    capsys.readouterr()
    assert run(source, output) == 0
    assert 'adding 2 video(s); 2 were prepared before' in capsys.readouterr().out
    after = states(output)
    assert before.items() <= after.items() and len(list_shards(output)) == 4
    assert len(list_shards(output, 'clips')) == len(list_shards(output, 'clips.1')) == 2
    assert sorted(map(str, content(output))) == sorted(map(str, content(whole)))
    assert len(Shards(list_shards(output))) == 14
    assert json.loads((output / 'clips.1.json').read_text())['name'] == 'clips.1'
    # All are replaced by one set.
    assert run(source, output, '--overwrite') == 0
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert content(output) == content(whole)


def test_adding_10_videos_to_20_touches_no_old_shard(tmp_path: Path) -> None:
    """Neither bytes nor times of a file change. The new names are between the old ones, and all videos are alike."""
    source, output = tmp_path / 'in', tmp_path / 'out'
    source.mkdir()
    video = encoding.encode_bytes(sample_videos.pattern(13), 24, preset='ultrafast')

    def write(number: int) -> None:
        # A box that players skip makes another file of it.
        box = struct.pack('>I4sI', 12, b'free', number)
        (source / f'{number:02d}.mp4').write_bytes(video + box)

    added = set(range(0, 30, 3))
    for number in set(range(30)) - added:
        write(number)
    assert run(source, output) == 0
    before = states(output)
    assert sum(name.endswith('.array_record') for name in before) == 20
    for number in added:
        write(number)
    assert run(source, output) == 0
    after = states(output)
    assert {name: after[name] for name in before} == before
    assert sum(name.endswith('.array_record') for name in after) == 30
    new = list(read_records(list_shards(output, 'clips.1')))
    assert sorted(record['source'] for record in new) == sorted(f'{number:02d}.mp4' for number in added)
    assert sorted(record['source'] for record in content(output)) == [f'{number:02d}.mp4' for number in range(30)]


def test_video_that_has_changed_is_named(videos: Path, tmp_path: Path, capsys) -> None:
    source, output = tmp_path / 'in', tmp_path / 'out'
    source.mkdir()
    shutil.copy(videos / 'a.mp4', source)
    assert run(source, output) == 0
    before = states(output)
    shutil.copy(videos / 'b.mp4', source / 'a.mp4')
    assert run(source, output) == prepare.SKIPPED and states(output) == before
    assert 'a.mp4: another file of this name' in capsys.readouterr().out
    shutil.copy(videos / 'c.mp4', source)
    assert run(source, output) == prepare.SKIPPED
    assert set(json.loads((output / 'clips.1.json').read_text())['skipped']) == {'a.mp4'}


@pytest.mark.parametrize('moves', [0, 5])
def test_interrupted_publication_is_completed(
    whole: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    output = tmp_path / 'out'
    assert run(videos / 'c.mp4', output) == 0  # is replaced
    rename, made = Path.rename, []

    def interrupt(self: Path, target: Path) -> Path:
        if len(made) >= moves:
            raise StoppedError
        made.append(target)
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(Path, 'rename', interrupt)
        run(videos, output, '--overwrite')
    assert not (output / 'clips.json').exists()
    found = sets.find_sets(output, 'clips')
    assert found.names == ('clips',) and content(output) == content(whole)
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_set_that_prepare_did_not_make_is_refused(videos: Path, whole: Path, tmp_path: Path, capsys) -> None:
    for path in whole.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / 'clips.units.parquet').unlink()
    assert run(videos, tmp_path) == exit_codes.USAGE
    assert 'clips.units.parquet: does not exist, so that clips cannot be continued' in capsys.readouterr().err
    (tmp_path / 'clips.json').unlink()
    assert run(videos, tmp_path) == exit_codes.USAGE
    assert 'holds 4 shard(s) named clips without clips.json' in capsys.readouterr().err


def test_plan_is_read_by_shards(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []

    def see(plan: Plan, numbers: Sequence[int], *more: object) -> None:
        plans.append(plan)
        assert plan.num_shards == 5 and plan.missing() == list(numbers) == list(range(5))
        assert [unit.source for number in numbers for unit in plan.units(number)] == [
            *('a.mp4', 'b.mp4', 'c.mp4', 'd.mp4', 'text.mkv')
        ]
        assert plan.bytes_of([0, 2]) == sum((videos / name).stat().st_size for name in ('a.mp4', 'c.mp4'))
        raise StoppedError

    monkeypatch.setattr(pool, 'make_shards', see)
    with pytest.raises(StoppedError):
        run(videos, tmp_path)
    assert plans


def test_second_process_is_refused(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def see(*more: object) -> None:
        assert run(videos, tmp_path) == exit_codes.USAGE
        raise StoppedError

    monkeypatch.setattr(pool, 'make_shards', see)
    with pytest.raises(StoppedError):
        run(videos, tmp_path)
    assert 'another process prepares clips there' in capsys.readouterr().err
