"""The cost of the safeguards of a run: steps of the training loop compared with bare ones, of stage 2's `tiny`.

    python tests/benchmarks/protections.py [--rounds 15] [--steps 6] [--config configs/stage2.py:tiny] [--json FILE]

Three kinds, alternating, a few steps of each, in one process, on the same batches:

  bare     loss, gradient, optimizer, average; the loss is read while the next step runs, and nothing else.
  step     `train_step`: non-finite steps are skipped on the device, norms are computed
  whole    the loop as `train` wires it: every step's metrics checked (bad steps, spikes), lines to metrics.jsonl and
           TensorBoard as often as configured, goodput, the watchdog's thread, flags on preemption, the
           trace's switch

Reported: the median of seconds a step of each kind, on the clock and of processor time (of all threads, which
other programs affect less), and the medians of the rounds' ratios to bare. Saves of
the configured state are measured separately.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.core import config as config_lib
from fv_jax.core.command_line import read_config
from fv_jax.core.commands import silence_third_party_logs
from fv_jax.parallel.cross_host import CrossHostFlags
from fv_jax.parallel.mesh import make_mesh
from fv_jax.parallel.preemption import Preemption
from fv_jax.stages.noise import per_example_keys
from fv_jax.stages.protocol import Batch
from fv_jax.training import state, trainer
from fv_jax.training.monitoring.goodput import Goodput
from fv_jax.training.monitoring.metric_writer import MetricWriter
from fv_jax.training.monitoring.profiler import Profiler
from fv_jax.training.monitoring.watchdog import Watchdog
from fv_jax.training.optimizer import update_ema
from fv_jax.training.progress import Progress
from fv_jax.training.run.save_policy import SavePolicy
from fv_jax.training.run.setup import TrainConfig, TrainSetup, latents_shape, make_partitioner, make_train_setup
from fv_jax.training.step import train_step
from fv_jax.weights import trained_runs
from tests import runs

KINDS = ('bare', 'step', 'whole')
SAVES = 3


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds a step, one of each round."""

    clock: dict[str, list[float]]
    processor: dict[str, list[float]]


