"""`python -m fv_jax.cache`: what it shows and what it removes."""

import os

import pytest

from fv_jax import cache
from fv_jax.core import cache_folder
from fv_jax.core.cached_files import open_entry


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache folder with weights, six shards and a program; used in this order, an hour apart."""
    monkeypatch.setenv(cache_folder.VARIABLE, str(tmp_path))
    monkeypatch.setenv(cache_folder.LIMIT_VARIABLE, '1')
    for number, (kind, key, size) in enumerate(
        [('files', 'gs://b/stage1.pt', 5000), *(('shards', f'gs://b/shard{n}', 1000 + n) for n in range(6))]
    ):
        with open_entry(kind, key, size, lambda folder, size=size: (folder / 'file').write_bytes(bytes(size))) as found:
            pass
        os.utime(found.parent / 'entry.json', (3600 * number, 3600 * number))
    (program := tmp_path / 'compiled' / 'cpu' / 'jit_step-0123-cache').parent.mkdir(parents=True)
    program.write_bytes(bytes(2_000_000))
    os.utime(program, (36_000, 36_000))
    return tmp_path


def run(*arguments):
    assert cache.main(list(arguments)) == 0


def test_cache_is_shown(folder, capsys):
    run()
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f'{folder}: 2.01 MB; at most 1 GB (FV_JAX_CACHE_GB sets it, FV_JAX_CACHE the folder); its')
    table, lists = [line.split() for line in lines[1:4]], '\n'.join(lines[4:])
    assert [row[:4] for row in table] == [
        ['files', '1', '5', 'kB'],
        ['shards', '6', '6.01', 'kB'],
        ['compiled', '1', '2', 'MB'],
    ]
    largest, oldest = lists.split('least recently used:\n')
    assert [line.split()[-1] for line in largest.splitlines()[1:]] == [
        'jit_step-0123', 'gs://b/stage1.pt', 'gs://b/shard5', 'gs://b/shard4', 'gs://b/shard3',
    ]  # fmt: skip
    assert [line.split()[-1] for line in oldest.splitlines()] == [
        'gs://b/stage1.pt', 'gs://b/shard0', 'gs://b/shard1', 'gs://b/shard2', 'gs://b/shard3',
    ]  # fmt: skip
    run('--kind=files')
    row, *lists = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert row[:4] == ['files', '1', '5', 'kB']
    assert [line[0] for line in lists] == ['largest:', 'files', 'least', 'files']


def test_trim_removes_what_was_used_least_recently(folder, capsys):
    run('--trim-gb=0.00200102')
    assert capsys.readouterr().out.startswith('removed 6 entries, 10 kB\n')
    assert [item.name for item in cache_folder.list_items(folder)] == ['gs://b/shard5', 'jit_step-0123']


def test_trim_of_a_kind_keeps_the_others_and_what_is_in_use(folder, capsys):
    held = open_entry('shards', 'gs://b/shard2', 1, pytest.fail)
    run('--kind=shards', '--trim-gb=0')
    assert capsys.readouterr().out.startswith(
        f'removed 5 entries, 5.01 kB\n1 entries, 1 kB, are in use and remain\n{folder}: 2.01 MB;'
    )
    assert {item.kind for item in cache_folder.list_items(folder)} == {'files', 'shards', 'compiled'}
    held.close()
    run('--trim-gb=0')
    assert not cache_folder.list_items(folder)


@pytest.mark.parametrize('value', ['-1', 'nan', 'inf', 'much', ''])
def test_limit_that_is_no_size_is_refused(value, folder, capfd):
    assert cache.main([f'--trim-gb={value}']) == 2
    error = capfd.readouterr().err
    assert error.startswith('cache: ') and '--trim-gb' in error and error.count('\n') == 1
    assert len(cache_folder.list_items(folder)) == 8
