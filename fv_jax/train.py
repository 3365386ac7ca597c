"""Trains a stage: `python -m fv_jax.train --config=stage2 --workdir=DIR`.

Any field of the config can be set: `--config.optim.learning_rate=3e-4`. Re-running the command resumes from the last
checkpoint. The work directory holds config.json, metrics.jsonl, tensorboard/, checkpoints/, and bad_steps/, dumps of
steps with non-finite values; `--replay DIR/bad_steps/STEP/step.npz` replays one on the CPU in float32 with checks on.

run.json records every launch. Config changes since the last launch are logged; `loop` and `parallel` may change, other
fields only if `--allow-config-change=FIELD,GROUP` names them.

On SIGTERM the run finishes the step, saves and exits; a second SIGTERM ends it at once. If one of several processes is
signalled, all end at the same step. On SIGUSR1 it writes a trace of the next three steps to DIR/profile, like
`--profile-steps 10:13` for the steps 10 to 13.

Exit codes: 0 the run is complete; 2 wrong usage; 1 it stopped (the message says why; what was saved stays), or a
replayed step failed again; 75 it was preempted: the same command resumes it; 79 it made no progress for
`config.loop.stall_timeout_minutes`: all stacks were printed.
"""

import dataclasses
import functools
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fv_jax import api
from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.core import config as config_lib
from fv_jax.core import exit_codes
from fv_jax.core.checks import require
from fv_jax.core.command_line import (
    OVERRIDES,
    Override,
    Parser,
    UsageError,
    add_process_flags,
    path_flag,
    read_config,
)
from fv_jax.core.commands import run_command
from fv_jax.core.devices import check_devices
from fv_jax.core.output_paths import check_checkpoint_folder
from fv_jax.core.paths import StoragePath
from fv_jax.data.shards.bad_records import BadRecords
from fv_jax.data.transforms import to_uint8
from fv_jax.evaluation.diagnostics import SuperResDiagnostics
from fv_jax.evaluation.teacher_distance import TeacherDistance
from fv_jax.parallel import arrays, distributed
from fv_jax.parallel.cross_host import CrossHostFlags
from fv_jax.parallel.mesh import describe, make_mesh
from fv_jax.parallel.preemption import Preemption
from fv_jax.parallel.rules import Partitioner
from fv_jax.planning import fitting, step_cost
from fv_jax.stages.frozen_vae import JittedVAE
from fv_jax.stages.latent_stage import EnhancementStage
from fv_jax.training import state
from fv_jax.training.heldout import HeldoutBatch
from fv_jax.training.monitoring.collapse import CollapseError
from fv_jax.training.monitoring.goodput import Goodput
from fv_jax.training.monitoring.metric_writer import MetricWriter, NoMetrics
from fv_jax.training.monitoring.profiler import FOLDER as PROFILE
from fv_jax.training.monitoring.profiler import Profiler, ProfileSteps, TraceSignal
from fv_jax.training.monitoring.watchdog import Watchdog
from fv_jax.training.progress import Progress
from fv_jax.training.run import bad_step_dumps, initialization
from fv_jax.training.run.datasets import TrainBatches, load_heldout_batches, open_datasets
from fv_jax.training.run.launch_record import record_start
from fv_jax.training.run.run_lock import lock_run
from fv_jax.training.run.save_policy import SavePolicy
from fv_jax.training.run.setup import TrainConfig, TrainSetup, make_partitioner, make_train_setup
from fv_jax.training.run.workdir import check_folder, check_writable, write_run_config
from fv_jax.training.trainer import Trainer
from fv_jax.training.validation import Validation
from fv_jax.weights import trained_runs

log = logging.getLogger('fv_jax.train')

PRNG_IMPL = 'threefry2x32'
CheckLock = Callable[[], None]  # raises if another process has taken the lock of the run over


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    failures = CheckpointError, CollapseError, FloatingPointError
    code = run_command(
        'train',
        _train,
        argv,
        errors=dict.fromkeys(failures, exit_codes.FAILED),
        left='; run the same command again to resume from the last checkpoint',
    )
    if code != 0:
        distributed.force_exit_after_grace(code)
    return code


def _train(argv: Sequence[str]) -> int:
    """Trains or replays. The noise does not depend on the environment: with another generator a resumed run or a replay
    would have other noise, and 'rbg' gives an example noise that depends on the batch it is in.
    """
    if (asked := jax.config.jax_default_prng_impl) != PRNG_IMPL:
        log.info(f'note: the noise of training is drawn by {PRNG_IMPL}; jax_default_prng_impl={asked} is not used')
    with jax.default_prng_impl(PRNG_IMPL), jax.threefry_partitionable(True):
        return _parse_and_train(argv)


