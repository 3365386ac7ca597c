"""A growing object: an object store cannot append, so the whole object is replaced, at most every few seconds."""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

INTERVAL_S = 10.0


class RemoteAppendFile:
    """Keeps the content in memory; a thread uploads it when it has changed, at most every `INTERVAL_S`.

    A process that is killed loses what was added since the last upload. An object that another process has written
    meanwhile is left alone.
    """

    def __init__(self, name: str, before: bytes, version: str, upload: Callable[[bytes, str], str | None]):
        """Starts the thread.

        Args:
          name: of the object, in messages.
          before: its content.
          version: of that content; '' if the object does not exist.
          upload: (content, version) replaces that version; returns the new one, None if it is another. Raises OSError.
        """
        self._name, self._content, self._version, self._upload = name, bytearray(before), version, upload
        self._uploaded = len(self._content)
        self._lock, self._uploading, self._closed = threading.Lock(), threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._upload_repeatedly, name=f'upload {name}', daemon=True)
        self._thread.start()

    def add(self, data: bytes) -> None:
        with self._lock:
            self._content += data

    def flush(self) -> None:
        """Uploads what is new. Raises OSError."""
        with self._uploading:
            self._upload_new()

    def close(self) -> None:
        """Uploads the rest. Raises OSError."""
        self._closed.set()
        self._thread.join()
        self.flush()

    def _upload_repeatedly(self) -> None:
        while not self._closed.wait(INTERVAL_S):
            try:
                self.flush()
            except OSError as error:
                log.warning(f'{self._name}: cannot be written ({error}); kept in memory')

    def _upload_new(self) -> None:
        with self._lock:
            if self._uploaded == len(self._content):
                return
            content = bytes(self._content)
        version = self._upload(content, self._version)
        if version is None:
            raise OSError(f'{self._name}: another process has written it')
        self._version, self._uploaded = version, len(content)
