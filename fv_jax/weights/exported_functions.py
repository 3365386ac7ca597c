"""A network's forward functions as files that run where fv_jax is not: with jax and numpy alone.

    velocity   x_BFHWC, timestep_B, text_BLD  ->  dx/dt at t = timestep / 1000, not guided      stage 2
    encode     video_BFHWC in [-1, 1]         ->  moments (mean | logvar), not scaled            the VAE
    decode     z_BFHWC, not scaled            ->  video nominally in [-1, 1]                      the VAE

Each is one `jax.export` artefact of one shape, which holds StableHLO and no numbers. Its first argument is the list of
the network's parameters, flat, in the order of their names in `parameters.npz`. Nothing in the networks is a platform's
own kernel, so that one file serves cpu, tpu and cuda; attention is written twice in it, for CPUs and for the others.
"""

import dataclasses
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fv_jax.core.abstract_module import abstract
from fv_jax.core.config import ConfigError
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.core.parallel_context import Rules
from fv_jax.diffusion.time_grids import Times
from fv_jax.models import vae_chunking
from fv_jax.stages.autoencoder import Autoencoder
from fv_jax.stages.protocol import Stage
from fv_jax.stages.super_res import SuperRes

PLATFORMS = ('cpu', 'tpu', 'cuda')
PARAMETERS = 'parameters.npz'
SUFFIX = '.jax'

# What a user copies; a test runs it.
LOADER = """\
import jax, numpy as np
from jax import export

stored = np.load(folder + '/parameters.npz')
leaves = [stored[name] for name in sorted(stored)]
leaves = [x.view(jax.numpy.bfloat16) if x.dtype == np.uint16 else x for x in leaves]


def load(name):
    with open(f'{folder}/{name}.jax', 'rb') as file:
        run = export.deserialize(bytearray(file.read())).call
    return lambda *inputs: run(leaves, *inputs)
"""


@dataclasses.dataclass(frozen=True)
class Forward:
    """One function. call: (network, *inputs) -> array. inputs: their names, shapes and types."""

    name: str
    call: Callable[..., jax.Array]
    inputs: dict[str, jax.ShapeDtypeStruct]

    def __str__(self) -> str:
        listed = ', '.join(f'{name} {x.dtype}{list(x.shape)}' for name, x in self.inputs.items())
        return f'{self.name}({listed})'


def forwards(
    stage: Stage, latent_spec: LatentSpec, size: tuple[int, int, int], text_length: int, *, rules: Rules
) -> list[Forward]:
    """The functions of a stage's network for a video of (frames, height, width), a batch of one.

    latent_spec: of the VAE whose latents the stage works on. rules: who computes attention; what it uses must be there
    on every platform of an artefact.

    Raises ConfigError for a size that the VAE cannot take, or a stage that has none.
    """
    latent_spec.check_clip('--size', *size)
    latent = latent_spec.latent_size(*size)
    if isinstance(stage, SuperRes):
        return [_velocity(stage, latent, text_length, rules)]
    if isinstance(stage, Autoencoder):
        video, z = _float(1, *size, 3), _float(1, *latent, stage.vae.latent_channels)
        return [
            Forward('encode', vae_chunking.encode, {'video_BFHWC': video}),
            Forward('decode', vae_chunking.decode, {'z_BFHWC': z}),
        ]
    raise ConfigError('only a stage 2 and a VAE have forward functions to write')


def _velocity(stage: SuperRes, latent: tuple[int, int, int], text_length: int, rules: Rules) -> Forward:
    stage = stage.sampled_with(guidance_scale=1.0)

    def call(model: nnx.Module, x: jax.Array, timestep_B: jax.Array, text_BLD: jax.Array) -> jax.Array:
        velocity_fn = stage.velocity_fn(model, text_BLD, rules=rules)
        return velocity_fn(x, Times(timestep_B[0] / 1000, timestep_B[0]))

    inputs = {
        'x_BFHWC': _float(1, *latent, stage.dit.latent_channels),
        'timestep_B': _float(1),
        'text_BLD': _float(1, text_length, stage.dit.text_dim),
    }
    return Forward('velocity', call, inputs)


def _float(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def serialized(forward: Forward, stage: Stage, platforms: Sequence[str]) -> bytes:
    """The artefact; nothing is computed."""
    graphdef, state = nnx.split(abstract(stage.init))
    variables = nnx.to_flat_state(state)

    def flat(leaves: list[jax.Array], *inputs: jax.Array) -> jax.Array:
        filled = [(path, variable.replace(x)) for (path, variable), x in zip(variables, leaves, strict=True)]
        return forward.call(nnx.merge(graphdef, nnx.from_flat_state(filled)), *inputs)

    specs = [jax.ShapeDtypeStruct(variable.shape, variable.dtype) for _, variable in variables]
    exported = jax.export.export(jax.jit(flat), platforms=platforms)(specs, *forward.inputs.values())
    return bytes(exported.serialize())


def parameter_names(stage: Stage) -> list[tuple[str, np.dtype]]:
    """The parameters as artefacts take them: dotted names in order, and their types."""
    state = nnx.state(abstract(stage.init))
    return [('.'.join(map(str, path)), np.dtype(leaf.dtype)) for path, leaf in nnx.to_flat_state(state)]


def write_parameters(path: Path, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """An .npz of arrays in this order, one in memory at a time; bfloat16, which numpy does not know, as its bits."""
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED, allowZip64=True) as archive:
        for i, (name, array) in enumerate(arrays):
            array = array.view(np.uint16) if array.dtype == jnp.bfloat16 else array
            with archive.open(f'{i:05d}.{name}.npy', 'w', force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array, order='C'))
