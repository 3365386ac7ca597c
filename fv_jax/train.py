"""Trains a stage: `python -m fv_jax.train --config=configs/stage2.py --workdir=DIR`.

Any field of the config can be given: `--config.optim.learning_rate=3e-4`. The same command again goes on where
the run stopped. In the work directory: config.json, metrics.jsonl, tensorboard/, checkpoints/.

Exit codes: 0 the run is complete; 2 wrong usage; 1 it stopped (the message says why; what was saved stays).
"""

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from fv_jax import api, weights
from fv_jax.assembly import Assembly, RunConfig, assemble, placement_of
from fv_jax.checkpoints.manager import FOLDER, CheckpointError, Checkpoints
from fv_jax.core import axes
from fv_jax.core import config as config_lib
from fv_jax.core.command_line import (
    OVERRIDES,
    Parser,
    UsageError,
    add_process_flags,
    one_line,
    quiet_libraries,
    read_config,
)
from fv_jax.core.config import ConfigError
from fv_jax.data import pipeline, stamps, text_stamps
from fv_jax.data.bad_records import BadRecords
from fv_jax.data.loader import Part, Stream
from fv_jax.data.text import BYTES, TextEncoder, TextStamp
from fv_jax.data.transforms import to_uint8
from fv_jax.inference import latent_cache
from fv_jax.inference.health import HealthCheck
from fv_jax.inference.jitted import JittedVAE
from fv_jax.parallel import arrays, distributed
from fv_jax.parallel.mesh import describe, make_mesh
from fv_jax.parallel.rules import Placement
from fv_jax.stages import registry
from fv_jax.stages.base import Batch
from fv_jax.stages.superres import SuperRes
from fv_jax.training import loop, state
from fv_jax.training.alarm import CollapseError
from fv_jax.training.metrics import MetricWriter, NoMetrics
from fv_jax.weights.text import open_text_encoder, text_stamp

CONFIG = 'config.json'

Digests = dict[str, str]  # 'vae' and 'text' -> 16 hexadecimal digits


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    try:
        return _main(sys.argv[1:] if argv is None else argv)
    except (UsageError, ConfigError) as error:
        return _fail(error, 2)
    except (
        CheckpointError,
        CollapseError,
        FloatingPointError,
        OSError,
        ValueError,
        jax.errors.JaxRuntimeError,
    ) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail('interrupted; run the same command again to go on from the last checkpoint', 130)


def _fail(error: object, code: int) -> int:
    print(f'train: {one_line(error)}', file=sys.stderr)
    return code


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)


def _main(argv: Sequence[str]) -> int:
    quiet_libraries()
    parser = Parser('python -m fv_jax.train', 'Trains a stage of FlashVideo.', OVERRIDES)
    parser.add_argument('--config', required=True, help='a config program and variant, configs/stage2.py:tiny')
    parser.add_argument('--workdir', type=Path, required=True, help='where the run is kept; made if it is not there')
    add_process_flags(parser)
    arguments, overrides = parser.parse(argv)
    distributed.start(distributed.Processes(arguments.coordinator, arguments.num_processes, arguments.process_id))
    config = read_config(RunConfig, arguments.config, overrides)
    _check_folder(arguments.workdir, config)
    _say(f'{config.stage.kind}: {arguments.config} in {arguments.workdir}')
    run(config, arguments.workdir)
    return 0


# --- the work directory ---


def _check_folder(workdir: Path, config: RunConfig) -> None:
    """Refuses a folder that holds another run. Everything but `loop` and `parallel` must be the same."""
    path = workdir / CONFIG
    if not path.exists():
        return
    try:
        old = config_lib.to_dict(config_lib.build(RunConfig, json.loads(path.read_text())))
    except ValueError as error:
        raise UsageError(f'{path}: cannot be read ({one_line(error)}); choose another --workdir') from None
    different = [d for d in _differences(old, config_lib.to_dict(config)) if not d.startswith(('loop.', 'parallel'))]
    if different:
        more = f' and {len(different) - 1} more' if len(different) > 1 else ''
        raise UsageError(f'{workdir}: holds another run: {different[0]}{more}; choose another --workdir')


def _differences(old: Any, new: Any, path: str = '') -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f'{path}.{key}' if path else key)
    elif old != new:
        yield f'{path} is {old!r} there and {new!r} here'


def _claim_folder(workdir: Path, config: RunConfig) -> Checkpoints:
    """Makes the folder this run's."""
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / CONFIG
        partial = path.with_suffix('.partial')
        partial.write_text(json.dumps(config_lib.to_dict(config), indent=1) + '\n')
        os.replace(partial, path)
    return Checkpoints(workdir, keep=config.loop.keep)


# --- the run ---


