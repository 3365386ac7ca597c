"""Where things are kept between runs."""

import subprocess
import sys

from fv_jax.core import cache
from tests import runs

PROGRAM = """
import jax, jax.numpy as jnp
from fv_jax.core.commands import run_command
def body(argv):
    jax.jit(lambda x: jnp.sin(x @ x).sum())(jnp.ones((64, 64)))
    return 0
raise SystemExit(run_command('test', body, []))
"""


def run(**environment):
    given = {name: value for name, value in runs.environment().items() if name != 'JAX_COMPILATION_CACHE_DIR'}
    given |= environment
    subprocess.run([sys.executable, '-c', PROGRAM], env=given, check=True)


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


def test_cache_folder_is_the_users_unless_named(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.delenv(cache.VARIABLE)
    folder = cache.cache_folder()
    assert tmp_path in folder.parents and folder.name == 'fv_jax'
    monkeypatch.setenv(cache.VARIABLE, '~/elsewhere')
    assert cache.cache_folder() == tmp_path / 'elsewhere'


def test_a_cache_folder_that_cannot_be_made_does_not_stop_a_command(tmp_path):
    (tmp_path / 'file').write_text('')
    run(FV_JAX_CACHE=str(tmp_path / 'file' / 'cache'))
