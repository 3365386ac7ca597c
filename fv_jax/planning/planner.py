"""Plans a run: compiles or estimates the programs of its configuration on a slice."""

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
from fv_jax.planning.compiling import get_topology_devices
from fv_jax.planning.programs import Phase
from fv_jax.planning.report import Report, compile_phase, executed_seconds
from fv_jax.planning.slices import Slice
from fv_jax.stages import registry
from fv_jax.stages.latent_stage import LatentStage
from fv_jax.training.run.setup import TrainConfig, TrainSetup, make_partitioner, make_train_setup
from fv_jax.weights import t5_text, text_encoders

PHASES = ('training', 'sampling', 'text')


@dataclasses.dataclass(frozen=True)
class PlanRequest:
    """What to plan.

    Attributes:
      config: of the run.
      topology: the slice.
      phases: of `PHASES`.
      filters: plans only programs whose names contain one of these words; () plans all.
      tiling: of the VAE when sampling; None for whole frames.
    """

    config: TrainConfig
    topology: Slice
    phases: tuple[str, ...] = PHASES
    filters: tuple[str, ...] = ()
    tiling: Tiling | None = None


def plan(request: PlanRequest) -> Report:
    """Plans the phases of a run. A run that does not fit is a report too (`Report.fits`).

    Raises:
      ConfigError: the configuration does not divide over the slice, or its stage cannot be planned.
    """
    partitioner = make_slice_partitioner(request)
    setup = make_train_setup(request.config, partitioner, latent_spec(request.config))
    bucket, vae, notes = programs.largest_bucket(setup), _vae_config(request.config), []
    if not _vae_exists(request.config):
        notes.append(f'{request.config.stage.vae} does not exist; assuming the official VAE')
    if len(request.config.data.sizes) > 1:
        notes.append(f'of {len(request.config.data.sizes)} buckets, the one with the most FLOPs per step is planned')
    if request.topology.libtpu_name is None:
        notes.append(
            'no ahead-of-time compiler for this chip: transient memory (~) is estimated by formula, accurate to about '
            '50 %; communication is not known'
        )
    reports = []
    for phase, devices in _phases(request, setup, vae, bucket, notes):
        if request.filters:
            chosen = tuple(p for p in phase.programs if any(word in p.name for word in request.filters))
            phase = dataclasses.replace(phase, programs=chosen)
        if phase.programs:
            reports.append(compile_phase(phase, request.topology, devices))
            notes += _suggest_wider_heads(phase, request, devices)
    # The devices of the mesh may be CPU devices in place of GPUs.
    mesh = describe(partitioner.mesh, request.topology.generation)
    return Report(request.topology, str(bucket), mesh, tuple(reports), tuple(notes))


def latent_spec(config: TrainConfig) -> LatentSpec:
    """Returns the geometry of the latents that the stage of the run works on."""
    return registry.latent_spec(config.stage, _vae_config(config) if registry.needs_vae(config.stage) else None)


def make_slice_partitioner(request: PlanRequest) -> Partitioner:
    """Makes the partitioner of a run on a slice.

    Raises:
      ConfigError: batch, heads, tokens or parameters do not divide over the slice, or the stage cannot be planned.
    """
    if not isinstance(request.config.stage.network, DiTConfig):
        known = ' and '.join(registry.find_kinds(LatentStage))
        raise ConfigError(f'config.stage.kind={request.config.stage.kind}: stages {known} can be planned')
    mesh = make_mesh(request.config.parallel, _find_devices(request.topology))
    return make_partitioner(request.config, mesh, latent_spec(request.config))


def resident_bytes(request: PlanRequest) -> float:
    """Computes the resident bytes per device of training, without compiling anything."""
    setup = make_train_setup(request.config, make_slice_partitioner(request), latent_spec(request.config))
    phase = programs.training_phase(setup, _vae_config(request.config), programs.largest_bucket(setup))
    return sum(phase.resident.values())


def _find_devices(topology: Slice) -> Sequence[jax.Device]:
    if topology.libtpu_name is not None:
        return get_topology_devices(topology)
    # Nothing is compiled for GPUs: the mesh is made of as many CPU devices.
    jax.config.update('jax_platforms', 'cpu')
    with contextlib.suppress(RuntimeError):  # JAX is initialized already; the number of devices is checked below
        jax.config.update('jax_num_cpu_devices', max(each.devices for each in slices.list_slices(topology.generation)))
    if len(jax.devices()) < topology.devices:
        raise ConfigError(f'--topology={topology}: needs {topology.devices} CPU devices (got {len(jax.devices())})')
    return jax.devices()[: topology.devices]


def _phases(
    request: PlanRequest, setup: TrainSetup, vae: VAEConfig, bucket: Bucket, notes: list[str]
) -> Iterator[tuple[Phase, int]]:
    """Yields the requested phases, each with the number of devices that it runs on."""
    wanted: Collection[str] = request.phases
    if 'training' in wanted:
        yield programs.training_phase(setup, vae, bucket), request.topology.devices
    if 'sampling' in wanted:
        yield programs.sampling_phase(setup, vae, bucket, request.tiling), request.topology.devices
    encoder = request.config.stage.text
    if 'text' in wanted and encoder.encoder and text_encoders.find_kind(encoder, 'config.stage.text') is t5_text.KIND:
        notes.append('assuming T5-XXL, on one device')
        devices = _find_devices(request.topology.single_chip)[:1]
        partitioner = Partitioner(make_mesh(ParallelConfig(), devices), request.config.strategy)
        t5_config = T5Config(dtype=encoder.dtype, param_dtype=encoder.dtype)
        yield programs.text_phase(t5_config, encoder.length, partitioner), 1


def _suggest_wider_heads(phase: Phase, request: PlanRequest, devices: int) -> Iterator[str]:
    """Yields a note on the time that heads twice as wide would save, if they are narrower than the matrix unit."""
    if phase.name == 'text':
        return
    heads, head_dim = request.config.stage.network.num_heads, phase.head_dim
    now, wider = (executed_seconds(phase, request.topology, devices, n * head_dim) for n in (1, 2))
    if heads % 2 == 0 and wider < now:
        yield (
            f'{phase.name}: trained from scratch, heads of {2 * head_dim} '
            f'(--config.stage.network.num_heads={heads // 2}) would take {wider:.3g} s instead of {now:.3g}'
        )


def _vae_config(config: TrainConfig) -> VAEConfig:
    """Reads the configuration of the run's VAE; the official one where the VAE does not exist."""
    vae_config = weights.vae_config(config.stage.vae) if _vae_exists(config) else vae_lib.OFFICIAL
    return dataclasses.replace(vae_config, dtype=config.stage.vae_dtype)


def _vae_exists(config: TrainConfig) -> bool:
    return weights.vae_path(config.stage.vae).exists()
