"""Writes the metrics of a run to the log, to `metrics.jsonl` and to TensorBoard.

Each line of `metrics.jsonl` is one JSON object with `step`; lines of training have `loss`, lines of evaluation
`eval/...`. A resumed run first drops the lines of the steps that it will repeat.

Both are appended to files that are local or in object storage, where a file is replaced every few seconds; `flush`
writes the rest before a checkpoint is saved, so that a run that resumes from it misses no line. tensorboardX's own
writers are not used: they print a traceback when the disk is full, and replace an object at every event.
"""

import contextlib
import io
import json
import logging
import math
import socket
import struct
import time
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from fv_jax.core.files import append_to, make_folder, write_text
from fv_jax.core.paths import StoragePath

log = logging.getLogger(__name__)

JSONL = 'metrics.jsonl'
TENSORBOARD = 'tensorboard'
MAX_EVENT_BYTES = 2**23  # of a file of events, which object storage replaces as a whole


class MetricWriter:
    """Writes metrics and videos to a run's folder, and logs one line for each."""

    def __init__(self, folder: StoragePath, *, start_step: int):
        self._folder = folder
        self._open(start_step)

    def _open(self, start_step: int) -> None:
        path = self._folder / JSONL
        _drop_lines_after(path, start_step)
        self._jsonl = append_to(path)
        self._tensorboard = _TensorBoardWriter(self._folder / TENSORBOARD, start_step)

    def __enter__(self) -> 'MetricWriter':
        return self

    def __exit__(self, kind, error, traceback) -> None:
        # On a full disk closing raises too, which would hide the error that stopped the run.
        with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
            self.close()

    def scalars(self, step: int, values: Mapping[str, float], text: str) -> None:
        """Writes a line of metrics, the same as TensorBoard scalars, and logs `text`. Non-finite values become text."""
        row = {'step': step} | {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
        self._jsonl.add((json.dumps(row) + '\n').encode())
        self._tensorboard.add(step, *(Summary.Value(tag=name, simple_value=value) for name, value in values.items()))
        log.info(text)

    def video(self, step: int, name: str, frames_FHWC: np.ndarray, fps: float) -> None:
        """Writes a uint8 video (F, H, W, 3) as an animated GIF to TensorBoard."""
        images = [Image.fromarray(frame) for frame in frames_FHWC]
        buffer = io.BytesIO()
        images[0].save(buffer, 'GIF', save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
        height, width = frames_FHWC.shape[1:3]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=buffer.getvalue())
        self._tensorboard.add(step, Summary.Value(tag=name, image=image))

    def log(self, text: str) -> None:
        """Logs a line of text, without metrics."""
        log.info(text)

    def rewind(self, step: int) -> None:
        """Drops the lines after a step, which the run will repeat."""
        self.close()
        self._open(step)

    def flush(self) -> None:
        """Writes everything to storage. What cannot be written is kept; a warning says so."""
        try:
            self._jsonl.flush()
            self._tensorboard.flush()
        except OSError as error:
            log.warning(f'metrics are kept in memory: {error}')

    def close(self) -> None:
        """Raises OSError when lines remain that cannot be written."""
        self._tensorboard.close()
        self._jsonl.close()


class NoMetrics:
    """A writer that writes nothing, for all processes but the first."""

    def __enter__(self) -> 'NoMetrics':
        return self

    def __exit__(self, kind, error, traceback) -> None:
        pass

    def scalars(self, step: int, values: Mapping[str, float], text: str) -> None:
        pass

    def video(self, step: int, name: str, frames_FHWC: np.ndarray, fps: float) -> None:
        pass

    def log(self, text: str) -> None:
        pass

    def flush(self) -> None:
        pass

    def rewind(self, step: int) -> None:
        pass


class _TensorBoardWriter:
    """Writes TensorBoard event files, one after another.

    TensorBoard reads them in the order of their names, and each to its end.
    """

    def __init__(self, folder: StoragePath, start_step: int):
        make_folder(folder)
        self._path = folder / f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{start_step}'
        self._num_files, self._size = 1, 0
        self._file = append_to(self._path)
        self._write(file_version='brain.Event:2')
        if start_step:  # makes TensorBoard drop what an earlier file has for later steps
            self._write(step=start_step + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, *values: Summary.Value) -> None:
        # `metrics.jsonl` has the same values: an event that cannot be written must not end the run.
        with contextlib.suppress(OSError):
            if self._size > MAX_EVENT_BYTES:
                self._open_next()
            self._write(step=step, summary=Summary(value=values))

    def _open_next(self) -> None:
        file = append_to(self._path.with_name(f'{self._path.name}.{self._num_files:03d}'))
        self.close()
        self._file, self._size = file, 0
        self._num_files += 1
        self._write(file_version='brain.Event:2')

    def _write(self, **fields) -> None:
        data = Event(wall_time=time.time(), **fields).SerializeToString()
        header = struct.pack('<Q', len(data))
        record = header + _checksum(header) + data + _checksum(data)
        self._file.add(record)
        self._size += len(record)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def _checksum(data: bytes) -> bytes:
    return struct.pack('<I', masked_crc32c(data))


def _drop_lines_after(path: StoragePath, step: int) -> None:
    try:
        text = path.read_text(encoding='utf-8')
    except FileNotFoundError:
        return
    kept = []
    for line in text.splitlines(keepends=True):
        try:
            if json.loads(line)['step'] > step:
                continue
        except json.JSONDecodeError:  # the last line of a run that was killed while writing it
            continue
        kept.append(line.rstrip('\n') + '\n')
    if (rest := ''.join(kept)) != text:
        write_text(path, rest)


def format_train_line(step: int, num_steps: int, values: Mapping[str, float]) -> str:
    """Formats the metrics of a training step as one line.

    Rates are omitted without `steps_per_s`, which the first step does not have. Of the throughput metrics it has the
    MFU or, where the chip's peak rate is not known, TFLOP/s per chip.
    """
    line = (
        f'step {step:>{len(str(num_steps))}}/{num_steps}  loss {values["loss"]:.4f}  grad {values["grad_norm"]:.3g}'
        f'  update {values["update_norm"]:.2g}  lr {values["learning_rate"]:.2g}'
    )
    if 'steps_per_s' not in values:
        return line
    rate, eta_s = values['steps_per_s'], (num_steps - step) / values['steps_per_s']
    if 'mfu' in values:
        speed = f'  MFU {values["mfu"]:.1%}'
    else:
        speed = f'  {values["tflops_per_chip"]:.3g} TFLOP/s' if 'tflops_per_chip' in values else ''
    return f'{line}  {rate:.2f} steps/s  {values["clips_per_s"]:.2f} clips/s{speed}  ETA {format_duration(eta_s)}'


def format_eval_line(step: int, means: Mapping[str, float]) -> str:
    """Formats the metrics of an evaluation as one line."""
    metrics = '  '.join(f'{name.removeprefix("eval/")} {value:.4f}' for name, value in means.items())
    return f'eval at step {step}: {metrics}'


def format_health_line(step: int, figures: Mapping[str, float], violations: Sequence[str]) -> str:
    """Formats the metrics of a health check, without those by decile, and one line for each violated limit."""
    shown = '  '.join(f'{name} {value:.3g}' for name, value in figures.items() if '/' not in name)
    return '\n'.join([f'health at step {step}: {shown}', *(f'COLLAPSE at step {step}: {line}' for line in violations)])


def format_duration(seconds: float) -> str:
    """Formats seconds as 1:02:03, or as 2:03 below an hour."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f'{hours}:{m:02d}:{s:02d}' if hours else f'{m}:{s:02d}'
