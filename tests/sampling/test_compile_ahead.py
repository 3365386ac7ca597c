"""Programs are compiled while weights are read."""

import threading

import jax
import pytest

from fv_jax.sampling.compile_ahead import read_while_compiling


class Program:
    """A program that is compiled by the time that `reading` is set, or fails."""

    def __init__(self, reading=None, error=None):
        self.reading, self.error, self.compiled = reading, error, False

    def compile(self):
        if self.error is not None:
            raise self.error
        self.compiled = self.reading is None or self.reading.wait(10)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update('jax_compilation_cache_dir', str(tmp_path))
    yield
    jax.config.update('jax_compilation_cache_dir', before)


def test_both_run_at_the_same_time(cache):
    reading = threading.Event()
    program = Program(reading)
    assert read_while_compiling(lambda: reading.set() or 'weights', lambda: [program]) == 'weights'
    assert program.compiled


def test_errors_of_both_are_raised(cache):
    with pytest.raises(ValueError, match='no compiler'):
        read_while_compiling(lambda: 'weights', lambda: [Program(error=ValueError('no compiler'))])

    def fail():
        raise OSError('no weights')

    with pytest.raises(OSError, match='no weights'):
        read_while_compiling(fail, lambda: [Program(threading.Event())])


def test_nothing_is_compiled_without_a_cache():
    before = jax.config.jax_compilation_cache_dir
    jax.config.update('jax_compilation_cache_dir', None)
    try:
        assert read_while_compiling(lambda: 'weights', lambda: pytest.fail('lowered')) == 'weights'
    finally:
        jax.config.update('jax_compilation_cache_dir', before)
