"""Shares the shards of a plan among the processes of a job, on one host or many.

The first process plans and publishes, as one that is alone (`job.Job`). It names the missing shards to the others;
process i of n makes the i-th, the (i + n)-th and so on of them, and reports to the first one how that ended. Shards are
files in the plan's folder, which all have to reach: nothing else passes between processes.
"""

import base64
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from fv_jax.core.checks import one_line, require
from fv_jax.core.paths import StoragePath
from fv_jax.data.preparation import sets
from fv_jax.data.preparation.job import Make
from fv_jax.data.preparation.plan import Plan

# NFS shows a host what others have written after at most this time, if its settings are the defaults.
VISIBLE_S = 90.0
_POLL_S = 2.0


class Messages(Protocol):
    """Texts between processes; `parallel.messages`."""

    index: int
    count: int

    def send(self, key: str, text: str) -> None: ...

    def receive(self, key: str) -> str: ...


class Processes:
    """Makes the shards of plans, one plan after another, in all processes of a job."""

    def __init__(self, messages: Messages, make: Make):
        """Args:
        messages: between the processes.
        make: makes shards of a plan in this process. Of its errors OSError costs no shard of other processes; any other
          has to end the process.
        """
        self._messages, self._make, self._plans = messages, make, 0

    def make_shards(self, plan: Plan, numbers: Sequence[int]) -> None:
        """Makes shards of a plan in all processes; called by the first one.

        Raises:
          OSError: a shard could not be made.
        """
        key = self._send({'numbers': _pack(numbers)})
        failed = {0: self._make_share(plan, numbers)}
        for process in range(1, self._messages.count):
            failed[process] = self._messages.receive(f'{key}/{process}')
        errors = [f'process {process}: {error}' for process, error in failed.items() if error]
        more = f' (and {len(errors) - 1} more)' if len(errors) > 1 else ''
        require(not errors, f'{"".join(errors[:1])}{more}', OSError)
        deadline = time.monotonic() + VISIBLE_S
        while plan.missing() and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def finish(self, code: int) -> None:
        """Ends the loop of the other processes; called by the first one when there are no more plans."""
        self._send({'code': code})

    def follow(self, folder: StoragePath, made_with: Mapping[str, Any]) -> int:
        """Makes this process's part of each plan of the first one; called by the others.

        Args:
          folder: of the plans.
          made_with: the configuration and the fingerprints of encoders in this process, as in `plan.Header`.

        Returns:
          The exit code of the first process.

        Raises:
          ValueError: the first process has another configuration or other encoders.
          OSError: the plan cannot be read.
        """
        index = self._messages.index
        while True:
            key = self._next_key()
            task = json.loads(self._messages.receive(key))
            if 'code' in task:
                return task['code']
            try:
                plan = Plan(folder)
            except FileNotFoundError:
                raise OSError(
                    f'{folder}: process {index} does not see the plan of process 0; name an output that all hosts '
                    'share, with the same path'
                ) from None
            differences = list(sets.differences(plan.header.made_with, made_with))
            require(
                not differences,
                f'process {index} has other settings than process 0: {"".join(differences[:1])}; all have to be given '
                'the same configuration and weights',
            )
            error = self._make_share(plan, _unpack(task['numbers']))
            self._messages.send(f'{key}/{index}', error)

    def _send(self, task: Mapping[str, Any]) -> str:
        key = self._next_key()
        self._messages.send(key, json.dumps(task))
        return key

    def _next_key(self) -> str:
        self._plans += 1
        return str(self._plans)

    def _make_share(self, plan: Plan, numbers: Sequence[int]) -> str:
        """Makes the shards of this process; returns what is wrong, '' for nothing."""
        try:
            self._make(plan, numbers[self._messages.index :: self._messages.count])
        except OSError as error:
            return one_line(error)
        return ''


def _pack(numbers: Sequence[int]) -> str:
    """Returns numbers as a text of a character for every six of the range: a million of them in 167 kB."""
    bits = np.zeros(max(numbers, default=-1) + 1, bool)
    bits[list(numbers)] = True
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def _unpack(text: str) -> list[int]:
    return np.flatnonzero(np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8))).tolist()
