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
      exponentials: float32 exponentials per second.
      vmem: bytes of the vector memory (VMEM) of one core of a TPU; None for GPUs.
      cores: that a kernel's grid must be divided over, for the peak rates.
      clock: cycles of a core of a TPU per second; None for GPUs.
      package_devices: devices of a package, neighbours in a mesh, which share its links.
      package_rate: bytes/s to another device of the package, in one direction; None where there is none.
    """

    name: str
    flops: float
    memory: float
    memory_rate: float
    link_rate: float
    matrix_size: int | None
    exponentials: float
    vmem: int | None = None
    cores: int = 1
    clock: float | None = None
    package_devices: int = 1
    package_rate: float | None = None

    def attention_flops(self, head_dim: int) -> float:
        """Computes the peak rate of attention in FLOP/s; its matrix products are no wider than a head."""
        return self.flops * (min(1.0, head_dim / self.matrix_size) if self.matrix_size else 1.0)

    def communication_seconds(self, link_bytes: float, package_bytes: float) -> float:
        """Computes the time to send bytes over one link, and then others to the same package."""
        return link_bytes / self.link_rate + (package_bytes / self.package_rate if package_bytes else 0.0)

    def core_share(self, heads: int) -> float:
        """Computes the share of the cores that work where a kernel gives each of them whole heads."""
        return heads / (self.cores * -(-heads // self.cores))


GIB = 2**30
MIB = 2**20
# Exponentials. A core of a TPU computes those of a vector of 1024 values in one cycle, of v4 in two: so libtpu 0.0.52
# schedules them, and those of v4 were measured (github.com/ayaka14732/pallas-tpu-tutorial, chapter 1). The cycles are
# those of the peak rate, which is 2 * 4 * 128 * 128 FLOPs in each of a core's up to v5p; of v6e and v7x 2 * 2 * 256 *
# 256 * 2, an assumption by which v6e has the 1.75 GHz of v5p. H100: arXiv:2407.08608, section 3.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip('v4', 275e12, 30.75 * GIB, 1.23e12, 50e9, 128, 2 * 512 * 1.05e9, 16 * MIB, cores=2, clock=1.05e9),
        Chip('v5e', 197e12, 15.75 * GIB, 0.82e12, 50e9, 128, 1024 * 1.5e9, 128 * MIB, clock=1.5e9),
        Chip('v5p', 459e12, 95.73 * GIB, 2.77e12, 100e9, 128, 2 * 1024 * 1.75e9, 64 * MIB, cores=2, clock=1.75e9),
        Chip('v6e', 918e12, 31.24 * GIB, 1.64e12, 100e9, 256, 1024 * 1.75e9, 128 * MIB, clock=1.75e9),
        # One of a package's two, whose connection is 6 times as fast as a link (MaxText's guide to v7x).
        Chip('v7x', 1153e12, 94.74 * GIB, 3.69e12, 100e9, 256, 1024 * 2.2e9, 64 * MIB, 1, 2.2e9, 2, 600e9),
        Chip('h100', 989e12, 72 * GIB, 3.35e12, 450e9, None, 3.9e12),
        Chip('h200', 989e12, 0.9 * 141e9, 4.8e12, 450e9, None, 3.9e12),
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