def _parse_and_train(argv: Sequence[str]) -> int:
    parser = Parser('python -m fv_jax.train', 'Trains a stage of FlashVideo.', OVERRIDES)
    parser.add_argument('--config', help='a config file and variant: stage2:tiny, or FILE.py:tiny')
    parser.add_argument('--workdir', type=path_flag, help='the work directory of the run; created if missing')
    parser.add_argument('--replay', type=path_flag, metavar='FILE', help='replay a dumped bad step instead of training')
    parser.add_argument(
        '--allow-config-change', default='', metavar='FIELD,GROUP', help='config fields that may change'
    )
    parser.add_argument('--profile-steps', metavar='FIRST:LAST', help='write a trace of these steps to WORKDIR/profile')
    add_process_flags(parser)
    arguments, overrides = parser.parse(argv)
    if arguments.replay is not None:
        return _replay(arguments.replay, overrides)
    for name in ('config', 'workdir'):
        require(getattr(arguments, name) is not None, f'--{name}: is required; see --help', UsageError)
    check_checkpoint_folder(arguments.workdir, '--workdir=')
    profile = None if arguments.profile_steps is None else ProfileSteps.parse(arguments.profile_steps)
    distributed.start(distributed.DistributedConfig.from_flags(arguments))
    config = read_config(TrainConfig, arguments.config, overrides)
    allowed = [name for name in arguments.allow_config_change.split(',') if name]
    changes = check_folder(arguments.workdir, config, allowed)
    check_devices()
    log.info(f'{config.stage.kind}: {arguments.config} in {arguments.workdir}')
    for change in changes:
        log.info(f'changed since the last launch: {change}')
    command = ('python', '-m', 'fv_jax.train', *argv)
    with Preemption() as preemption, TraceSignal() as trace_signal:
        run(config, arguments.workdir, LaunchInfo(command, profile, preemption, trace_signal))
    return 0


def _replay(path: StoragePath, overrides: Sequence[Override]) -> int:
    if overrides:
        raise UsageError(f'--config.{overrides[0][0]}: a replay takes its configuration from the dump')
    jax.config.update('jax_platforms', 'cpu')
    dump = bad_step_dumps.read(path)
    found = bad_step_dumps.replay_dump(dump)
    bad_step_dumps.report(dump, found)
    return 0 if found.is_finite else 1


# --- the run ---


@dataclasses.dataclass(frozen=True)
class LaunchInfo:
    """How a run was started.

    Attributes:
      command: goes to run.json.
      profile: the steps to trace.
      preemption: notices that the run should stop.
      trace_signal: notices that more steps should be traced.
    """

    command: tuple[str, ...] = ()
    profile: ProfileSteps | None = None
    preemption: Preemption = dataclasses.field(default_factory=Preemption)
    trace_signal: TraceSignal = dataclasses.field(default_factory=TraceSignal)


def run(config: TrainConfig, workdir: StoragePath, launch: LaunchInfo | None = None) -> None:
    """Trains a run to the end. What can be wrong is found before anything is computed or written."""
    latent_spec = trained_runs.latent_spec(config.stage)
    partitioner = make_partitioner(config, make_mesh(config.parallel), latent_spec)
    fitted = fitting.fit_to_devices(config, partitioner, latent_spec)
    vae = trained_runs.load_frozen_vae(config.stage, partitioner)
    encoder = functools.partial(vae.encode, microbatches=fitted.loop.microbatches) if vae else None
    setup = make_train_setup(fitted, partitioner, latent_spec, encoder)
    with lock_run(workdir) as check_lock:
        check_writable(workdir)
        _run(setup, config, vae, workdir, launch or LaunchInfo(), check_lock)


