"""Records of a run, from one place: the terminal, `metrics.jsonl` and TensorBoard.

`metrics.jsonl` holds one object a row, each with `step`; rows of training have `loss`, rows of evaluation
`eval/...`. A resumed run first drops the rows that it is about to write again.
"""

import io
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

JSONL = 'metrics.jsonl'


class MetricWriter:
    """Writes to a run's folder; `line` receives what a person should read."""

    def __init__(self, folder: Path, *, start_step: int, line: Callable[[str], None]):
        self._line = line
        path = folder / JSONL
        _drop_rows_after(path, start_step)
        self._jsonl = path.open('a', encoding='utf-8')
        self._board = SummaryWriter(str(folder / 'tensorboard'), purge_step=start_step + 1 if start_step else None)

    def scalars(self, step: int, values: Mapping[str, float], text: str) -> None:
        """One row, the same figures as TensorBoard scalars, and one line of text."""
        row = {'step': step} | {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
        self._jsonl.write(json.dumps(row) + '\n')
        self._jsonl.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._line(text)

    def video(self, step: int, name: str, frames_FHWC: np.ndarray, fps: float) -> None:
        """A uint8 video, as an animated GIF in TensorBoard."""
        images = [Image.fromarray(frame) for frame in frames_FHWC]
        buffer = io.BytesIO()
        images[0].save(buffer, 'GIF', save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
        height, width = frames_FHWC.shape[1:3]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=buffer.getvalue())
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._board.file_writer.add_summary(summary, step)

    def close(self) -> None:
        self._jsonl.close()
        self._board.close()


def _drop_rows_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for row in path.read_text(encoding='utf-8').splitlines(keepends=True):
        try:
            if json.loads(row)['step'] > step:
                continue
        except json.JSONDecodeError:  # the last row of a run that was killed while writing it
            continue
        kept.append(row.rstrip('\n') + '\n')
    partial = path.with_suffix('.partial')
    partial.write_text(''.join(kept), encoding='utf-8')
    os.replace(partial, path)


def train_line(step: int, num_steps: int, values: Mapping[str, float]) -> str:
    """One readable line a step. Without `steps_per_s`, which the first step has not: no rates."""
    line = (
        f'step {step:>{len(str(num_steps))}}/{num_steps}  loss {values["loss"]:.4f}  grad {values["grad_norm"]:.3g}'
        f'  update {values["update_norm"]:.2g}  lr {values["learning_rate"]:.2g}'
    )
    if 'steps_per_s' not in values:
        return line
    rate, eta_s = values['steps_per_s'], (num_steps - step) / values['steps_per_s']
    return f'{line}  {rate:.2f} steps/s  {values["clips_per_s"]:.2f} clips/s  ETA {duration(eta_s)}'


def eval_line(step: int, means: Mapping[str, float]) -> str:
    """One readable line an evaluation."""
    figures = '  '.join(f'{name.removeprefix("eval/")} {value:.4f}' for name, value in means.items())
    return f'eval at step {step}: {figures}'


def duration(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f'{hours}:{m:02d}:{s:02d}' if hours else f'{m}:{s:02d}'