class Stopwatch:
    """Adds up what a kind's rounds take."""

    def __init__(self):
        self.times = Times({kind: [] for kind in KINDS}, {kind: [] for kind in KINDS})
        self.start()

    def start(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def stop(self, kind: str, steps: int) -> None:
        now = time.perf_counter(), time.process_time()
        for found, began, ended in zip((self.times.clock, self.times.processor), self._began, now, strict=True):
            found[kind].append((ended - began) / steps)


def bare_step(setup: TrainSetup) -> Callable:
    """(state, batch, key) -> (state, loss), jitted: what is left of `train_step` without its protections."""
    stage, network, optim = setup.stage, setup.network, setup.config.optim

    def step(old: state.TrainState, batch: Batch, key: jax.Array) -> tuple[state.TrainState, dict[str, jax.Array]]:
        noised = stage.sample_noise_and_time(
            batch, per_example_keys(key, old.step, next(iter(batch.values())).shape[0])
        )

        def loss_fn(trainable: state.Params) -> jax.Array:
            return stage.loss(network.model(trainable, old.frozen), noised, context=setup.context)[0]

        loss, grads = jax.value_and_grad(loss_fn)(old.trainable)
        updates, opt_state = setup.tx.update(grads, old.opt_state, old.trainable)
        trainable = optax.apply_updates(old.trainable, updates)
        ema = None if old.ema is None else update_ema(old.ema, trainable, optim.ema_decay, old.step)
        return state.TrainState(old.step + 1, trainable, old.frozen, opt_state, ema), {'loss': loss}

    return jax.jit(step, donate_argnums=0, out_shardings=(setup.shardings, None))


def run_bare(step: Callable, then: state.TrainState, batches: Any, key: jax.Array, steps: int) -> state.TrainState:
    """So many steps, each loss read while the next step runs; ends when all are done."""
    before = None
    for _ in range(steps):
        then, metrics = step(then, next(batches), key)
        if before is not None:
            float(before['loss'])
        before = metrics
    jax.block_until_ready(then)
    return then


class InterleavedRuns:
    """The loop's `trace`: after every `steps` steps it lets the other kinds have their turn."""

    def __init__(self, setup: TrainSetup, batches: list[Batch], key: jax.Array, steps: int):
        self.watch, self._steps, self._key, self._batches = Stopwatch(), steps, key, itertools.cycle(batches)
        config = setup.config
        guarded = train_step(
            setup.stage, setup.network, setup.tx, config.optim, config.loop.num_steps, setup.context, setup.shardings
        )
        self._kinds = {'bare': bare_step(setup), 'step': guarded}
        self._states = {kind: new_state(setup) for kind in self._kinds}
        self._quiet = Profiler(None, Path())

    def __call__(self, step: int, before: Any) -> None:
        if (step - 1) % self._steps == 0 and before is not None:
            jax.block_until_ready(before)
            self.watch.stop('whole', self._steps)
            for kind, function in self._kinds.items():
                self.watch.start()
                self._states[kind] = run_bare(function, self._states[kind], self._batches, self._key, self._steps)
                self.watch.stop(kind, self._steps)
            self.watch.start()
        self._quiet(step, before)


def new_state(setup: TrainSetup) -> state.TrainState:
    """With small random numbers for parameters, and zeros for the rest: an initialiser would have to be compiled."""
    rng = np.random.default_rng(0)

    def drawn(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.device_put(jnp.asarray(rng.normal(0, 0.02, leaf.shape), leaf.dtype), leaf.sharding)

    abstract = setup.abstract_state
    zeros = jax.tree.map(lambda leaf: jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding), abstract)
    trainable, frozen = (jax.tree.map(drawn, part) for part in (abstract.trainable, abstract.frozen))
    return dataclasses.replace(zeros, trainable=trainable, frozen=frozen)


def random_batches(setup: TrainSetup, count: int = 4) -> list[Batch]:
    """Latents of the sizes that the run's rows have."""
    shape = latents_shape(setup.config, setup.config.data.sizes[0], setup.latent_spec)
    rng = np.random.default_rng(0)
    names = ('z_high_BFHWC', 'z_low_BFHWC')
    return [{name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name in names} for _ in range(count)]


def measure(setup: TrainSetup, folder: Path, rounds: int, steps: int) -> tuple[Times, state.TrainState, SavePolicy]:
    """The loop to its end, with the other kinds in turn, in a run's folder."""
    config, batches, goodput = setup.config, random_batches(setup), Goodput()
    key = jax.random.key(1)
    turns, any_host, preemption = (
        InterleavedRuns(setup, batches, key, steps),
        CrossHostFlags(setup.partitioner.mesh),
        Preemption(),
    )
    checkpoints = Checkpoints(folder, max_to_keep=config.loop.max_to_keep)
    saver = SavePolicy(checkpoints, config.loop, config_lib.to_dict(config), {}, any_host)
    folder.mkdir(exist_ok=True)
    once = dataclasses.replace(config.loop, num_steps=(rounds + 1) * steps + 1, save_every=10**9, eval_every=0)
    with (
        MetricWriter(folder, start_step=0) as writer,
        preemption.defer_sigterm(),
        Watchdog(goodput, 60 * config.loop.stall_timeout_minutes),
    ):
        last = trainer.Trainer(
            stage=setup.stage,
            network=setup.network,
            optim=config.optim,
            config=once,
            context=setup.context,
            key=key,
            writer=writer,
            make_batches=lambda step, order: itertools.cycle(batches),
            checkpointer=saver,
            restore=lambda: None,
            dump_bad_step=lambda bad_step: None,
            poll_signals=lambda step: any_host(preemption.is_requested(step), saver.is_due()),
            profile=turns,
            goodput=goodput,
            shardings=setup.shardings,
        ).run(new_state(setup))
    return turns.watch.times, last, saver


def save_seconds(last: state.TrainState, saver: SavePolicy) -> list[float]:
    """Of saves, one after the other."""
    found = []
    for step in range(int(last.step) + 1, int(last.step) + 1 + SAVES):
        start = time.perf_counter()
        saver.start(step, last, Progress())
        assert saver.wait()
        found.append(time.perf_counter() - start)
    return found


def table(times: Times) -> dict[str, dict[str, float]]:
    """Medians over the rounds but the first, which compiles; `ratio` of each round to its bare one, with its error."""
    found = {}
    for kind in KINDS:
        found[kind] = {}
        for name, seconds in (('clock', times.clock), ('processor', times.processor)):
            pairs = list(zip(seconds[kind], seconds['bare'], strict=True))[1:]
            found[kind][name] = statistics.median(one for one, _ in pairs)
            ratios = [one / bare for one, bare in pairs]
            found[kind][f'{name}_ratio'] = statistics.median(ratios)
            # Of a median of numbers that are spread as a Gaussian.
            found[kind][f'{name}_error'] = 1.25 * statistics.stdev(ratios) / len(ratios) ** 0.5
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='What the protections of a run cost.')
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--steps', type=int, default=6, help='of each kind in a round')
    parser.add_argument('--config', default='configs/stage2.py:tiny')
    parser.add_argument('--json', type=Path, help='also write the figures here')
    arguments = parser.parse_args(argv)
    silence_third_party_logs()
    config = read_config(TrainConfig, arguments.config, ())
    latent_spec = trained_runs.latent_spec(config.stage)
    partitioner = make_partitioner(config, make_mesh(config.parallel), latent_spec)
    with tempfile.TemporaryDirectory() as name, runs.shared_compiling(Path(name) / 'compiled'):
        setup = make_train_setup(config, partitioner, latent_spec)
        times, last, saver = measure(setup, Path(name) / 'run', arguments.rounds, arguments.steps)
        saves = save_seconds(last, saver)
        size = sum(
            path.stat().st_size
            for path in (Path(name) / 'run' / 'checkpoints' / str(int(last.step) + 1)).rglob('*')
            if path.is_file()
        )
    figures = table(times)
    load = ' '.join(f'{value:.1f}' for value in os.getloadavg())
    print(f'{arguments.config}, {arguments.rounds} rounds of {arguments.steps} steps of each kind; load {load}')
    print(f'{"":8}{"s/step":>10}{"to bare":>18}{"CPU s/step":>12}{"to bare":>18}')
    for kind, row in figures.items():
        clock, processor = (
            f'{row[f"{name}_ratio"]:.3f} +- {row[f"{name}_error"]:.3f}' for name in ('clock', 'processor')
        )
        print(f'{kind:8}{row["clock"]:10.4f}{clock:>18}{row["processor"]:12.4f}{processor:>18}')
    print(f'a save: {statistics.median(saves):.2f} s, {size / 1e6:.1f} MB, every {config.loop.save_every} steps')
    if arguments.json:
        kept = {'figures': figures, 'rounds': dataclasses.asdict(times), 'saves': saves, 'bytes': size}
        arguments.json.write_text(json.dumps(kept, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