def run(config: RunConfig, workdir: Path) -> None:
    """Wires a run together and trains it to the end. What can be wrong is found before anything is written."""
    placement = placement_of(config, make_mesh(config.parallel))
    vae = api.frozen_vae(config.stage, placement)
    parts = assemble(config, placement, encoder=vae.latents if vae else None)
    bad = BadRecords(config.data.bad_records, functools.partial(print, flush=True))  # each process names its own
    clips, heldout = _sources(config, bad)
    digests = _digests(config, clips, heldout)
    _check_resumed(workdir, digests)
    stamps.check_latents(clips, latent_cache.vae_stamp(digests['vae']) if 'vae' in digests else None)
    groups = pipeline.groups(clips, config.data, _say)
    train_state = _starting_state(parts, workdir)
    start = int(train_state.step)
    _introduce(parts, train_state)
    if start >= config.loop.num_steps:
        _say('complete: nothing to do; --config.loop.num_steps=N goes on to step N')
        return
    checkpoints = _claim_folder(workdir, config)
    train, heldout = _data(parts, groups, heldout, workdir, digests, start, bad)
    validation = _validation(parts, vae, heldout) if heldout else None
    _say('compiling the training step')
    with _writer(workdir, start) as writer:
        training = loop.Loop(
            stage=parts.stage,
            network=parts.network,
            optim=config.optim,
            config=config.loop,
            rules=parts.rules,
            key=jax.random.fold_in(jax.random.key(config.seed), 1),
            writer=writer,
            save=functools.partial(_save, checkpoints, config_lib.to_dict(config), digests),
            validation=validation,
            shardings=parts.shardings,
        )
        training.run(train_state, train)
    if bad.found:
        _say(f'{len(bad.found)} bad record(s) were skipped')
    _say(f'done: {config.loop.num_steps} steps, checkpoints in {checkpoints.folder}')


def _writer(workdir: Path, start: int) -> MetricWriter | NoMetrics:
    return MetricWriter(workdir, start_step=start, line=_say) if jax.process_index() == 0 else NoMetrics()


def _introduce(parts: Assembly, train_state: state.TrainState) -> None:
    step, config = int(train_state.step), parts.config
    _say(
        f'{_count(train_state.trainable):,} trainable parameters on {describe(parts.placement.mesh)}, '
        f'{len(config.data.sizes)} size(s)'
    )
    _say(f'{"going on from" if step else "starting at"} step {step} of {config.loop.num_steps}')


def _validation(parts: Assembly, vae: JittedVAE | None, heldout: list[Batch]) -> loop.Validation:
    _say(f'{sum(len(next(iter(batch.values()))) for batch in heldout)} held-out clip(s)')
    encoded = [parts.stage.encode(batch) for batch in heldout]
    health = None
    if isinstance(parts.stage, SuperRes):
        health = HealthCheck(
            stage=parts.stage,
            model_of=lambda params: parts.network.model(**params),
            vae=vae,
            rules=parts.rules,
            batches=encoded,
            truths=[batch.get('high_res_BFHWC') for batch in heldout],
            key=jax.random.fold_in(jax.random.key(parts.config.seed), 2),
            to_host=functools.partial(arrays.to_host, placement=parts.placement),
        )
    return loop.Validation(encoded, functools.partial(_videos, vae, parts.placement), health=health)


def _save(
    checkpoints: Checkpoints, values: dict[str, Any], digests: Digests, step: int, train_state: state.TrainState
) -> None:
    checkpoints.save(step, state.to_items(train_state), values, digests)
    _say(f'saved step {step}')


def _starting_state(parts: Assembly, workdir: Path) -> state.TrainState:
    """The newest checkpoint of this run, or the parameters of another, or new ones; over the mesh from the start."""
    config = parts.config
    abstract = state.to_items(parts.abstract_state)
    if (workdir / FOLDER).is_dir() and (own := Checkpoints(workdir, read_only=True)).latest_step is not None:
        return state.from_items(own.restore(abstract), ema=parts.ema)
    # Placed alike in all cases, so that the step is one program: a resumed run's numbers are those of the first.
    if config.init_from is None:
        return jax.jit(parts.new_state, out_shardings=parts.shardings)(jax.random.key(config.seed))
    numbers = _given_numbers(parts, config.init_from, abstract['params'])
    _say(f'with the parameters of {config.init_from}')
    return jax.jit(parts.state_of, donate_argnums=(0, 1), out_shardings=parts.shardings)(*numbers)


def _given_numbers(parts: Assembly, name: str, abstract: Any) -> tuple[Any, Any]:
    """The parameters that `init_from` names: (trainable, frozen), over the mesh."""
    if not weights.is_weights(name):
        model = parts.network.model(**Checkpoints(name, read_only=True).restore({'params': abstract})['params'])
        parts.stage.start_from(model)
        return state.numbers_of(parts.stage, model)
    with arrays.in_host_memory():
        model = _given_network(parts.config, name)
        parts.stage.start_from(model)
        numbers = state.numbers_of(parts.stage, model)
    return arrays.place(numbers, (parts.shardings.trainable, parts.shardings.frozen))


def _given_network(config: RunConfig, name: str) -> nnx.Module:
    """The network that `init_from` names a file of."""
    if config.stage.dit is not None:
        return weights.starting_dit(name, config.stage.dit, jax.random.key(config.seed))
    network = weights.load_vae(name)
    there, wanted = (dataclasses.replace(c, dtype='float32') for c in (network.config, config.stage.autoencoder_net))
    if there != wanted:
        raise ConfigError(f'config.init_from={name}: is a VAE of other sizes, {there}; this run has {wanted}')
    return network


