"""A signal to one of several processes."""

import signal

from fv_jax.core.exit_codes import PREEMPTED
from tests import runs
from tests.parallel import joined
from tests.sampling import tiny


def test_sigterm_to_one_process_stops_all_at_the_same_step(tmp_path):
    """With one checkpoint, from which two processes resume, and then one."""
    workdir = tmp_path / 'preempted'
    more = '--config.loop.num_steps=40', '--config.loop.save_every=100'
    flags = runs.superres(workdir, tmp_path / 'vae.safetensors', *joined.RUN, *more)
    tiny.save_vae(tmp_path / 'vae.safetensors')
    first, second = started = joined.start(flags, 2)
    try:
        for line in first.stdout:
            if line.startswith('step  2/'):
                second.send_signal(signal.SIGTERM)
            if line.startswith('saved step'):
                break
        ended = [process.wait(timeout=300) for process in started]
        errors = [process.stderr.read() for process in started]
    finally:
        for process in started:
            process.kill()
    assert ended == [PREEMPTED] * 2, errors
    (step,) = runs.steps(workdir)
    assert 2 <= step < 40 and all(f'preempted at step {step}, which is saved' in error for error in errors)
    for processes in (2, 1):
        output, *_ = joined.train([*flags, f'--config.loop.num_steps={step + 1}'], processes)
        assert f'resuming from step {step} of {step + 1}' in output
        step += 1
    assert runs.steps(workdir) == [step - 2, step - 1, step]
    assert [row['step'] for row in runs.rows(workdir) if 'loss' in row] == list(range(1, step + 1))
