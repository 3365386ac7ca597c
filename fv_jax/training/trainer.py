"""The one training loop. It knows the Stage protocol; the loader, the writer and what saves come in.

Step n is dispatched before the metrics of step n - 1 are read, so the device never waits for the host.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, Protocol

import jax
import numpy as np

from fv_jax.core import throughput
from fv_jax.core.config import ConfigError
from fv_jax.core.exit_codes import PreemptedError
from fv_jax.core.parallel_context import Rules
from fv_jax.stages.protocol import Batch, Metrics, Stage
from fv_jax.training import optimizer
from fv_jax.training.monitoring.anomalies import BadStepsConfig, Finding, Guard
from fv_jax.training.monitoring.collapse import Alarm, AlarmConfig, CollapseError
from fv_jax.training.monitoring.goodput import Cause, Goodput, Rate, goodput_line
from fv_jax.training.monitoring.metric_writer import MetricWriter, NoMetrics, eval_line, health_line, train_line
from fv_jax.training.progress import Progress
from fv_jax.training.state import Network, Params, TrainState, inference_params
from fv_jax.training.step import Evaluate, Sample, eval_step, sample_step, train_step

_FROM_0 = ('eval_every', 'save_minutes', 'keep_every', 'failed_saves', 'stuck_minutes')
MAX_STEPS = 2**31  # int32 counts them
ORDER_KEYS = MAX_STEPS  # the noise of orders other than the run's own: beyond the numbers of steps


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """num_steps: of the whole run. log_every, eval_every, save_every: in steps; eval_every 0 never evaluates.
    The last step is always saved.
    microbatches: that a step's batch is taken in, one after the other, for the memory of one and the numbers of the
      whole; a frozen or sharded network is gathered anew for each.
    save_minutes: saves also so long after the last save; 0 does not.
    keep: how many checkpoints stay. keep_every: those of its multiples, in steps, stay as well; 0 keeps none.
    failed_saves: in a row, that the run goes on after.
    stuck_minutes: without any movement, after which the process ends; 0 waits for ever.
    alarm: when an evaluation rings it. bad_steps: what happens when numbers go wrong.
    """

    num_steps: int
    microbatches: int = 1
    log_every: int = 1
    eval_every: int = 0
    save_every: int = 1000
    save_minutes: float = 0.0
    keep: int = 3
    keep_every: int = 0
    failed_saves: int = 3
    stuck_minutes: float = 30.0
    alarm: AlarmConfig = dataclasses.field(default_factory=AlarmConfig)
    bad_steps: BadStepsConfig = dataclasses.field(default_factory=BadStepsConfig)

    def __post_init__(self):
        for name in ('num_steps', 'microbatches', 'log_every', 'save_every', 'keep', *_FROM_0):
            low = 0 if name in _FROM_0 else 1
            if not getattr(self, name) >= low:
                raise ConfigError(f'{name}={getattr(self, name)}: must be at least {low}')
        if self.num_steps >= MAX_STEPS:
            raise ConfigError(f'num_steps={self.num_steps}: must be below {MAX_STEPS}')


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


@dataclasses.dataclass(frozen=True)
class Case:
    """A step whose numbers went wrong. step: counted from 1. metrics: what `train_step` said. batch: encoded. key: what
    the step was given. state: after it, or after the one that was started before it was read.
    """

    step: int
    finding: Finding
    metrics: dict[str, float]
    batch: Batch
    key: jax.Array
    state: TrainState


class Saves(Protocol):
    """Saves states beside the steps; must leave the checkpoints before alone. All processes call it alike."""

    def start(self, step: int, state: TrainState, progress: Progress) -> None:
        """Returns when the state may be donated."""

    def look(self) -> None:
        """After every step: what has become of it."""

    def wait(self) -> bool:
        """Returns when nothing is being saved; whether the last save could be."""


@dataclasses.dataclass(frozen=True)
class _Started:
    """A step that the device has been given. step: how many there are with it."""

    step: int
    metrics: Metrics
    batch: Batch
    key: jax.Array
    asked: jax.Array | np.ndarray  # two booleans: to end, to save
    work: throughput.Work | None


class _EnoughError(Exception):
    """A finding after which the run cannot go on from where it is."""


@dataclasses.dataclass
class Loop:
    """Everything a run is made of; `run` goes from the state's step to the last.

    draw: (step, order) -> the batches from that step on, in the run's own order (0) or another.
    restore: the newest checkpoint; None where there is none.
    keep: keeps a case for later study.
    ask: step -> whether to end, and whether to save, two booleans that are the same in all processes. They are read
      with the step's metrics.
    work: what is computed for a batch, its encoding among it; None where that is not known.
    trace: told which step comes next, and given the metrics of the one before, if it has not been read yet.
    """

    stage: Stage
    network: Network
    optim: optimizer.OptimConfig
    config: LoopConfig
    rules: Rules
    key: jax.Array
    writer: MetricWriter | NoMetrics
    draw: Callable[[int, int], Iterator[Batch]]
    saves: Saves
    restore: Callable[[], tuple[TrainState, Progress] | None]
    keep: Callable[[Case], None]
    ask: Callable[[int], jax.Array | np.ndarray] = lambda step: np.zeros(2, bool)
    trace: Callable[[int, Metrics | None], None] = lambda step, before: None
    progress: Progress = dataclasses.field(default_factory=Progress)
    goodput: Goodput = dataclasses.field(default_factory=Goodput)
    validation: Validation | None = None
    work: Callable[[Batch], throughput.Work | None] = lambda batch: None
    shardings: TrainState | None = None  # where the state lives; None on one device
    _alarm: Alarm = dataclasses.field(init=False)
    _guard: Guard = dataclasses.field(init=False)
    _save_owed: bool = dataclasses.field(init=False, default=False)
    _rate: Rate = dataclasses.field(init=False, default_factory=Rate)
    _shapes: set[str] = dataclasses.field(init=False, default_factory=set)

    def __post_init__(self):
        self._alarm = Alarm(self.config.alarm, self.progress.best)
        self._guard = Guard(self.config.bad_steps, self.progress)

    def run(self, state: TrainState) -> TrainState:
        """Returns the last state, saved.

        Raises FloatingPointError or CollapseError when the run has to stop, PreemptedError when it was asked to.
        """
        config = self.config
        tx = optimizer.make_optimizer(self.optim, config.num_steps)
        where = self.rules, self.shardings
        step_fn = train_step(self.stage, self.network, tx, self.optim, config.num_steps, *where, config.microbatches)
        evaluate = self._evaluation()
        step, before = int(state.step), None
        batches, key = self._drawn(step)
        self.goodput.turn_to('step')
        while step < config.num_steps:
            self.trace(step + 1, None if before is None else before.metrics)
            with self.goodput.waiting(
                lambda before=before: before is not None and not before.metrics['loss'].is_ready()
            ):
                batch = next(batches)
            work, batch = self.work(batch), self.stage.encode(batch)
            with self.goodput.during('step' if self._compiled(batch) else 'compile'):
                state, metrics = step_fn(state, batch, key)
            step += 1
            now, last = _Started(step, metrics, batch, key, self.ask(step), work), step == config.num_steps
            evaluates = evaluate is not None and (last or step % config.eval_every == 0)
            saves, ends, enough = last or self._save_owed or step % config.save_every == 0, False, None
            try:
                if before is not None:
                    ends, asked = self._read(before, state)
                    saves |= ends | asked
                if evaluates or saves:
                    ends |= self._read(now, state)[0]
            except _EnoughError as error:
                enough = str(error)
            if enough is not None:
                state = metrics = batch = before = now = None  # the restored state needs their memory
                state = self._roll_back(enough)
                step, before = int(state.step), None
                batches, key = self._drawn(step)
                continue
            self.saves.look()
            before = None if evaluates or saves else now
            if ends and not last:
                self._end(step, state, evaluate if evaluates else None)
            if evaluates:
                evaluate(step, state)
            if saves:
                self._save(step, state, last)
        if self._shapes:  # or there was nothing to do
            self._write_goodput(step)
        return state

    def _compiled(self, batch: Batch) -> bool:
        """Whether a step of such a batch has been before."""
        shapes = str({name: (value.shape, value.dtype) for name, value in batch.items()})
        known = shapes in self._shapes
        self._shapes.add(shapes)
        return known

    @contextlib.contextmanager
    def _aside(self, cause: Cause) -> Iterator[None]:
        """What is no step, and does not count against its rate."""
        with self._rate.pause(), self.goodput.during(cause):
            yield

    def _write_goodput(self, step: int) -> None:
        shares = self.goodput.shares()
        self.writer.scalars(step, shares, goodput_line(step, shares))

    def _end(self, step: int, state: TrainState, evaluate: Callable[[int, TrainState], None] | None) -> NoReturn:
        """Before its time. There may be seconds left: what is evaluated comes after what is saved."""
        with self._aside('checkpoint'):
            self.saves.start(step, state, self.progress)
            saved = self.saves.wait()
        if evaluate is not None:
            evaluate(step, state)
        self._write_goodput(step)
        raise PreemptedError(step, saved)

    def _drawn(self, step: int) -> tuple[Iterator[Batch], jax.Array]:
        """The batches from a step on, and the key of their noise."""
        order = self.progress.order
        key = self.key if order == 0 else jax.random.fold_in(self.key, ORDER_KEYS + order)
        return self.draw(step, order), key

    def _save(self, step: int, state: TrainState, last: bool) -> None:
        """Not amid bad steps: the state may be what makes them bad, and is not one to be rolled back to."""
        self._save_owed = self._guard.in_a_row > 0 and not last
        if not self._save_owed:
            with self._aside('checkpoint'):
                self.saves.start(step, state, self.progress)
                if last:
                    self.saves.wait()

    def _read(self, started: _Started, state: TrainState) -> tuple[bool, bool]:
        """Waits for a step's metrics, looks at them and writes them down; whether to end and whether to save.

        Raises _EnoughError.
        """
        step = started.step
        values = {name: float(value) for name, value in started.metrics.items()}
        finding = self._guard.look(values)
        rates = self._rate.tick(len(next(iter(started.batch.values()))), started.work)
        if finding is not None:
            self._handle(finding, started, values, state)
        else:
            ratio = values['update_norm'] / max(values['param_norm'], 1e-12)
            self.progress.update_ratio = max(self.progress.update_ratio, ratio)
        if finding is not None or step % self.config.log_every == 0 or step == self.config.num_steps:
            self._write(started, values | rates)
        if finding is not None and finding.enough:
            times = f' ({self._guard.in_a_row} bad steps in a row)' if self._guard.in_a_row > 1 else ''
            raise _EnoughError(f'step {step}: {finding.reason}{times}')
        ends, saves = np.asarray(started.asked)
        return bool(ends), bool(saves)

    def _write(self, started: _Started, values: dict[str, float]) -> None:
        values |= {'bad_steps': float(self.progress.bad_steps), 'spikes': float(self.progress.spikes)}
        values |= throughput.peak_memory()
        self.writer.scalars(started.step, values, train_line(started.step, self.config.num_steps, values))

    def _handle(self, finding: Finding, started: _Started, values: dict[str, float], state: TrainState) -> None:
        step = started.step
        self.writer.note(f'{finding.kind.upper()} at step {step}: {finding.reason}')
        if self.progress.bundles < self.config.bad_steps.bundles:
            self.progress.bundles += 1
            with self._aside('checkpoint'):
                self.keep(Case(step, finding, values, started.batch, started.key, state))

    def _roll_back(self, reason: str) -> TrainState:
        """The newest checkpoint's state, from which other batches are drawn. Raises FloatingPointError instead if the
        run is to stop.
        """
        config = self.config.bad_steps
        advice = (
            'what was saved before it stays. To go on from there with a lower learning rate, start another run with '
            '--config.init_from'
        )
        if config.then == 'stop':
            raise FloatingPointError(f'{reason}; {advice}')
        if self.progress.order >= config.max_rollbacks:
            raise FloatingPointError(f'{reason}, after {self.progress.order} rollback(s); {advice}')
        with self._aside('checkpoint'):
            self.saves.wait()
            found = self.restore()
        if found is None:
            raise FloatingPointError(f'{reason}, and there is no checkpoint to go back to; {advice}')
        state, then = found
        step = int(state.step)
        self.writer.rewind(step)
        self.progress.losses, self._save_owed = then.losses, False
        self._guard.rolled_back()
        count = f'rollback {self.progress.order} of at most {config.max_rollbacks}'
        self.writer.note(f'ROLLED BACK to step {step} ({reason}), with clips and noise drawn anew; {count}')
        return state

    def _evaluation(self) -> Callable[[int, TrainState], None] | None:
        """(step, state) -> nothing; None where nothing is evaluated."""
        if self.validation is None or not self.config.eval_every:
            return None
        eval_fn = eval_step(self.stage, self.network, self.rules)
        sample_fn = sample_step(self.stage, self.network, self.rules)

        def evaluate(step: int, state: TrainState) -> None:
            with self._aside('evaluation'):
                self._evaluate(step, state, eval_fn, sample_fn)
            if step != self.config.num_steps:  # or it is written at the very end
                self._write_goodput(step)

        return evaluate

    def _evaluate(self, step: int, state: TrainState, eval_fn: Evaluate, sample_fn: Sample) -> None:
        params, key = inference_params(state), jax.random.fold_in(self.key, 2**31 - 1)
        rows = []
        for i, batch in enumerate(self.validation.batches):
            rows.append(eval_fn(params, batch, key, i))
            self.goodput.moved()
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
            self._check_health(step, measured.figures | {'update_ratio': self.progress.update_ratio})
            self.progress.update_ratio = 0.0

    def _check_health(self, step: int, figures: dict[str, float]) -> None:
        """Writes the figures, and what is wrong with them. Raises CollapseError if the run is to stop then."""
        wrong = self._alarm.check(step, figures)
        row = {f'health/{name}': value for name, value in figures.items()} | {'health/alarms': float(len(wrong))}
        self.writer.scalars(step, row, health_line(step, figures, wrong))
        if wrong and self.config.alarm.stop:
            raise CollapseError(f'step {step}: {wrong[0]}; what was saved before it stays')
