"""Exports the functions of a network as StableHLO files that run without fv_jax, with jax and numpy alone.

A stage lists its functions (`Stage.exported_functions`). Each is one `jax.export` artifact of one shape, which
contains StableHLO and no parameters. Its first argument is the list of the network's parameters, flat, in the order of
their names in `parameters.npz`. The networks use no platform-specific kernel here, so that one file serves cpu, tpu
and cuda; it contains attention twice, for CPUs and for the others.
"""

import pathlib
import zipfile
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fv_jax.core.abstract_module import abstract_module
from fv_jax.core.config import ConfigError
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.stages.protocol import BatchSize, ExportedFunction, Stage

PLATFORMS = ('cpu', 'tpu', 'cuda')
PARAMETERS = 'parameters.npz'
SUFFIX = '.jax'

# Example code for users; a test runs it.
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


def list_functions(
    stage: Stage, latent_spec: LatentSpec, size: tuple[int, int, int], *, context: ParallelContext
) -> list[ExportedFunction]:
    """Returns the functions of a stage's network for one video.

    Args:
      stage: the stage.
      latent_spec: of the VAE whose latents the stage works on.
      size: (frames, height, width) of the video.
      context: with attention that is available on every platform of the export.

    Raises:
      ConfigError: a size that the VAE cannot take, or a stage without functions.
    """
    latent_spec.check_clip('--size', *size)
    found = stage.exported_functions(BatchSize(1, size, latent_spec.latent_size(*size)), context=context)
    if not found:
        raise ConfigError('--forward: this stage has no functions to export; remove the flag')
    return list(found)


def export_stablehlo(function: ExportedFunction, stage: Stage, platforms: Sequence[str]) -> bytes:
    """Exports a function as serialized StableHLO (`jax.export`) for these platforms, without computing anything."""
    graphdef, state = nnx.split(abstract_module(stage.init))
    variables = nnx.to_flat_state(state)

    def flat(leaves: list[jax.Array], *inputs: jax.Array) -> jax.Array:
        filled = [(path, variable.replace(x)) for (path, variable), x in zip(variables, leaves, strict=True)]
        return function.call(nnx.merge(graphdef, nnx.from_flat_state(filled)), *inputs)

    specs = [jax.ShapeDtypeStruct(variable.shape, variable.dtype) for _, variable in variables]
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in function.inputs.values()]
    exported = jax.export.export(jax.jit(flat), platforms=platforms)(specs, *inputs)
    return bytes(exported.serialize())


def parameter_names(stage: Stage) -> list[tuple[str, np.dtype]]:
    """Returns the dotted names and dtypes of the parameters, in the order in which exported functions take them."""
    state = nnx.state(abstract_module(stage.init))
    return [('.'.join(map(str, path)), np.dtype(leaf.dtype)) for path, leaf in nnx.to_flat_state(state)]


def write_parameters(path: pathlib.Path, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes arrays to an .npz in this order, one in memory at a time.

    bfloat16, which numpy does not know, is stored as its bits (uint16).
    """
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED, allowZip64=True) as archive:
        for i, (name, array) in enumerate(arrays):
            array = array.view(np.uint16) if array.dtype == jnp.bfloat16 else array
            with archive.open(f'{i:05d}.{name}.npy', 'w', force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array, order='C'))