def _run(
    setup: TrainSetup,
    given: TrainConfig,
    vae: JittedVAE | None,
    workdir: StoragePath,
    launch: LaunchInfo,
    lock: CheckLock,
) -> None:
    """Trains a run. given: the configuration to record, without what was chosen for these devices."""
    config, goodput, bad = setup.config, Goodput(), BadRecords(setup.config.data.bad_records)
    history = initialization.valid_checkpoints(workdir)
    check = functools.partial(initialization.check_digests, history, workdir)
    datasets = open_datasets(config, setup.latent_spec, bad, check)
    heldout = load_heldout_batches(setup, datasets)
    train_state, progress = initialization.initial_state(setup, history)
    start = int(train_state.step)
    _log_run_header(setup, train_state)
    if start >= config.loop.num_steps:
        log.info('already at the last step; use --config.loop.num_steps=N to train to step N')
        return
    batches = TrainBatches.open(setup, datasets, workdir, bad, api.open_stage_degradation)
    write_run_config(workdir, given)
    initialization.mark_damaged(history)
    checkpoints = Checkpoints(workdir, max_to_keep=config.loop.max_to_keep, keep_period=config.loop.keep_period)
    any_host, values = CrossHostFlags(setup.partitioner.mesh), config_lib.to_dict(given)
    save_policy = SavePolicy(checkpoints, config.loop, values, datasets.digests, any_host, lock)
    validation = _validation(setup, vae, heldout)
    log.info('compiling the training step')
    if jax.process_index() == 0:
        record_start(workdir, launch.command, values, setup.partitioner.mesh, start)
    with (
        _writer(workdir, start) as writer,
        launch.preemption.defer_sigterm(),
        Profiler(launch.profile, workdir / PROFILE, launch.trace_signal) as profiler,
        Watchdog(goodput, 60 * config.loop.stall_timeout_minutes, saving_since=lambda: checkpoints.saving_since),
        save_policy,
    ):
        trainer = Trainer(
            stage=setup.stage,
            network=setup.network,
            optim=config.optim,
            config=config.loop,
            context=setup.context,
            key=jax.random.fold_in(jax.random.key(config.seed), 1),
            writer=writer,
            make_batches=batches.train,
            shard_metrics=batches.shard_metrics,
            checkpointer=save_policy,
            restore=functools.partial(_restore, setup, workdir, checkpoints),
            dump_bad_step=functools.partial(bad_step_dumps.write, setup, workdir, datasets.digests),
            poll_signals=lambda step: any_host(launch.preemption.is_requested(step), save_policy.is_due()),
            profile=profiler,
            progress=progress,
            goodput=goodput,
            validation=validation,
            step_cost=step_cost.train_step_cost(setup, vae.config if vae else None),
            shardings=setup.shardings,
        )
        trainer.run(train_state)
    _log_end(config, bad, checkpoints.folder)


def _log_end(config: TrainConfig, bad: BadRecords, folder: StoragePath) -> None:
    if bad.found:
        log.info(f'{len(bad.found)} bad record(s) were skipped')
    log.info(f'done: {config.loop.num_steps} steps, checkpoints in {folder}')


def _writer(workdir: StoragePath, start: int) -> MetricWriter | NoMetrics:
    return MetricWriter(workdir, start_step=start) if jax.process_index() == 0 else NoMetrics()


def _log_run_header(setup: TrainSetup, train_state: state.TrainState) -> None:
    step, config = int(train_state.step), setup.config
    log.info(
        f'{_count(train_state.trainable):,} trainable parameters on {describe(setup.partitioner.mesh)}, '
        f'{len(config.data.sizes)} size(s)'
    )
    log.info(f'{"resuming from" if step else "starting at"} step {step} of {config.loop.num_steps}')


def _validation(setup: TrainSetup, vae: JittedVAE | None, heldout: list[HeldoutBatch]) -> Validation | None:
    """Makes the validation of a run; None without held-out clips."""
    if not heldout:
        return None
    log.info(f'{sum(batch.num_clips for batch in heldout)} held-out clip(s)')
    encoded = [batch._replace(arrays=setup.stage.encode(batch.arrays)) for batch in heldout]
    health = None
    if isinstance(setup.stage, EnhancementStage):
        diagnostics = TeacherDistance if setup.stage.is_distilled else SuperResDiagnostics
        health = diagnostics(
            stage=setup.stage,
            make_model=lambda params: setup.network.model(**params),
            vae=vae,
            context=setup.context,
            batches=encoded,
            truths=[batch.arrays.get('high_res_BFHWC') for batch in heldout],
            key=jax.random.fold_in(jax.random.key(setup.config.seed), 2),
            to_host=functools.partial(arrays.to_host, partitioner=setup.partitioner),
        )
    return Validation(encoded, functools.partial(_videos, vae, setup.partitioner), health=health)


def _restore(
    setup: TrainSetup, workdir: StoragePath, checkpoints: Checkpoints
) -> tuple[state.TrainState, Progress] | None:
    """Restores the newest intact checkpoint during a run, for a rollback."""
    history = initialization.valid_checkpoints(workdir)
    if history is None:
        return None
    found = initialization.restore(setup, history)
    initialization.mark_damaged(history)
    checkpoints.reload()
    return found


def _videos(
    vae: JittedVAE | None, partitioner: Partitioner, samples: dict[str, jax.Array]
) -> list[tuple[str, np.ndarray]]:
    """Returns the first clip of every array of `Stage.sample`, as uint8; latents are decoded."""
    out = []
    for name, value in samples.items():
        video = arrays.to_host(vae.decode(value) if name.startswith('z_') else value, partitioner)[0]
        out.append((name.removeprefix('z_').removesuffix('_BFHWC'), to_uint8(np.asarray(video, np.float32))))
    return out


def _count(params: Any) -> int:
    return sum(p.size for p in jax.tree.leaves(params))


if __name__ == '__main__':
    sys.exit(main())
