"""What `inspect` shows of a data set, from its tables alone."""

import json
from pathlib import Path

import pytest

from fv_jax import inspect
from fv_jax.core import exit_codes
from fv_jax.data.shards.manifest import CLIP_COLUMNS, ManifestWriter
from fv_jax.data.shards.shard_files import shard_name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of two shards with scores, the shards themselves empty."""
    columns = CLIP_COLUMNS | {'sharpness': 'double', 'letterbox': 'bool', 'kind': 'string'}
    writer = ManifestWriter(tmp_path / 'clips.parquet', columns)
    for shard, count in ((0, 3), (1, 2)):
        (tmp_path / shard_name('clips', shard, 2)).touch()
        numbers = range(3 * shard, 3 * shard + count)
        rows = {
            **{'frames': [9] * count, 'height': [64] * count, 'width': [96 if i else 112 for i in numbers]},
            **{'source': [f'{i // 2}.mp4' for i in numbers], 'fps': [24.0] * count, 'bytes': [10] * count},
            **{'first_seconds': [float(i) for i in numbers], 'last_seconds': [i + 720.0 for i in numbers]},
            **{'caption': [None if i else 'text' for i in numbers], 'fingerprint': ['x'] * count},
            **{'sharpness': [float(i) for i in numbers], 'letterbox': [i < 2 for i in numbers]},
            'kind': ['drawn' if i else None for i in numbers],
        }
        writer.add(1000, rows, ['video', 'fps'])
    writer.close('clips')
    (tmp_path / 'clips.json').write_text(json.dumps({'name': 'clips', 'records': 5, 'latents': {'vae': 'abc'}}))
    return tmp_path


def test_inspect_shows_statistics_of_the_manifest(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert inspect.main([str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f'{folder}/clips: 5 clips in 2 shards, 2 kB',
        '  records: fps, video',
        '  latents of abc',
        '  size: 9x64x96 (4), 9x64x112 (1)',
        '  videos: 3, with 1 to 2 clips, 2 in the median',
        '  length: 1 hours',
        '  frames per second: 24 (5)',
        '  captions: of 1 clips',
        '  sharpness: minimum 0, 10 % 0.4, median 2, 90 % 3.6, maximum 4',
        '  letterbox: true for 2 of 5',
        '  kind: drawn (4); 1 without',
    ]
    assert inspect.main([str(folder), '--step=3']) == exit_codes.USAGE
    (folder / 'clips.parquet').unlink()
    assert inspect.main([str(folder)]) == exit_codes.FAILED
    assert 'clips.parquet: does not exist' in capsys.readouterr().err
