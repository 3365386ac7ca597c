"""Exit codes of the commands, besides 0; launchers decide by them whether to run a command again."""

FAILED = 1
USAGE = 2  # as argparse has it: the command line or the config must change
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: start the same command again
STALLED = 79  # the watchdog ended a run without progress; sysexits.h ends at 78
INTERRUPTED = 130  # from the keyboard; as in shells, 128 + SIGINT
BROKEN_PIPE = 141  # 128 + SIGPIPE
TERMINATED = 143  # 128 + SIGTERM


class PreemptedError(Exception):
    """Raised when a run was ended by a signal."""

    def __init__(self, step: int | None = None, saved: bool = False):
        """Args:
        step: the last step; None outside of the training loop.
        saved: whether the state was saved.
        """
        where = 'before a step' if step is None else f'at step {step}, which {"is" if saved else "could not be"} saved'
        super().__init__(f'preempted {where}; run the same command again to resume')
