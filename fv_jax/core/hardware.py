"""Hardware data sheet: peak FLOP/s, memory size and bandwidth, interconnect, as Google and NVIDIA publish them.

A chip is one JAX device: a v4, v5p or v6e package is one device, a v7x package two.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """The data sheet of one JAX device.

    Attributes:
      flops: peak rate in FLOP/s, dense bfloat16.
      memory: bytes available to programs: of TPUs by libtpu's own messages, of GPUs nine tenths of the total.
      memory_rate: bandwidth of the memory in bytes/s.
      link_rate: bytes/s to a neighbour, in one direction along one axis of the interconnect.
      matrix_size: rows of the matrix unit, of which a head of size 64 fills 64; None where heads of 64 run at the peak
        rate.
      vmem: bytes of the vector memory (VMEM) of one core of a TPU; None for GPUs.
    """

    name: str
    flops: float
    memory: float
    memory_rate: float
    link_rate: float
    matrix_size: int | None
    vmem: int | None = None

    def attention_flops(self, head_dim: int) -> float:
        """Computes the peak rate of attention in FLOP/s; its matrix products are no wider than a head."""
        return self.flops * (min(1.0, head_dim / self.matrix_size) if self.matrix_size else 1.0)


GIB = 2**30
CHIPS = {
    chip.name: chip
    for chip in (
        Chip('v4', 275e12, 30.75 * GIB, 1.23e12, 45e9, 128, 16 * 2**20),
        Chip('v5e', 197e12, 15.75 * GIB, 0.82e12, 45e9, 128, 128 * 2**20),
        Chip('v5p', 459e12, 95.73 * GIB, 2.77e12, 90e9, 128, 64 * 2**20),
        Chip('v6e', 918e12, 31.24 * GIB, 1.64e12, 90e9, 256, 128 * 2**20),
        Chip('v7x', 1153e12, 94.74 * GIB, 3.69e12, 90e9, 256, 64 * 2**20),  # one of a package's two
        Chip('h100', 989e12, 72 * GIB, 3.35e12, 450e9, None),
        Chip('h200', 989e12, 0.9 * 141e9, 4.8e12, 450e9, None),
    )
}
# A CPU, for tests: the ratios of a v5e.
CPU = dataclasses.replace(CHIPS['v5e'], name='cpu')

_KINDS = {
    'TPU v4': 'v4',
    'TPU v5 lite': 'v5e',
    'TPU v5e': 'v5e',
    'TPU v5': 'v5p',
    'TPU v5p': 'v5p',
    'TPU v6 lite': 'v6e',
    'TPU v6e': 'v6e',
    'TPU7x': 'v7x',
    'TPU v7x': 'v7x',
}


def find_chip(device_kind: str) -> Chip | None:
    """Returns the data sheet of a `jax.Device.device_kind`; None for an unknown one."""
    if device_kind in _KINDS:
        return CHIPS[_KINDS[device_kind]]
    return next((chip for name, chip in CHIPS.items() if name in device_kind.lower()), None)


def find_chip_or_default(device_kind: str) -> Chip:
    """Returns the data sheet of a `jax.Device.device_kind`; for an unknown one `CPU`, with the ratios of a TPU."""
    return find_chip(device_kind) or CPU
