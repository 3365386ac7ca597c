"""TPU slices, and groups of GPUs, by name: the number of chips and their topology.

v4-8, v5p-8     the number of TensorCores, two per chip: 4 chips
v7x-8           the same; JAX counts each core as a device: 8 devices
v5e-8, v6e-8    the number of chips
v5p:4x8x8       the topology
h100-8          the number of GPUs, connected by NVLink

`launch/slices.sh` reads the same names of TPUs; a test compares the two.
"""

import dataclasses
import difflib
import math
import re

from fv_jax.core.config import ConfigError
from fv_jax.core.hardware import CHIPS, Chip

_FLAT = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
_CUBE = 64  # chips, 4x4x4: larger slices are made of cubes
_LONGEST = 256  # chips along a side
_SMALL = {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4)}


def _join_cubes(chips: int) -> tuple[int, ...]:
    """Computes the topology of `chips` chips in cubes that is nearest to a cube, its sides in ascending order."""
    cubes = chips // _CUBE
    sides = [(a, b, cubes // (a * b)) for a in range(1, cubes + 1) for b in range(a, cubes // a + 1)]
    ways = [(a, b, c) for a, b, c in sides if a * b * c == cubes and b <= c]
    return tuple(4 * side for side in min(ways, key=lambda way: (way[2], -way[0])))


_CUBES = _SMALL | {_CUBE * 2**i: _join_cubes(_CUBE * 2**i) for i in range(7)}


@dataclasses.dataclass(frozen=True)
class _Generation:
    """A generation of TPUs or GPUs.

    Attributes:
      shapes: the named topologies by number of chips; in three dimensions all multiples of a cube have names too.
      largest: the chips of the largest slice.
      cores: per chip, which the names count.
      devices: per chip, as JAX counts them.
      libtpu_name: of the generation; None for GPUs.
      aliases: other names of the generation.
      chip_config: libtpu's name of how the cores of a chip are used, if its default differs from that of JAX.
    """

    shapes: dict[int, tuple[int, ...]]
    largest: int
    cores: int
    devices: int
    libtpu_name: str | None
    aliases: tuple[str, ...] = ()
    chip_config: str | None = None

    def default_shape(self, chips: int) -> tuple[int, ...] | None:
        """Returns the topology of a name without one; None if there is no slice of so many chips."""
        joined = _CUBE in self.shapes and len(self.shapes[_CUBE]) == 3 and chips % _CUBE == 0
        return _join_cubes(chips) if joined and 0 < chips <= self.largest else self.shapes.get(chips)


_GPUS = {n: (n,) for n in (1, 2, 4, 8)}
_GENERATIONS = {
    'v4': _Generation({n: s for n, s in _CUBES.items() if n <= 2048}, 2048, 2, 1, 'v4', chip_config='megacore'),
    'v5e': _Generation(_FLAT, 256, 1, 1, 'v5e', ('v5litepod',)),
    'v5p': _Generation(_CUBES, 6144, 2, 1, 'v5p'),
    'v6e': _Generation(_FLAT, 256, 1, 1, 'v6e'),
    'v7x': _Generation({1: (1, 1, 1)} | _CUBES, 9216, 2, 2, 'tpu7x', ('tpu7x',)),
    'h100': _Generation(_GPUS, 8, 1, 1, None),
    'h200': _Generation(_GPUS, 8, 1, 1, None),
}
_NAMES = {name: generation for generation, g in _GENERATIONS.items() for name in (generation, *g.aliases)}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice, or GPUs of one machine.

    Attributes:
      generation: of `core.hardware.CHIPS`.
      shape: the chips along each axis of the interconnect.
    """

    generation: str
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        """The number of JAX devices: two per v7x chip."""
        return self.chips * _GENERATIONS[self.generation].devices

    @property
    def chip(self) -> Chip:
        """The data sheet of one JAX device."""
        return CHIPS[self.generation]

    @property
    def libtpu_name(self) -> str | None:
        """The name of the topology for libtpu, such as 'v5e:2x4'; None for GPUs."""
        generation = _GENERATIONS[self.generation].libtpu_name
        return None if generation is None else f'{generation}:{"x".join(map(str, self.shape))}'

    @property
    def chip_config(self) -> str | None:
        """libtpu's name of how the cores of a chip are used; None for its default."""
        return _GENERATIONS[self.generation].chip_config

    @property
    def single_chip(self) -> 'Slice':
        """A slice of a single chip of the same generation."""
        return Slice(self.generation, (1,) * len(self.shape))

    def __str__(self) -> str:
        count = self.chips * _GENERATIONS[self.generation].cores
        if _GENERATIONS[self.generation].default_shape(self.chips) == self.shape:
            return f'{self.generation}-{count}'
        return f'{self.generation}:{"x".join(map(str, self.shape))}'


def parse(name: str) -> Slice:
    """Parses the name of a slice: 'v5p-8', 'v5p:2x2x1', 'h100-8'. Raises ConfigError if there is no such slice."""
    has_shape = ':' in name
    generation, _, size = name.partition(':' if has_shape else '-')
    generation = parse_generation(generation, name)
    spec = _GENERATIONS[generation]
    if has_shape:
        return Slice(generation, _parse_shape(name, generation, size))
    chips, rest = divmod(int(size), spec.cores) if re.fullmatch('[1-9][0-9]{0,4}', size) else (0, 0)
    shape = None if rest else spec.default_shape(chips)
    if shape is None:
        sizes = ', '.join(str(n * spec.cores) for n in spec.shapes)
        if spec.largest > max(spec.shapes):
            sizes += f', and other multiples of {_CUBE * spec.cores} up to {spec.largest * spec.cores}'
        cores = f' (the number counts {spec.cores} TensorCores per chip)' if spec.cores > 1 else ''
        example = f'{generation}:{"x".join(map(str, spec.shapes[4]))}'
        other = '' if spec.libtpu_name is None else f', or a shape as in {example}'
        raise ConfigError(f'--topology={name}: does not exist; {generation} comes in {sizes}{cores}{other}')
    return Slice(generation, shape)


def parse_generation(name: str, topology: str | None = None) -> str:
    """Resolves the name of a generation or an alias of it: 'v5litepod' is 'v5e'.

    Args:
      name: of the generation.
      topology: the value of --topology, for the message.

    Raises:
      ConfigError: the generation is not known.
    """
    if name in _NAMES:
        return _NAMES[name]
    close = difflib.get_close_matches(name, _NAMES, n=1, cutoff=0.6)
    hint = f'did you mean {close[0]}?' if close else f'known: {", ".join(_GENERATIONS)}'
    raise ConfigError(f'--topology={topology or name}: unknown generation {name!r}; {hint}')


def list_slices(generation: str) -> list[Slice]:
    """Lists the slices of a generation that have a name without a topology, from the smallest."""
    return [Slice(generation, shape) for shape in _GENERATIONS[generation].shapes.values()]


def _parse_shape(name: str, generation: str, text: str) -> tuple[int, ...]:
    spec = _GENERATIONS[generation]
    parts = text.split('x')
    rank = len(next(iter(spec.shapes.values())))
    if (
        spec.libtpu_name is None
        or len(parts) != rank
        or not all(re.fullmatch('[1-9][0-9]{0,2}', part) for part in parts)
    ):
        example = f'{generation}:{"x".join(map(str, spec.shapes[8]))}' if spec.libtpu_name else f'{generation}-8'
        raise ConfigError(f'--topology={name}: is not a topology of {generation}; give one such as {example}')
    shape = tuple(map(int, parts))
    cubes = rank == 3 and all(size % 4 == 0 for size in shape) and list(shape) == sorted(shape)
    joined = cubes and math.prod(shape) <= spec.largest and shape[-1] <= _LONGEST
    if not joined and shape not in spec.shapes.values():
        listed = ', '.join('x'.join(map(str, each)) for each in spec.shapes.values())
        more = f', and multiples of 4 in ascending order, up to {spec.largest} chips' if rank == 3 else ''
        raise ConfigError(f'--topology={name}: does not exist; topologies of {generation}: {listed}{more}')
    return shape
