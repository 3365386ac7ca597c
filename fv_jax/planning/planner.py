"""Plans a run: compiles or estimates the programs of training and sampling on a slice."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import jax

from fv_jax.core.config import ConfigError
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.models.dit import DiTConfig
from fv_jax.parallel.mesh import ParallelConfig, make_mesh
from fv_jax.parallel.rules import Partitioner, make_frames_partitioner
from fv_jax.planning import fitting, slices
from fv_jax.planning.compiling import get_topology_devices
from fv_jax.planning.flops import Flops
from fv_jax.planning.programs import Phase, PlannedProgram
from fv_jax.planning.report import Report, compile_phases, compute_times, executed_seconds
from fv_jax.planning.sampled_stages import SampledPipeline
from fv_jax.planning.sampling_phases import sampling_phases
from fv_jax.planning.slices import Slice
from fv_jax.planning.training_phase import largest_bucket, training_phase
from fv_jax.planning.vae_programs import vae_config, vae_exists
from fv_jax.sampling.sampling_mesh import SamplingMesh
from fv_jax.stages import registry
from fv_jax.stages.latent_stage import LatentStage
from fv_jax.training.run.setup import TrainConfig, make_partitioner, make_train_setup


@dataclasses.dataclass(frozen=True)
class PlanRequest:
    """What to plan.

    Attributes:
      topology: the slice.
      config: of a training run; None plans no training.
      pipeline: to sample; None plans no sampling.
      parallel: the axes of the mesh that is sampled on; None as `SamplingMesh.create`.
      filters: plans only programs whose names contain one of these words; () plans all.
    """

    topology: Slice
    config: TrainConfig | None = None
    pipeline: SampledPipeline | None = None
    parallel: ParallelConfig | None = None
    filters: tuple[str, ...] = ()


def plan(request: PlanRequest) -> Report:
    """Plans training and sampling. What does not fit is a report too (`Report.fits`).

    Raises:
      ConfigError: the configuration does not divide over the slice, or its stage cannot be planned.
    """
    notes, request = [*_notes(request)], fit_request(request)
    phases = [*_phases(request)]
    if request.filters:
        chosen = [[p for p in phase.programs if any(word in p.name for word in request.filters)] for phase in phases]
        phases = [dataclasses.replace(phase, programs=tuple(p)) for phase, p in zip(phases, chosen, strict=True) if p]
    if request.config is not None:
        notes += [*suggest_wider_heads(phases, request), *describe_targets(phases, request.topology)]
    return Report(request.topology, tuple(compile_phases(phases, request.topology)), tuple(notes))


def fit_request(request: PlanRequest) -> PlanRequest:
    """Replaces 'auto' in the configuration of training by what fits the slice, or by what takes least."""
    config, topology = request.config, request.topology
    if config is None or not fitting.is_open(config):
        return request
    partitioner, compiles = make_slice_partitioner(config, topology), topology.libtpu_name is not None
    choice = fitting.choose(config, partitioner, latent_spec(config), topology.chip.memory, compiles=compiles)
    return dataclasses.replace(request, config=choice.apply(config))


def latent_spec(config: TrainConfig) -> LatentSpec:
    """Returns the geometry of the latents that the stage of the run works on."""
    return registry.latent_spec(config.stage, vae_config(config.stage) if registry.needs_vae(config.stage) else None)


def check_stage(config: TrainConfig) -> None:
    """Raises ConfigError for a run whose stage cannot be planned."""
    if not isinstance(config.stage.network, DiTConfig):
        known = ', '.join(registry.find_kinds(LatentStage))
        raise ConfigError(f'config.stage.kind={config.stage.kind}: known: {known}; no other stage can be planned')


def make_slice_partitioner(config: TrainConfig, topology: Slice) -> Partitioner:
    """Makes the partitioner of a training run on a slice.

    Raises:
      ConfigError: batch, heads, tokens or parameters do not divide over the slice, or the stage cannot be planned.
    """
    check_stage(config)
    return make_partitioner(config, make_mesh(config.parallel, _find_devices(topology)), latent_spec(config))


def resident_bytes(request: PlanRequest) -> float:
    """Computes the resident bytes per device of training, without compiling anything."""
    config = request.config
    if fitting.is_open(config):  # on which it does not depend
        partitioner = make_slice_partitioner(config, request.topology)
        *_, choice = fitting.list_choices(config, partitioner, latent_spec(config))
        request = dataclasses.replace(request, config=choice.apply(config))
    return sum(_training_phase(request).resident.values())


def suggest_wider_heads(phases: Sequence[Phase], request: PlanRequest) -> Iterator[str]:
    """Yields a note on the time that heads twice as wide would save in training, if they are narrower than the matrix
    unit.
    """
    for phase in phases:
        heads, head_dim = request.config.stage.network.num_heads, phase.head_dim
        now, wider = (executed_seconds(phase, request.topology, n * head_dim) for n in (1, 2))
        if phase.name == 'training' and heads % 2 == 0 and wider < now:
            yield (
                f'{phase.name}: trained from scratch, heads of {2 * head_dim} '
                f'(--config.stage.network.num_heads={heads // 2}) would take {wider:.3g} s instead of {now:.3g}'
            )


def describe_targets(phases: Sequence[Phase], topology: Slice) -> Iterator[str]:
    """Yields a note on the time of each kind of targets that a training step computes, and on what is expected."""
    for phase in phases:
        for program in phase.programs:
            if program.targets:
                yield _describe_targets(program, phase.head_dim, topology)


def _describe_targets(program: PlannedProgram, head_dim: int, topology: Slice) -> str:
    def seconds(work: Flops) -> float:
        where = topology.chip, program.devices, head_dim, program.heads
        return compute_times(work, program.recompute, *where).executed

    plain = program.flops + sum((each.flops * each.share for each in program.targets), Flops()) * -1
    kinds = [f'{each.name} {seconds(plain + each.flops):.3g} s ({each.share:.0%})' for each in program.targets]
    alone, expected = seconds(plain), seconds(program.flops)
    return (
        f'{program.name}: {alone:.3g} s with targets of the data; with targets {", ".join(kinds)}; expected '
        f'{expected:.3g} s, {expected / alone:.2f} times as long'
    )


def _phases(request: PlanRequest) -> Iterator[Phase]:
    # The devices of a mesh may be CPU devices in place of GPUs.
    topology, kind = request.topology, request.topology.generation
    if request.config is not None:
        yield _training_phase(request)
    if request.pipeline is not None:
        mesh = SamplingMesh.create(request.parallel, _find_devices(topology))
        text_device = make_frames_partitioner(_find_devices(topology.single_chip)[:1])
        yield from sampling_phases(request.pipeline, mesh, text_device, kind)


def _training_phase(request: PlanRequest) -> Phase:
    config, topology = request.config, request.topology
    setup = make_train_setup(config, make_slice_partitioner(config, topology), latent_spec(config))
    return training_phase(setup, vae_config(config.stage), largest_bucket(setup), topology.generation)


def _notes(request: PlanRequest) -> Iterator[str]:
    config = request.config
    if config is not None and not vae_exists(config.stage):
        yield f'{config.stage.vae} does not exist; assuming the official VAE'
    if config is not None and len(config.data.sizes) > 1:
        yield f'of {len(config.data.sizes)} buckets, the one with the most FLOPs per step is planned'
    if request.pipeline is not None and request.pipeline.t5_stages:
        yield 'assuming T5-XXL, on one device'
    if request.topology.libtpu_name is None:
        yield (
            'no ahead-of-time compiler for this chip: transient memory (~) is estimated by formula, accurate to about '
            '50 %; communication is not known'
        )


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
