"""The one training loop. It knows the Stage protocol; the loader, the writer and what saves come in.

Step n is dispatched before the metrics of step n - 1 are read, so the device never waits for the host.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import jax
import numpy as np

from fv_jax.core.config import ConfigError
from fv_jax.core.rules import Rules
from fv_jax.stages.base import Batch, Metrics, Stage
from fv_jax.training import optim
from fv_jax.training.alarm import Alarm, AlarmConfig, CollapseError
from fv_jax.training.metrics import MetricWriter, NoMetrics, eval_line, health_line, train_line
from fv_jax.training.state import Network, Params, TrainState, inference_params
from fv_jax.training.step import Evaluate, Sample, eval_step, sample_step, train_step


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """num_steps: of the whole run. log_every, eval_every, save_every: in steps; eval_every 0 never evaluates.
    The last step is always saved. keep: how many checkpoints stay. alarm: when an evaluation rings it.
    """

    num_steps: int
    log_every: int = 1
    eval_every: int = 0
    save_every: int = 1000
    keep: int = 3
    alarm: AlarmConfig = dataclasses.field(default_factory=AlarmConfig)

    def __post_init__(self):
        for name, low in (('num_steps', 1), ('log_every', 1), ('save_every', 1), ('keep', 1), ('eval_every', 0)):
            if getattr(self, name) < low:
                raise ConfigError(f'{name}={getattr(self, name)}: must be at least {low}')


class Measured(Protocol):
    """What a health check finds: figures by name, and videos (name, uint8 FHWC)."""

    figures: dict[str, float]
    videos: Sequence[tuple[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Validation:
    """batches: encoded, always the same ones. show: what of `Stage.sample`'s result goes to the writer, as
    (name, uint8 FHWC) pairs. fps: of those videos. health: measures more, of parameters, and shows its own videos in
    place of `show`'s; None for stages without.
    """

    batches: Sequence[Batch]
    show: Callable[[dict[str, jax.Array]], Sequence[tuple[str, np.ndarray]]]
    fps: float = 24.0
    health: Callable[[Params], Measured] | None = None


@dataclasses.dataclass
class Loop:
    """Everything a run is made of; `run` goes from the state's step to the last."""

    stage: Stage
    network: Network
    optim: optim.OptimConfig
    config: LoopConfig
    rules: Rules
    key: jax.Array
    writer: MetricWriter | NoMetrics
    save: Callable[[int, TrainState], None]
    validation: Validation | None = None
    shardings: TrainState | None = None  # where the state lives; None on one device
    _alarm: Alarm = dataclasses.field(init=False)
    _update_ratio: float = dataclasses.field(init=False, default=0.0)  # the largest since the last evaluation

    def __post_init__(self):
        self._alarm = Alarm(self.config.alarm)

    def run(self, state: TrainState, batches: Iterator[Batch]) -> TrainState:
        """`batches` starts at the batch of the state's step. Returns the last state, saved."""
        config = self.config
        tx = optim.optimizer(self.optim, config.num_steps)
        step_fn = train_step(self.stage, self.network, tx, self.optim, config.num_steps, self.rules, self.shardings)
        eval_fn = eval_step(self.stage, self.network, self.rules)
        sample_fn = sample_step(self.stage, self.network, self.rules)
        clock = _Clock()
        step, pending = int(state.step), None
        while step < config.num_steps:
            batch = self.stage.encode(next(batches))
            state, metrics = step_fn(state, batch, self.key)
            if pending is not None:
                self._log(*pending, clock)
            step += 1
            pending = step, metrics, len(next(iter(batch.values())))
            last = step == config.num_steps
            evaluates = self.validation is not None and config.eval_every and (last or step % config.eval_every == 0)
            if last or evaluates or step % config.save_every == 0:
                self._log(*pending, clock)
                pending = None
                with clock.pause():
                    if evaluates:
                        self._evaluate(step, state, eval_fn, sample_fn)
                    if last or step % config.save_every == 0:
                        self.save(step, state)
        return state

    def _log(self, step: int, metrics: Metrics, rows: int, clock: '_Clock') -> None:
        values = {name: float(value) for name, value in metrics.items()}
        # A gradient that is not finite spoils the state one step before the loss shows it.
        self._update_ratio = max(self._update_ratio, values['update_norm'] / max(values['param_norm'], 1e-12))
        for name in ('loss', 'grad_norm', 'param_norm'):
            if not np.isfinite(values[name]):
                raise FloatingPointError(
                    f'step {step}: {name} is {values[name]}; what was saved before it stays. To go on from there with '
                    'a lower learning rate, start another run with --config.init_from'
                )
        rate = clock.tick()
        if step % self.config.log_every and step != self.config.num_steps:
            return
        if rate is not None:
            values |= {'steps_per_s': rate, 'clips_per_s': rate * rows}
        self.writer.scalars(step, values, train_line(step, self.config.num_steps, values))

    def _evaluate(self, step: int, state: TrainState, eval_fn: Evaluate, sample_fn: Sample) -> None:
        params, key = inference_params(state), jax.random.fold_in(self.key, 2**31 - 1)
        rows = [eval_fn(params, batch, key, i) for i, batch in enumerate(self.validation.batches)]
        names = ['loss', *(name for name in rows[0] if name != 'loss')]
        means = {f'eval/{name}': float(np.mean([float(row[name]) for row in rows])) for name in names}
        self.writer.scalars(step, means, eval_line(step, means))
        if self.validation.health is None:
            videos = self.validation.show(sample_fn(params, self.validation.batches[0], key))
        else:
            measured = self.validation.health(params)
            videos = measured.videos
        for name, frames in videos:
            self.writer.video(step, name, frames, self.validation.fps)
        if self.validation.health is not None:
            self._check_health(step, measured.figures | {'update_ratio': self._update_ratio})
            self._update_ratio = 0.0

    def _check_health(self, step: int, figures: dict[str, float]) -> None:
        """Writes the figures, and what is wrong with them. Raises CollapseError if the run is to stop then."""
        wrong = self._alarm.check(step, figures)
        row = {f'health/{name}': value for name, value in figures.items()} | {'health/alarms': float(len(wrong))}
        self.writer.scalars(step, row, health_line(step, figures, wrong))
        if wrong and self.config.alarm.stop:
            raise CollapseError(f'step {step}: {wrong[0]}; what was saved before it stays')


class _Clock:
    """Steps a second over the last few steps, pauses taken out; the first step, which compiles, is not counted."""

    def __init__(self, window: int = 20):
        self._window = window
        self._ticks: list[float] = []
        self._paused = 0.0

    def tick(self) -> float | None:
        """Steps a second, called after each step; None after the first."""
        self._ticks = [*self._ticks, time.perf_counter() - self._paused][-self._window - 1 :]
        spans = len(self._ticks) - 1
        if spans < 1:
            return None
        return spans / max(self._ticks[-1] - self._ticks[0], 1e-9)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start
