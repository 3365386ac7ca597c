"""Scores, near duplicates, captions, dry runs and the page, by the commands `prepare` and `curate`."""

import re

import numpy as np
import pytest

from fv_jax import curate, prepare
from fv_jax.data import embedded
from fv_jax.data.curation.clip_table import ClipTable
from fv_jax.data.curation.filters import Filter
from fv_jax.data.curation.report import build_report
from fv_jax.data.curation.scores import SCORES
from fv_jax.data.shards.manifest import read_manifest
from fv_jax.data.shards.selection import Selection
from fv_jax.data.shards.shard_files import list_shards, read_records
from fv_jax.data.shards.source import Shards
from fv_jax.data.video import decoding, encoding

FILTER = 'sharpness >= 1e6 and motion >= 0'


def reencode(video):
    return encoding.encode_bytes(list(decoding.decode(video).frames), 24.0, 32.0, 'veryfast')


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    """A folder of four clips of the package, and a copy of the second one."""
    folder = tmp_path_factory.mktemp('videos')
    clips = [record['video'] for record in read_records(embedded.train_shards())][:40:10]
    for number, clip in enumerate(clips):
        (folder / f'{number}.mp4').write_bytes(clip)
    (folder / 'copy.mp4').write_bytes(reencode(clips[1]))
    return folder


@pytest.fixture(scope='module')
def prepared(videos, tmp_path_factory):
    """The clips of the videos."""
    output = tmp_path_factory.mktemp('prepared') / 'clips'
    assert run(prepare, '--input', videos, '--output', output) == 0
    return output


def run(command, *arguments):
    options = ['--config=prepare:smoke', '--workers=1'] if command is prepare else []
    return command.main([*map(str, arguments), *options])


def read_columns(folder, name, columns):
    (group,) = read_manifest(folder / f'{name}.parquet', name).read_columns(columns)
    return [dict(zip(columns, row, strict=True)) for row in zip(*(group[c].to_pylist() for c in columns), strict=True)]


def test_prepare_writes_scores_and_marks_near_duplicates(prepared):
    rows = read_columns(prepared, 'clips', ['source', 'duplicate_of', *SCORES])
    assert [row['source'] for row in rows] == ['0.mp4', '1.mp4', '2.mp4', '3.mp4', 'copy.mp4']
    assert [row['duplicate_of'] for row in rows] == [None, None, None, None, 1]
    for row in rows:
        assert row['sharpness'] > 0 and row['motion'] > 0 and len(row['hash']) == 48 and row['cuts'] == 0


def test_videos_that_are_added_are_compared_with_those_before(videos, prepared, tmp_path):
    added = tmp_path / 'videos'
    added.mkdir()
    for path in videos.iterdir():
        (added / path.name).write_bytes(path.read_bytes())
    assert run(prepare, '--input', added, '--output', tmp_path / 'clips') == 0
    (added / 'new.mp4').write_bytes(reencode((videos / '2.mp4').read_bytes()))
    before = (tmp_path / 'clips' / 'clips.parquet').read_bytes()
    assert run(prepare, '--input', added, '--output', tmp_path / 'clips') == 0
    assert (tmp_path / 'clips' / 'clips.parquet').read_bytes() == before
    assert read_columns(tmp_path / 'clips', 'clips.1', ['duplicate_of']) == [{'duplicate_of': 2}]
    table = ClipTable(Shards(list_shards(tmp_path / 'clips')))
    assert table.duplicates().tolist() == [[1, 4], [2, 5]]


def test_page_has_counts_histograms_and_frames(prepared):
    table = ClipTable(Shards(list_shards(prepared)))
    limit = float(np.median(table.columns['sharpness']))
    selection = Selection(Filter.parse(f'sharpness > {limit} and motion >= 0'))
    selected = table.select(selection)
    report = build_report('Clips', table, selection, selected)
    kinds = [type(block).__name__ for block in report.blocks]
    assert kinds.count('Figure') >= 4
    (charts,) = [block for block in report.blocks if type(block).__name__ == 'Charts']
    dropped = selected.dropped >= 0
    for chart in charts.charts:
        assert sum(chart.parts['kept']) == (~dropped).sum() and sum(chart.parts['dropped']) == dropped.sum()
    first = next(block for block in report.blocks if type(block).__name__ == 'Table')
    counts = {row[0].text: (row[1].text, row[3].text) for row in first.rows}
    assert counts[f'not sharpness > {limit}'] == ('3', '3') and counts['kept'][0] == str((~dropped).sum())


def test_curate_writes_a_page_and_prints_the_counts(prepared, tmp_path, capsys):
    page = tmp_path / 'page.html'
    assert run(curate, '--input', prepared, '--output', page, '--filter', FILTER) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('5 clips of 5 video(s)') and '0 kept' in lines[0]
    assert lines[1].split()[:4] == ['5', '(5', 'in', 'all):'] and 'sharpness' in lines[1]
    text = page.read_text()
    assert 'Near duplicates' in text and len(re.findall('<img src="data:image/jpeg', text)) >= 3


def test_dry_run_reports_the_same_and_writes_no_shards(videos, tmp_path, capsys):
    page, output = tmp_path / 'page.html', tmp_path / 'clips'
    flags = ('--dry-run', 9, '--filter', FILTER, '--report', page)
    assert run(prepare, '--input', videos, '--output', output, *flags) == 0
    shown = capsys.readouterr().out
    assert '5 clips of 5 video(s)' in shown and '5 (5 in all): not sharpness' in shown
    assert not output.exists() and page.exists()


def test_usage_errors_name_the_value(prepared, videos, tmp_path, capsys):
    page = tmp_path / 'page.html'
    for arguments, message in (
        (('--input', prepared, '--output', page, '--filter', 'sharpnes > 3'), "did you mean 'sharpness'"),
        (('--input', prepared, '--output', page, '--filter', 'open("x")'), 'open'),
        (('--input', tmp_path, '--output', page), 'no'),
        (('--input', prepared, '--output', tmp_path / 'page.txt'), '.html'),
    ):
        assert run(curate, *arguments) == 2
        assert message in capsys.readouterr().err
    for flags in (('--filter', 'motion > 1'), ('--dry-run', 0), ('--report', page)):
        assert run(prepare, '--input', videos, '--output', tmp_path / 'clips', *flags) == 2
    assert not page.exists()


def test_prepare_captions_clips_that_have_no_caption(videos, tmp_path, monkeypatch):
    (tmp_path / 'captions_of_test.py').write_text(
        "def describe(clips):\n    return [f'a clip of {len(clip)} bytes' for clip in clips]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'videos').mkdir()
    for name in ('0.mp4', '1.mp4'):
        (tmp_path / 'videos' / name).write_bytes((videos / name).read_bytes())
    (tmp_path / 'videos' / '1.txt').write_text('its own')
    output, options = tmp_path / 'clips', ['--config.captioner.function=captions_of_test:describe']
    assert run(prepare, '--input', tmp_path / 'videos', '--output', output, *options) == 0
    records = list(read_records(list_shards(output)))
    assert [record['caption'] for record in records] == [f'a clip of {len(records[0]["video"])} bytes', 'its own']
    rows = read_columns(output, 'clips', ['caption'])
    assert [row['caption'] for row in rows] == [record['caption'] for record in records]


def test_prepare_ends_where_the_captioner_fails(videos, tmp_path, capsys):
    options = ['--config.captioner.function=no_such_module:describe']
    assert run(prepare, '--input', videos, '--output', tmp_path / 'clips', *options) == 1
    assert 'no_such_module' in capsys.readouterr().err
