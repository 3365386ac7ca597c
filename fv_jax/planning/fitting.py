"""Chooses the microbatches of a training step and its rematerialization where the configuration says 'auto'.

The programs of a step are compiled for one choice after the other until they fit the memory of a device: first the
policies that recompute less, and of one policy the fewest microbatches, which are also the parts in which videos are
encoded. A choice that the formula puts far beyond the memory is not compiled. What is chosen changes no result but for
rounding; it is kept in the cache folder, for the next start.
"""

import dataclasses
import itertools
import logging
import math
import os
from pathlib import Path

import jax
import jaxlib

from fv_jax.core import axes, files
from fv_jax.core.cache_folder import CHOICES, make_cache_folder
from fv_jax.core.config import AUTO, ConfigError
from fv_jax.core.files import parse_json
from fv_jax.core.hashing import fingerprint
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.models.dit import DiTConfig
from fv_jax.models.remat import CHEAPEST_FIRST, Remat
from fv_jax.parallel import distributed
from fv_jax.parallel.rules import Partitioner
from fv_jax.planning.compiling import CompileOutOfMemory, compile_ahead, format_gib
from fv_jax.planning.programs import Phase, PlannedProgram
from fv_jax.planning.report import transient_bytes
from fv_jax.planning.training_phase import largest_bucket, training_phase
from fv_jax.planning.vae_programs import vae_config
from fv_jax.training.run.setup import TrainConfig, make_train_setup

log = logging.getLogger(__name__)

_FORMULA_SLACK = 1.6  # the formula is accurate to about 50 %
_COMPILER_FLAGS = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')  # environment variables that change what is compiled


@dataclasses.dataclass(frozen=True)
class Choice:
    """A choice, and the bytes of a device that training takes with it; 0 if nothing was compiled."""

    microbatches: int
    remat: Remat
    peak_bytes: float = 0.0

    def __str__(self) -> str:
        return f'loop.microbatches={self.microbatches}, stage.network.remat={self.remat}'

    def apply(self, config: TrainConfig) -> TrainConfig:
        """Returns the configuration with this choice."""
        network = config.stage.network
        if isinstance(network, DiTConfig):
            network = dataclasses.replace(network, remat=self.remat)
        return dataclasses.replace(
            config,
            stage=dataclasses.replace(config.stage, network=network),
            loop=dataclasses.replace(config.loop, microbatches=self.microbatches),
        )


def is_open(config: TrainConfig) -> bool:
    """Returns whether a configuration leaves a choice."""
    return AUTO in (config.loop.microbatches, getattr(config.stage.network, 'remat', None))


def fit_to_devices(config: TrainConfig, partitioner: Partitioner, latent_spec: LatentSpec) -> TrainConfig:
    """Replaces 'auto' by what fits the devices of the mesh; all processes choose the same.

    Raises:
      ConfigError: no choice fits, or the stage cannot be planned.
    """
    if not is_open(config):
        return config
    memory = _memory_limit(partitioner.mesh.local_devices[0])
    choice = choose(config, partitioner, latent_spec, memory)
    if choice.peak_bytes > memory:
        raise ConfigError(
            f'{_format(config)}: even {choice} needs {format_gib(choice.peak_bytes)} of the {format_gib(memory)} of a '
            'device; python -m fv_jax.plan suggests changes'
        )
    distributed.check_same(str(choice), f'the processes chose different fields; set them: {_format(config)}')
    return choice.apply(config)


def choose(
    config: TrainConfig, partitioner: Partitioner, latent_spec: LatentSpec, memory: float, *, compiles: bool = True
) -> Choice:
    """Chooses what fits `memory`, in bytes of a device, and logs it; if nothing does, what takes least.

    Args:
      config: of a run, with 'auto'.
      partitioner: of the mesh, whose devices need not be attached.
      latent_spec: of the VAE of the stage.
      memory: without a limit (infinity) the first choice is taken and nothing is compiled, as if there is only one.
      compiles: whether there is a compiler for the devices; otherwise the formula decides.

    Raises:
      ConfigError: the stage cannot be planned.
      jax.errors.JaxRuntimeError: the compiler failed, other than for lack of memory.
    """
    if not isinstance(config.stage.network, DiTConfig):
        raise ConfigError(f'config.loop.microbatches={AUTO}: can be chosen for networks of DiT only; set a number')
    choices = list_choices(config, partitioner, latent_spec)
    if len(choices) == 1 or memory == math.inf:
        found = choices[0]
    else:
        found = _Search(config, partitioner, latent_spec, memory, compiles).find(choices)
    size = f', {format_gib(found.peak_bytes)} of {format_gib(memory)} per device' if found.peak_bytes else ''
    log.info(f'{AUTO}: {found}{size}')
    return found


