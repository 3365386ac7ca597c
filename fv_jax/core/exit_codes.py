"""Exit codes that tell whoever started a run what to do next, beside 0, 1 (stopped) and 2 (wrong usage)."""

PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: start the same command again
STUCK = 79  # the watchdog ended a run that did not move; sysexits.h ends at 78
INTERRUPTED = 130  # from the keyboard, as shells say it


class PreemptedError(Exception):
    """A run that was asked to end, and did. step: after which; None where none was under way. saved: whether it could
    be.
    """

    def __init__(self, step: int | None = None, saved: bool = False):
        where = 'before a step' if step is None else f'at step {step}, which {"is" if saved else "could not be"} saved'
        super().__init__(f'preempted {where}; run the same command again to go on')
