"""From a run's configuration and a slice to a plan."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Sequence

import jax

from fv_jax import weights
from fv_jax.core.config import ConfigError
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.data.buckets import Bucket
from fv_jax.models import vae as vae_lib
from fv_jax.models.dit import DiTConfig
from fv_jax.models.t5 import T5Config
from fv_jax.models.vae import VAEConfig
from fv_jax.models.vae_tiling import Tiling
from fv_jax.parallel.mesh import ParallelConfig, describe, make_mesh
from fv_jax.parallel.rules import Partitioner
from fv_jax.planning import programs, slices
from fv_jax.planning.compiling import devices_of
from fv_jax.planning.programs import Phase
from fv_jax.planning.report import Report, executed, measured
from fv_jax.planning.slices import Slice
from fv_jax.stages import registry
from fv_jax.stages.latent_stage import LatentStage
from fv_jax.training.run.setup import TrainConfig, TrainSetup, make_partitioner, make_train_setup
from fv_jax.weights import t5_text, text_encoders

PHASES = ('training', 'sampling', 'text')


@dataclasses.dataclass(frozen=True)
class Request:
    """What is planned. phases: of `PHASES`. only: executables whose name has one of these in it; () takes all. tiling:
    of the VAE when sampling; None for whole frames.
    """

    config: TrainConfig
    where: Slice
    phases: tuple[str, ...] = PHASES
    only: tuple[str, ...] = ()
    tiling: Tiling | None = None


def plan(request: Request) -> Report:
    """Raises ConfigError for a configuration that cannot be on the slice; one that does not fit is a report."""
    partitioner = make_slice_partitioner(request)
    setup = make_train_setup(request.config, partitioner, latent_spec(request.config))
    bucket, vae, notes = programs.largest(setup), _vae_config(request.config), []
    if not _is_here(request.config):
        notes.append(f'{request.config.stage.vae} is not here; it is taken to be the official VAE')
    if len(request.config.data.sizes) > 1:
        notes.append(f'of {len(request.config.data.sizes)} sizes, the one with the most work a step is planned')
    if request.where.topology is None:
        notes.append(
            'nothing here compiles for this chip: what an executable needs beside what stays (~) is by formula, good '
            'to about half; traffic is not known'
        )
    reports = []
    for phase, devices in _phases(request, setup, vae, bucket, notes):
        if request.only:
            kept = tuple(e for e in phase.executables if any(word in e.name for word in request.only))
            phase = dataclasses.replace(phase, executables=kept)
        if phase.executables:
            reports.append(measured(phase, request.where, devices))
            notes += _wider_heads(phase, request, devices)
    # CPU devices may have stood for the slice's.
    mesh = describe(partitioner.mesh, request.where.generation)
    return Report(request.where, str(bucket), mesh, tuple(reports), tuple(notes))


def latent_spec(config: TrainConfig) -> LatentSpec:
    """The latents that the run's stage works on."""
    return registry.latent_spec(config.stage, _vae_config(config) if registry.needs_vae(config.stage) else None)


def make_slice_partitioner(request: Request) -> Partitioner:
    """Raises ConfigError when batch, heads, tokens or parameters do not divide over the slice."""
    if not isinstance(request.config.stage.network, DiTConfig):
        known = ' and '.join(registry.kinds_of(LatentStage))
        raise ConfigError(f'config.stage.kind={request.config.stage.kind}: stages {known} can be planned')
    mesh = make_mesh(request.config.parallel, _devices(request.where))
    return make_partitioner(request.config, mesh, latent_spec(request.config))


def resident_bytes(request: Request) -> float:
    """Of training, a chip: what a slice must hold at the least. Nothing is compiled."""
    setup = make_train_setup(request.config, make_slice_partitioner(request), latent_spec(request.config))
    phase = programs.training(setup, _vae_config(request.config), programs.largest(setup))
    return sum(phase.resident.values())


def _devices(where: Slice) -> Sequence[jax.Device]:
    if where.topology is not None:
        return devices_of(where)
    # Nothing is compiled for GPUs: CPU devices stand for them where arrays are placed.
    jax.config.update('jax_platforms', 'cpu')
    with contextlib.suppress(RuntimeError):  # JAX has its devices already; whether they are enough is seen below
        jax.config.update('jax_num_cpu_devices', max(each.devices for each in slices.sizes(where.generation)))
    if len(jax.devices()) < where.devices:
        raise ConfigError(f'--topology={where}: {len(jax.devices())} CPU device(s) are too few to stand for its GPUs')
    return jax.devices()[: where.devices]


def _phases(
    request: Request, setup: TrainSetup, vae: VAEConfig, bucket: Bucket, notes: list[str]
) -> Iterator[tuple[Phase, int]]:
    """Those that are asked for, each with the devices that it runs on."""
    wanted: Collection[str] = request.phases
    if 'training' in wanted:
        yield programs.training(setup, vae, bucket), request.where.devices
    if 'sampling' in wanted:
        yield programs.sampling_phase(setup, vae, bucket, request.tiling), request.where.devices
    encoder = request.config.stage.text
    if 'text' in wanted and encoder.encoder and text_encoders.kind_of(encoder, 'config.stage.text') is t5_text.KIND:
        notes.append('T5 is taken to be XXL; it runs on one device')
        devices = _devices(request.where.one)[:1]
        one = Partitioner(make_mesh(ParallelConfig(), devices), request.config.strategy)
        sizes = T5Config(dtype=encoder.dtype, param_dtype=encoder.dtype)
        yield programs.text(sizes, encoder.length, one), 1


def _wider_heads(phase: Phase, request: Request, devices: int) -> Iterator[str]:
    """What heads twice as wide would save, where they are narrower than the matrix unit."""
    if phase.name == 'text':
        return
    heads, head_dim = request.config.stage.network.num_heads, phase.head_dim
    now, wider = (executed(phase, request.where, devices, n * head_dim) for n in (1, 2))
    if heads % 2 == 0 and wider < now:
        yield (
            f'{phase.name}: from scratch, heads of {2 * head_dim} (--config.stage.network.num_heads={heads // 2}) '
            f'would take {wider:.3g} s in place of {now:.3g}'
        )


def _vae_config(config: TrainConfig) -> VAEConfig:
    """Of the VAE that the configuration names; the official one where it is not here."""
    found = weights.vae_config(config.stage.vae) if _is_here(config) else vae_lib.OFFICIAL
    return dataclasses.replace(found, dtype=config.stage.vae_dtype)


def _is_here(config: TrainConfig) -> bool:
    return weights.vae_path(config.stage.vae).exists()
