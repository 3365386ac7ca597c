"""What a terminal shows: records, notices, results and errors; and nothing of them for a program that imports us."""

import contextlib
import io
import logging
import warnings

import jax
import pytest

from fv_jax.core import console

log = logging.getLogger('fv_jax.data.example')


def test_log_records_are_shown_within_a_command_only(capsys, caplog):
    """Once, although a library has given the root logger a handler, as `caplog` does."""
    log.info('before')
    with console.log_to_stdout():
        log.info('one\ntwo 100%')
        log.warning('a disk is full')
        log.debug('a detail')
        logging.getLogger('orbax').warning('of a library')
    log.info('after')
    out, err = capsys.readouterr()
    assert out == 'one\ntwo 100%\nWARNING: a disk is full\n' and 'before' not in err
    assert [record.message for record in caplog.records] == ['of a library']


def test_log_to_stdout_restores_the_level():
    logger = logging.getLogger('fv_jax')
    before = logger.level, logger.propagate, list(logger.handlers)
    with contextlib.suppress(KeyError), console.log_to_stdout():
        assert logger.level == logging.INFO
        raise KeyError
    assert (logger.level, logger.propagate, logger.handlers) == before


def test_log_handler_uses_the_current_stdout(capsys):
    with console.log_to_stdout():
        with contextlib.redirect_stdout(io.StringIO()) as elsewhere:
            log.info('there')
        log.info('here')
    assert (elsewhere.getvalue(), capsys.readouterr().out) == ('there\n', 'here\n')


@pytest.mark.parametrize(('process', 'shown'), [(0, ['all', 'first']), (1, ['all'])])
def test_log_records_come_from_process_0(process, shown, monkeypatch, capsys):
    monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(jax, 'process_index', lambda: process)
    with console.log_to_stdout():
        log.info('all', extra=console.EVERY_PROCESS)
        log.info('first')
    assert capsys.readouterr().out.split() == shown


def test_log_record_does_not_start_a_backend(monkeypatch, capsys):
    """Which would be too early for `jax.distributed` and for the number of CPU devices that `plan` asks for."""

    def start():
        raise AssertionError('a backend is started')

    monkeypatch.setattr(jax, 'process_index', start)
    with console.log_to_stdout():
        log.info('a line')
    assert capsys.readouterr().out == 'a line\n'


def test_notices_are_logged_as_notes_each_time(capsys):
    def warn(category):
        warnings.warn('cut off', category, stacklevel=1)

    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter('default')
        with console.log_to_stdout():
            for _ in range(2):
                warn(console.Notice)
            warn(UserWarning)
        warn(console.Notice)
    assert capsys.readouterr().out == 'note: cut off\n' * 2
    assert [w.category for w in others] == [UserWarning, console.Notice]


def test_log_to_a_closed_output_raises(monkeypatch):
    with open('/dev/full', 'w') as full, console.log_to_stdout():
        monkeypatch.setattr('sys.stdout', full)
        with pytest.raises(OSError, match='No space left'):
            log.info('a line')
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()


def test_print_result_and_error(capsys):
    console.print_result('a table')
    console.print_error('plan', 'a reason')
    assert capsys.readouterr() == ('a table\n', 'plan: a reason\n')
