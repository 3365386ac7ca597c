"""The trainer: one loop for all stages. It knows the Stage protocol; everything else comes in as a hook.

    while step < num_steps:
        batch -> step n is dispatched -> the metrics of step n - 1 are read -> checkpoint and evaluation where due

Metrics are read one step late. JAX dispatches asynchronously: reading the metrics of step n right away would wait for
the device, which would then wait for the host to prepare step n + 1. They are read at once only where the state of
step n is about to be saved or evaluated: a bad step must be known before its state becomes a checkpoint.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import NoReturn, Protocol

import jax
import numpy as np

from fv_jax.core import throughput
from fv_jax.core.exit_codes import PreemptedError
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.stages.protocol import Batch, Metrics, Stage
from fv_jax.training import optimizer
from fv_jax.training.config import MAX_STEPS, LoopConfig
from fv_jax.training.monitoring.anomalies import Anomaly, AnomalyGuard, BadStep
from fv_jax.training.monitoring.goodput import Cause, Goodput, Rate, goodput_line
from fv_jax.training.monitoring.metric_writer import MetricWriter, NoMetrics, format_train_line
from fv_jax.training.progress import Progress
from fv_jax.training.state import ModelDef, TrainState, inference_params
from fv_jax.training.step import train_step
from fv_jax.training.validation import Validation, Validator

ROLLBACK_KEYS = MAX_STEPS  # offset of the noise keys after a rollback: above every step number
EVAL_KEY = 2**31 - 1
_ADVICE = (
    'earlier checkpoints are kept. To continue from one with a lower learning rate, start another run with '
    '--config.init_from'
)


class Checkpointer(Protocol):
    """Saves states while training continues; leaves earlier checkpoints alone. All processes call it alike."""

    def start(self, step: int, state: TrainState, progress: Progress) -> None:
        """Starts a save. Returns when the state has been copied and may be donated."""

    def poll(self) -> None:
        """Reports the result of a save that has finished; called after every step."""

    def wait(self) -> bool:
        """Waits for the save that is in progress; returns whether the last save succeeded."""


@dataclasses.dataclass(frozen=True)
class InFlightStep:
    """A dispatched step whose metrics have not been read.

    Attributes:
      step: number of steps including this one.
      batch: encoded.
      key: what the noise of its examples was folded from.
      signals: two booleans, the same in all processes: stop, save.
      cost: what it computes, where that is known.
    """

    step: int
    metrics: Metrics
    batch: Batch
    key: jax.Array
    signals: jax.Array | np.ndarray
    cost: throughput.StepCost | None


@dataclasses.dataclass
class Due:
    """What follows a step: an evaluation, a save, the end of the run."""

    evaluate: bool
    save: bool
    stop: bool = False


class RollbackRequired(Exception):
    """Raised when the run cannot continue from its current state; the message is the reason."""


@dataclasses.dataclass
class Trainer:
    """The training loop with its hooks; `run` trains from the state's step to the last.

    Attributes:
      stage: samples noise and times, computes the loss, and samples.
      network: the structure of the stage's network.
      key: the noise of the run is folded from it.
      writer: records metrics, log lines and videos.
      make_batches: (step, num_rollbacks) -> the batches from that step on, in the run's data order (0) or another.
      checkpointer: saves states.
      restore: returns the newest checkpoint; None where there is none.
      dump_bad_step: stores a bad step for `train --replay`.
      poll_signals: step -> (stop, save), read together with the step's metrics.
      profile: called before each step with its number and the metrics of the step in flight.
      progress, goodput: of the run so far.
      validation: what is evaluated; None evaluates nothing.
      shard_metrics: returns metrics of shards that are fetched while they are read; empty without any.
      step_cost: batch -> what the step computes, its encoding included; None where that is not known.
      shardings: of the state; None on one device.
    """

    stage: Stage
    network: ModelDef
    optim: optimizer.OptimConfig
    config: LoopConfig
    context: ParallelContext
    key: jax.Array
    writer: MetricWriter | NoMetrics
    make_batches: Callable[[int, int], Iterator[Batch]]
    checkpointer: Checkpointer
    restore: Callable[[], tuple[TrainState, Progress] | None]
    dump_bad_step: Callable[[BadStep], None]
    poll_signals: Callable[[int], jax.Array | np.ndarray] = lambda step: np.zeros(2, bool)
    profile: Callable[[int, Metrics | None], None] = lambda step, in_flight: None
    progress: Progress = dataclasses.field(default_factory=Progress)
    goodput: Goodput = dataclasses.field(default_factory=Goodput)
    validation: Validation | None = None
    shard_metrics: Callable[[], dict[str, float]] = dict
    step_cost: Callable[[Batch], throughput.StepCost | None] = lambda batch: None
    shardings: TrainState | None = None
    _guard: AnomalyGuard = dataclasses.field(init=False)
    _validator: Validator | None = dataclasses.field(init=False, default=None)
    _save_pending: bool = dataclasses.field(init=False, default=False)
    _rate: Rate = dataclasses.field(init=False, default_factory=Rate)
    _compiled_shapes: set[str] = dataclasses.field(init=False, default_factory=set)

    def __post_init__(self):
        self._guard = AnomalyGuard(self.config.bad_steps, self.progress)
        if self.validation is not None and self.config.eval_every:
            key, monitor = jax.random.fold_in(self.key, EVAL_KEY), self.config.collapse_monitor
            programs = self.stage, self.network, self.context, key
            self._validator = Validator(self.validation, *programs, self.writer, monitor, self.progress)

    def run(self, state: TrainState) -> TrainState:
        """Trains, and returns the last state, which has been saved.

        Raises:
          FloatingPointError: too many bad steps, and no rollback is left.
          CollapseError: the collapse monitor reported a fault, and the run is configured to stop then.
          PreemptedError: a signal asked the run to stop; its state is saved.
        """
        config = self.config
        tx = optimizer.make_optimizer(self.optim, config.num_steps)
        where = self.context, self.shardings, config.microbatches
        step_fn = train_step(self.stage, self.network, tx, self.optim, config.num_steps, *where)
        step, in_flight = int(state.step), None
        batches, key = self._new_batches(step)
        self.goodput.switch_to('step')
        while step < config.num_steps:
            self.profile(step + 1, None if in_flight is None else in_flight.metrics)
            batch, cost = self._next_batch(batches, in_flight)
            with self.goodput.track('step' if self._is_compiled(batch) else 'compile'):
                # The state is donated: the new one takes its memory, and the old one cannot be read any more.
                state, metrics = step_fn(state, batch, key)
            step += 1
            dispatched = InFlightStep(step, metrics, batch, key, self.poll_signals(step), cost)
            due, diverged = self._due(step), None
            try:
                if in_flight is not None:
                    self._read_metrics(in_flight, state, due)
                if due.evaluate or due.save:
                    self._read_metrics(dispatched, state, due)
            except RollbackRequired as error:
                diverged = str(error)  # the exception's traceback holds the state: it must be freed before the rollback
            if diverged is not None:
                # The restored state needs the memory of whatever the diverged steps still hold.
                state = metrics = batch = in_flight = dispatched = None
                state = self._roll_back(diverged)
                step = int(state.step)
                batches, key = self._new_batches(step)
                continue
            self.checkpointer.poll()
            in_flight = None if due.evaluate or due.save else dispatched
            self._after_step(step, state, due)
        if self._compiled_shapes:  # otherwise the run was already complete
            self._write_goodput(step)
        return state

    # --- one step ---

    def _new_batches(self, step: int) -> tuple[Iterator[Batch], jax.Array]:
        """Returns the batches from a step on, and the key of their noise; both differ after each rollback."""
        rollbacks = self.progress.num_rollbacks
        key = self.key if rollbacks == 0 else jax.random.fold_in(self.key, ROLLBACK_KEYS + rollbacks)
        return self.make_batches(step, rollbacks), key

    def _next_batch(
        self, batches: Iterator[Batch], in_flight: InFlightStep | None
    ) -> tuple[Batch, throughput.StepCost | None]:
        """Returns the next batch, encoded, and its cost. Waiting counts as such only while the device is idle."""
        with self.goodput.track_data_wait(lambda: in_flight is not None and not in_flight.metrics['loss'].is_ready()):
            batch = next(batches)
        return self.stage.encode(batch), self.step_cost(batch)

    def _is_compiled(self, batch: Batch) -> bool:
        """Returns whether a step with a batch of these shapes was run before."""
        shapes = str({name: (value.shape, value.dtype) for name, value in batch.items()})
        known = shapes in self._compiled_shapes
        self._compiled_shapes.add(shapes)
        return known

    def _due(self, step: int) -> Due:
        config, last = self.config, step == self.config.num_steps
        evaluate = self._validator is not None and (last or step % config.eval_every == 0)
        return Due(evaluate, save=last or self._save_pending or step % config.save_every == 0)

    def _read_metrics(self, in_flight: InFlightStep, state: TrainState, due: Due) -> None:
        """Waits for a step's metrics, checks and writes them, and adds what its signals ask for to `due`.

        Raises RollbackRequired.
        """
        step = in_flight.step
        values = {name: float(value) for name, value in in_flight.metrics.items()}
        anomaly = self._guard.check(values)
        rates = self._rate.tick(len(next(iter(in_flight.batch.values()))), in_flight.cost)
        if anomaly is not None:
            self._report(anomaly, in_flight, values, state)
        else:
            ratio = values['update_norm'] / max(values['param_norm'], 1e-12)
            self.progress.update_ratio = max(self.progress.update_ratio, ratio)
        if anomaly is not None or step % self.config.log_every == 0 or step == self.config.num_steps:
            counts = {'bad_steps': float(self.progress.bad_steps), 'spikes': float(self.progress.spikes)}
            row = values | rates | counts | throughput.peak_memory()
            self.writer.scalars(step, row, format_train_line(step, self.config.num_steps, row))
        if anomaly is not None and anomaly.needs_rollback:
            times = f' ({self._guard.consecutive} consecutive bad steps)' if self._guard.consecutive > 1 else ''
            raise RollbackRequired(f'step {step}: {anomaly.reason}{times}')
        stop, save = np.asarray(in_flight.signals)
        due.stop |= bool(stop)
        due.save |= bool(stop | save)

    def _after_step(self, step: int, state: TrainState, due: Due) -> None:
        last = step == self.config.num_steps
        if due.stop and not last:
            self._stop(step, state, due)
        if due.evaluate:
            self._evaluate(step, state)
        if due.save:
            self._save(step, state, last)

    @contextlib.contextmanager
    def _untimed(self, cause: Cause) -> Iterator[None]:
        """A context whose time is attributed to `cause` and does not count against the step rate."""
        with self._rate.pause(), self.goodput.track(cause):
            yield

    def _write_goodput(self, step: int) -> None:
        shards = {f'goodput/{name}': value for name, value in self.shard_metrics().items()}
        row = self.goodput.fractions() | shards
        self.writer.scalars(step, row, goodput_line(step, row))

    # --- checkpoints and evaluation ---

    def _save(self, step: int, state: TrainState, last: bool) -> None:
        """Starts a save, unless the last step was bad.

        The state may be the cause of bad steps, and must not become the checkpoint that a rollback restores. The save
        is postponed to the next good step.
        """
        self._save_pending = self._guard.consecutive > 0 and not last
        if self._save_pending:
            return
        with self._untimed('checkpoint'):
            self._start_save(step, state)
            if last:
                self.checkpointer.wait()

    def _start_save(self, step: int, state: TrainState) -> None:
        self.writer.flush()  # a run that resumes from this checkpoint does not repeat the lines before it
        self.checkpointer.start(step, state, self.progress)

    def _evaluate(self, step: int, state: TrainState) -> None:
        with self._untimed('evaluation'):
            self._validator.evaluate(step, inference_params(state), self.goodput.heartbeat)
        if step != self.config.num_steps:  # then it is written at the very end
            self._write_goodput(step)

    def _stop(self, step: int, state: TrainState, due: Due) -> NoReturn:
        """Saves, and ends the run before its last step. Preemption may leave seconds: the evaluation comes second."""
        with self._untimed('checkpoint'):
            self._start_save(step, state)
            saved = self.checkpointer.wait()
        if due.evaluate:
            self._evaluate(step, state)
        self._write_goodput(step)
        raise PreemptedError(step, saved)

    # --- bad steps ---

    def _report(self, anomaly: Anomaly, in_flight: InFlightStep, values: dict[str, float], state: TrainState) -> None:
        step = in_flight.step
        self.writer.log(f'{anomaly.kind.upper()} at step {step}: {anomaly.reason}')
        if self.progress.num_dumps < self.config.bad_steps.max_dumps:
            self.progress.num_dumps += 1
            with self._untimed('checkpoint'):
                self.dump_bad_step(BadStep(step, anomaly, values, in_flight.batch, in_flight.key, state))

    def _roll_back(self, reason: str) -> TrainState:
        """Restores the newest checkpoint and returns its state; batches and noise after it are different ones.

        Raises FloatingPointError if the run is configured to stop instead, has had all rollbacks, or no checkpoint.
        """
        config, rollbacks = self.config.bad_steps, self.progress.num_rollbacks
        if config.on_limit == 'stop':
            raise FloatingPointError(f'{reason}; {_ADVICE}')
        if rollbacks >= config.max_rollbacks:
            raise FloatingPointError(f'{reason}, after {rollbacks} rollback(s); {_ADVICE}')
        with self._untimed('checkpoint'):
            self.checkpointer.wait()
            found = self.restore()
        if found is None:
            raise FloatingPointError(f'{reason}, and there is no checkpoint to roll back to; {_ADVICE}')
        state, progress = found
        step = int(state.step)
        self.writer.rewind(step)
        self.progress.losses, self._save_pending = progress.losses, False
        self._guard.reset_after_rollback()
        count = f'rollback {self.progress.num_rollbacks} of at most {config.max_rollbacks}'
        self.writer.log(f'ROLLED BACK to step {step} ({reason}), with a new data order and new noise; {count}')
        return state