def _memory_limit(device: jax.Device) -> float:
    """Returns the bytes that programs may use; infinity for a CPU, which has no limit of its own."""
    return (device.memory_stats() or {}).get('bytes_limit', math.inf)


def list_choices(config: TrainConfig, partitioner: Partitioner, latent_spec: LatentSpec) -> list[Choice]:
    """Lists the choices that a configuration leaves, in the order in which they are tried."""
    remat, microbatches, data = config.stage.network.remat, config.loop.microbatches, config.data
    shards = partitioner.num_shards(axes.ACT_BATCH)
    examples = math.gcd(*(data.batch_size(bucket, latent_spec) // shards for bucket in data.sizes))
    counts = [n for n in range(1, examples + 1) if examples % n == 0] if microbatches == AUTO else [microbatches]
    policies = CHEAPEST_FIRST if remat == AUTO else (remat,)
    return [Choice(n, policy) for policy, n in itertools.product(policies, counts)]


@dataclasses.dataclass(frozen=True)
class _Search:
    config: TrainConfig
    partitioner: Partitioner
    latent_spec: LatentSpec
    memory: float
    compiles: bool

    def find(self, choices: list[Choice]) -> Choice:
        """Returns the first choice that fits, or else the last one, with its bytes."""
        if not self.compiles:
            return self._first_fitting(choices)
        records = _Records(self._fingerprint(self._plan(choices[-1])))
        if (found := records.read()) is None:
            found = self._first_fitting(choices)
            records.write(found)
        return found

    def _first_fitting(self, choices: list[Choice]) -> Choice:
        for choice in choices:
            phase, last = self._plan(choice), choice is choices[-1]
            resident = sum(phase.resident.values())
            estimate = resident + max(program.estimated_bytes for program in phase.programs)
            if estimate > _FORMULA_SLACK * self.memory and not last:
                continue
            size = resident
            for program in phase.programs:
                size = max(size, resident + self._transient_bytes(phase, program, choice))
                if size > self.memory:
                    break
            if size <= self.memory or last:
                return dataclasses.replace(choice, peak_bytes=size)
            log.info(f'{AUTO}: {choice} needs {format_gib(size)} of {format_gib(self.memory)} per device')
        raise AssertionError('no choices')

    def _transient_bytes(self, phase: Phase, program: PlannedProgram, choice: Choice) -> float:
        if not self.compiles:
            return program.estimated_bytes
        log.info(f'{AUTO}: compiling {program.name} with {choice}')
        compiled = compile_ahead(program.lower, phase.devices)
        if isinstance(compiled, CompileOutOfMemory):  # which may report the temporaries alone
            return max(compiled.required_bytes, math.nextafter(self.memory, math.inf))
        return transient_bytes(program, compiled)

    def _plan(self, choice: Choice) -> Phase:
        setup = make_train_setup(choice.apply(self.config), self.partitioner, self.latent_spec)
        return training_phase(setup, vae_config(self.config.stage), largest_bucket(setup))

    def _fingerprint(self, phase: Phase) -> str:
        """Identifies what the choice depends on: fields, the lowered programs, devices, compiler and memory."""
        programs = [program.lower().as_text() for program in phase.programs]
        compiler = [f'{name}={os.environ.get(name)}' for name in _COMPILER_FLAGS]
        kind = self.partitioner.mesh.devices.flat[0].device_kind
        versions = jax.__version__, jaxlib.__version__
        return fingerprint([_format(self.config), *programs, phase.mesh, kind, str(self.memory), *versions, *compiler])


class _Records:
    """The file in the cache folder that keeps a choice; without a cache folder nothing is kept, with a warning."""

    def __init__(self, key: str):
        self._path: Path | None = None
        try:
            self._path = make_cache_folder() / CHOICES / f'{key}.json'
        except OSError as error:
            log.warning(f'the choice is not kept: {error}')

    def read(self) -> Choice | None:
        """Reads the choice; None if there is none."""
        if self._path is None or not self._path.exists():
            return None
        return Choice(**parse_json(self._path.read_text()))

    def write(self, choice: Choice) -> None:
        if self._path is not None:
            self._path.parent.mkdir(exist_ok=True)
            files.write_json(self._path, dataclasses.asdict(choice))


def _format(config: TrainConfig) -> str:
    network = config.stage.network
    return f'config.loop.microbatches={config.loop.microbatches}, config.stage.network.remat={network.remat}'
