"""Where things are kept between runs."""

import os
import re
import shutil
import subprocess
import sys

import jax
import pytest

from fv_jax.core import cache_folder
from fv_jax.core.cached_files import open_entry
from fv_jax.core.commands import run_command
from tests import runs

PROGRAM = """
import jax, jax.numpy as jnp
from fv_jax.core.commands import run_command
def body(argv):
    jax.jit(lambda x: jnp.sin(x @ x).sum())(jnp.ones((64, 64)))
    return 0
raise SystemExit(run_command('test', body, []))
"""


@pytest.fixture
def no_compilation_cache():
    before = jax.config.jax_compilation_cache_dir
    jax.config.update('jax_compilation_cache_dir', None)
    yield
    jax.config.update('jax_compilation_cache_dir', before)


def run(program=PROGRAM, **environment):
    given = {name: value for name, value in runs.environment().items() if name != 'JAX_COMPILATION_CACHE_DIR'}
    given |= environment
    command = [sys.executable, '-W', 'error', '-c', program]
    done = subprocess.run(command, env=given, cwd=runs.ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def programs(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*') if path.is_file() and '-cache' in path.name}


def test_commands_keep_compiled_programs_in_the_cache_folder(tmp_path):
    run(FV_JAX_CACHE=str(tmp_path))
    kept = programs(tmp_path / 'compiled')
    assert kept
    run(FV_JAX_CACHE=str(tmp_path))
    assert programs(tmp_path / 'compiled') == kept


def test_the_users_own_compilation_cache_wins(tmp_path):
    own = {'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'theirs'), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    run(FV_JAX_CACHE=str(tmp_path / 'ours'), **own)
    assert not (tmp_path / 'ours').exists() and programs(tmp_path / 'theirs')


@pytest.mark.parametrize(
    ('name', 'value', 'words'),
    [
        ('FV_JAX_CACHE', 'FILE', 'cannot be the cache folder: File exists; set FV_JAX_CACHE to the absolute path'),
        ('FV_JAX_CACHE', 'FILE/cache', 'cannot be the cache folder: Not a directory; set FV_JAX_CACHE to'),
        ('FV_JAX_CACHE', '/proc/nowhere', '/proc/nowhere: cannot be the cache folder: No such file or directory; set'),
        ('FV_JAX_CACHE', '/sys', '/sys: cannot be the cache folder: Permission denied; set FV_JAX_CACHE'),
        ('FV_JAX_CACHE', 'relative/cache', 'relative/cache: cannot be the cache folder, its path is not absolute; set'),
        (
            'FV_JAX_CACHE',
            '~nobody_of_this_name/cache',
            '~nobody_of_this_name/cache: cannot be the cache folder, its path is not absolute; set',
        ),
        ('FV_JAX_CACHE_GB', '20 GB', 'FV_JAX_CACHE_GB=20 GB: must be a number of GB above 0, such as 200'),
        ('FV_JAX_CACHE_GB', '0', 'FV_JAX_CACHE_GB=0: must be a number of GB above 0'),
        ('FV_JAX_CACHE_GB', 'nan', 'FV_JAX_CACHE_GB=nan: must be'),
        ('FV_JAX_CACHE_GB', 'inf', 'FV_JAX_CACHE_GB=inf: must be'),
    ],
)
def test_cache_that_cannot_be_used_is_a_warning_of_one_line(
    name, value, words, tmp_path, monkeypatch, capfd, no_compilation_cache
):
    (tmp_path / 'file').touch()
    monkeypatch.setenv(name, value.replace('FILE', str(tmp_path / 'file')))
    assert run_command('test', lambda argv: 0, []) == 0
    output, error = capfd.readouterr()
    assert output.startswith('WARNING: compiled programs are not kept: ') and words in output
    assert output.count('\n') == 1 and not error
    with pytest.raises((OSError, ValueError), match=re.escape(words)):
        open_entry('files', 'key', 1, lambda folder: None)
    assert [path.name for path in tmp_path.iterdir()] == ['file'] and jax.config.jax_compilation_cache_dir is None


def test_a_cache_folder_that_cannot_be_made_does_not_stop_a_command(tmp_path):
    (tmp_path / 'file').write_text('')
    run(FV_JAX_CACHE=str(tmp_path / 'file' / 'cache'))


def test_limit_is_the_users_or_a_part_of_the_disk(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=50_000_000_000))
    monkeypatch.delenv(cache_folder.LIMIT_VARIABLE, raising=False)
    assert cache_folder.read_limit(tmp_path, 50_000_000_000).bytes == 80e9
    assert cache_folder.read_limit(tmp_path, 500_000_000_000).bytes == 200e9
    monkeypatch.setenv(cache_folder.LIMIT_VARIABLE, '0.5')
    assert cache_folder.read_limit(tmp_path, 500_000_000_000).bytes == 5e8


def test_commands_remove_the_compiled_programs_that_were_used_least_recently(tmp_path):
    limit = {'FV_JAX_CACHE': str(tmp_path), 'FV_JAX_CACHE_GB': '1e-5'}
    old = tmp_path / 'compiled' / 'cpu'
    old.mkdir(parents=True)
    (tmp_path / 'lock').touch()
    os.utime(tmp_path / 'lock', (0, 0))
    for number in range(3):
        for suffix in ('cache', 'atime'):
            (old / f'program{number}-{suffix}').write_bytes(bytes(4000 if suffix == 'cache' else 8))
            os.utime(old / f'program{number}-{suffix}', (1000 - number, 1000 - number))
    assert 'removed 4 kB, least recently used first' in run(**limit)
    assert sorted(path.name for path in old.iterdir()) == [
        f'program{n}-{s}' for n in (0, 1) for s in ('atime', 'cache')
    ]
    kept = programs(tmp_path / 'compiled')
    assert len(kept) > 2 and run(**limit) == ''  # not again within the hour
    assert programs(tmp_path / 'compiled') == kept
    os.utime(tmp_path / 'lock', (0, 0))
    assert 'removed' in run(**limit)


def test_process_whose_compiled_programs_are_removed_compiles_them_again(tmp_path):
    program = PROGRAM.replace(
        '    return 0',
        """
    from fv_jax.core.cache_folder import trim
    for _ in range(3):
        assert trim(0)[0]
        jax.clear_caches()
        jax.jit(lambda x: jnp.sin(x @ x).sum())(jnp.ones((64, 64)))
    # Removed between the moment when JAX has seen the file and when it reads it.
    import os
    exists = os.path.exists
    def remove(path):
        found = exists(path)
        if str(path).endswith('-cache') and found:
            os.unlink(path)
            print('removed')
        return found
    os.path.exists = remove
    jax.clear_caches()
    jax.jit(lambda x: jnp.sin(x @ x).sum())(jnp.ones((64, 64)))
    return 0""",
    )
    output = run(program, FV_JAX_CACHE=str(tmp_path)).splitlines()
    assert len(output) > 2 and set(output) == {'removed'} and programs(tmp_path)


def test_full_disk_keeps_no_more_programs(tmp_path):
    full = 'import shutil\nusage = shutil.disk_usage("/")\nshutil.disk_usage = lambda path: usage._replace(free=5)\n'
    text = run(full + PROGRAM, FV_JAX_CACHE=str(tmp_path), FV_JAX_CACHE_GB='1')
    assert text.startswith('WARNING: no more compiled programs are kept: the disk of ') and text.count('\n') == 1
    assert not programs(tmp_path)


def test_cache_folder_is_the_users_unless_named(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.delenv(cache_folder.VARIABLE)
    folder = cache_folder.cache_folder()
    assert tmp_path in folder.parents and folder.name == 'fv_jax'
    monkeypatch.setenv(cache_folder.VARIABLE, '~/elsewhere')
    assert cache_folder.cache_folder() == tmp_path / 'elsewhere'
