"""How commands end: exit codes, and one line for each error that a user can cause."""

import logging
import os
import signal
import sys
import warnings

import jax
import pytest

from fv_jax.core.command_line import UsageError
from fv_jax.core.commands import run_command, silence_third_party_logs
from fv_jax.core.config import ConfigError
from fv_jax.core.exit_codes import PreemptedError
from fv_jax.core.files import atomic_write


class DamagedError(RuntimeError):
    """An error that only some commands know."""


class WorseError(DamagedError):
    pass


def ending(error):
    """A command's body that ends with an error."""

    def body(argv):
        raise error

    return body


def test_run_command_passes_arguments_and_returns_the_exit_code(monkeypatch):
    assert run_command('plan', len, ['--a', '--b']) == 2
    monkeypatch.setattr(sys, 'argv', ['plan', '--c'])
    assert run_command('plan', len, None) == 1


@pytest.mark.parametrize(
    ('error', 'code', 'text'),
    [
        (UsageError('--a: no'), 2, '--a: no'),
        (ConfigError('config.b: no'), 2, 'config.b: no'),
        (ValueError('a\n  value'), 1, 'a value'),
        (FileNotFoundError('no file'), 1, 'no file'),
        (jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: memory'), 1, 'RESOURCE_EXHAUSTED: memory'),
        (
            PreemptedError(3, saved=True),
            75,
            'preempted at step 3, which is saved; run the same command again to resume',
        ),
        (KeyboardInterrupt(), 130, 'interrupted'),
        (DamagedError('of no use'), 1, 'of no use'),
        (WorseError('of less use'), 2, 'of less use'),
    ],
)
def test_run_command_turns_errors_into_a_line_and_a_code(error, code, text, capsys):
    assert run_command('plan', ending(error), [], errors={DamagedError: 1, WorseError: 2}) == code
    assert capsys.readouterr() == ('', f'plan: {text}\n')


def test_run_command_reports_what_an_interrupt_leaves(capsys):
    more = {'failed': 'nothing written: ', 'left': '; nothing written'}
    for error in (OSError('the disk is full'), UsageError('--a: no'), KeyboardInterrupt()):
        run_command('prepare', ending(error), [], **more)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        'prepare: nothing written: the disk is full', 'prepare: --a: no', 'prepare: interrupted; nothing written'
    ]  # fmt: skip


@pytest.mark.parametrize('error', [DamagedError('unknown here'), KeyError('a bug'), SystemExit(0)])
def test_run_command_lets_other_errors_pass(error):
    with pytest.raises(type(error)):
        run_command('plan', ending(error), [])


def test_run_command_shows_log_records_before_the_error(capsys):
    def body(argv):
        logging.getLogger('fv_jax.plan').info('compiling')
        raise ValueError('too large')

    assert run_command('plan', body, []) == 1
    assert capsys.readouterr() == ('compiling\n', 'plan: too large\n')
    logging.getLogger('fv_jax.plan').info('later')
    assert capsys.readouterr().out == ''


class Failing:
    """Raises where no caller can catch it."""

    def __init__(self, text):
        self.text = text

    def __del__(self):
        raise RuntimeError(self.text)


def test_run_command_silences_third_party_logs_only(capsys, monkeypatch):
    absl, level = logging.getLogger('absl'), logging.getLogger('absl').level
    monkeypatch.setattr(sys, 'unraisablehook', sys.__unraisablehook__)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        silence_third_party_logs()
        try:
            assert not absl.isEnabledFor(logging.ERROR)
            assert logging.getLogger('fv_jax').isEnabledFor(logging.WARNING)
            warnings.warn_explicit('theirs', UserWarning, 'x.py', 1, module='orbax.checkpoint.handlers')
            warnings.warn_explicit('ours', UserWarning, 'x.py', 1, module='fv_jax.data.loader')
            for text in ('Event loop is closed', 'something of ours'):
                Failing(text)
            print('a line')
        finally:
            absl.setLevel(level)
    assert [str(w.message) for w in caught] == ['ours']
    out, err = capsys.readouterr()
    assert out == 'a line\n' and 'something of ours' in err and 'Event loop' not in err


def test_run_command_ends_on_sigterm_and_removes_temporary_files(tmp_path, capsys):
    def body(argv):
        with atomic_write(tmp_path / 'a.mp4') as partial:
            partial.touch()
            os.kill(os.getpid(), signal.SIGTERM)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert run_command('plan', body, [], left='; nothing was written') == 143
    assert capsys.readouterr() == ('', 'plan: terminated; nothing was written\n')
    assert not list(tmp_path.iterdir()) and signal.getsignal(signal.SIGTERM) == before
