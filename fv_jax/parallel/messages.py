"""Short texts between the processes of a job, by the key-value store of JAX's coordination service.

Collectives wait on devices, and not for long; here a process may be hours behind another one.
"""

import contextlib
import socket
import time

import jax
import orbax.checkpoint as ocp

POLL_S = 0.5
_CHECK_S = 2.0
_ENDED = 'fv_jax/ended'


class PeerEndedError(BaseException):
    """Raised when another process of the job has ended early. Not an Exception: no handler of a file's errors takes it.

    Attributes:
      code: the exit code of that process.
    """

    def __init__(self, host: str, code: int):
        super().__init__(f'another process of the job has ended on {host} with exit code {code}; its output says why')
        self.code = code


class Messages:
    """Sends and receives.

    Attributes:
      index: of this process.
      count: of processes.
    """

    def __init__(self, prefix: str):
        """prefix: of the keys."""
        self.index, self.count = jax.process_index(), jax.process_count()
        self._prefix, self._checked = prefix, 0.0

    def send(self, key: str, text: str) -> None:
        """Sends a text to all processes, under a key that none has used."""
        _client().key_value_set(f'{self._prefix}/{key}', text)

    def receive(self, key: str) -> str:
        """Waits for the text of a key, however long it takes. Raises PeerEndedError."""
        while (text := _find(f'{self._prefix}/{key}')) is None:
            self.check_ended()
            time.sleep(POLL_S)
        return text

    def check_ended(self) -> None:
        """Raises PeerEndedError if a process has announced its end. It asks every two seconds at most."""
        if time.monotonic() - self._checked < _CHECK_S:
            return
        self._checked = time.monotonic()
        if (found := _find(_ENDED)) is not None:
            code, _, host = found.partition(' ')
            raise PeerEndedError(host, int(code))


def announce_end(code: int) -> None:
    """Announces to the other processes, if there are any, that this one ends early with this exit code."""
    if jax.distributed.is_initialized():
        # Another process may have ended before, also the one that has the service.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _client().key_value_set(_ENDED, f'{code} {socket.gethostname()}')


def _client():
    return ocp.multihost.get_jax_distributed_client()


def _find(key: str) -> str | None:
    try:
        return _client().key_value_try_get(key)
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith('NOT_FOUND'):
            raise
        return None
