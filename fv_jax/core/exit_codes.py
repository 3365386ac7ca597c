"""Exit codes of the commands, beside 0, which tell whoever started one what to do next."""

FAILED = 1
USAGE = 2  # as argparse has it: the command line or the config must change
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: start the same command again
STALLED = 79  # the watchdog ended a run that did not move; sysexits.h ends at 78
INTERRUPTED = 130  # from the keyboard, as shells say it: 128 + SIGINT
TERMINATED = 143  # 128 + SIGTERM


class PreemptedError(Exception):
    """A run that was asked to end, and did. step: after which; None where none was under way. saved: whether it could
    be.
    """

    def __init__(self, step: int | None = None, saved: bool = False):
        where = 'before a step' if step is None else f'at step {step}, which {"is" if saved else "could not be"} saved'
        super().__init__(f'preempted {where}; run the same command again to go on')