# --- what its data depends on ---


def _digests(config: RunConfig, clips: list[Part], heldout: pipeline.Source | None) -> Digests:
    """Of the VAE and the text encoder that make what the stage learns from; checkpoints name them by it."""
    if config.stage.dit is None:
        return {}
    text = _text_stamp(config, clips, heldout)
    return {'vae': weights.vae_digest(config.stage.vae)} | ({'text': text.digest} if text else {})


def _text_stamp(config: RunConfig, clips: list[Part], heldout: pipeline.Source | None) -> TextStamp | None:
    """Whose embeddings the run learns from; the clips' must be those of its encoder."""
    chosen, own, found = config.stage.text, None, {}
    for part in clips:
        found |= text_stamps.of(part.name, part.source)
    if heldout is not None:
        found |= text_stamps.of(config.data.heldout, heldout)
    if chosen.encoder == BYTES or (chosen.encoder and Path(chosen.encoder).is_dir()):
        own = text_stamp(chosen)
    whose = text_stamps.check(found, chosen, own, config.stage.dit.text_dim)
    if chosen.encoder and own is None:
        _say(f'note: {chosen.encoder} is not here; the clips hold text embeddings of encoder {whose}, taken to be its')
    return whose


def _check_resumed(workdir: Path, digests: Digests) -> None:
    """Refuses to go on with another VAE or text encoder under the same name."""
    if not (workdir / FOLDER).is_dir() or (own := Checkpoints(workdir, read_only=True)).latest_step is None:
        return
    before = own.meta().get('digests', {})
    for name, digest in before.items():
        if digests.get(name, digest) != digest:
            raise ConfigError(
                f'config.stage.{name}: is {digests[name]} now, and {workdir} was trained with {digest}; bring that '
                'back or choose another --workdir'
            )


# --- its data ---


def _sources(config: RunConfig, bad: BadRecords) -> tuple[list[Part], pipeline.Source | None]:
    """The records to train on and, if any are evaluated, the held-out ones."""
    data = config.data
    heldout = pipeline.source(data.heldout, data, heldout=True) if data.heldout and config.loop.eval_every else None
    return pipeline.training_parts(data, bad), heldout


def _data(
    parts: Assembly,
    groups: list[pipeline.Group],
    heldout: pipeline.Source | None,
    workdir: Path,
    digests: Digests,
    start: int,
    bad: BadRecords,
) -> tuple[Iterator[Batch], list[Batch]]:
    """Training batches from step `start` on, and the held-out ones; over the mesh."""
    config, placement = parts.config, parts.placement
    data, low_res = config.data, registry.needs_low_res(config.stage)
    # Words are embedded as they are read; T5's embeddings come with the clips.
    text = open_text_encoder(config.stage.text) if config.stage.text.encoder == BYTES else None
    encoded = any(stamps.holds_latents(part.source) for group in groups for part in group.parts)
    if registry.needs_vae(config.stage) and data.cache is not None and not encoded:
        streams = _cached_streams(config, groups, workdir, digests, bad, text)
    else:
        streams = pipeline.streams(groups, data, low_res=low_res, text=text)
    rows = arrays.process_rows(placement)
    train = pipeline.train_batches(streams, data, bad, start_step=start, process=rows)
    train = (arrays.to_global(batch, placement) for batch in train)
    if heldout is None:
        return train, []
    transform = pipeline.pixels(data, low_res=low_res, training=False, text=text)
    held_out = pipeline.heldout_batches(heldout, transform, data, rows=placement.shards(axes.ACT_BATCH), process=rows)
    return train, [arrays.to_global(batch, placement) for batch in held_out]


def _cached_streams(
    config: RunConfig,
    groups: list[pipeline.Group],
    workdir: Path,
    digests: Digests,
    bad: BadRecords,
    text: TextEncoder | None,
) -> list[Stream]:
    """Every clip's latents. The first process encodes, on its first device; the others wait."""
    arguments = workdir / latent_cache.FOLDER, groups, api.frozen_vae(config.stage), config.data, digests['vae']
    cached = functools.partial(latent_cache.cached_streams, *arguments, bad=bad, progress=_say, text=text)
    found = cached() if jax.process_index() == 0 else None
    distributed.wait_for_all('latents')
    return cached() if found is None else found


def _videos(vae: JittedVAE | None, placement: Placement, samples: dict[str, jax.Array]) -> list[tuple[str, np.ndarray]]:
    """The first clip of every array of `Stage.sample`, as uint8; latents are decoded."""
    out = []
    for name, value in samples.items():
        video = arrays.to_host(vae.video(value) if name.startswith('z_') else value, placement)[0]
        out.append((name.removeprefix('z_').removesuffix('_BFHWC'), to_uint8(np.asarray(video, np.float32))))
    return out


def _count(params: Any) -> int:
    return sum(p.size for p in jax.tree.leaves(params))


if __name__ == '__main__':
    sys.exit(main())
