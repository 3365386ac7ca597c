"""The causal convolution on TPUs: frames in blocks of rows and columns, which are the examples of a convolution.

XLA for TPU lays the examples of a convolution along the sublanes of the vector units, of which there are eight. It cuts
a single frame into eight for that, again in every convolution: for three frames of 1072x240x128 on a v6e its estimate
is 7 million cycles of pads and copies, and 0.8 million of the convolution itself. Here the frames are cut by hand, and
their columns between chips with them:

    frame          (B, H, W, C) = (B, blocks of rows, rows, shards of columns, columns, C)
    buffer         (rows + 2, columns + 2, shards x B x blocks of rows, T x C)
    convolution    over the first two dimensions, without padding

The buffer holds the last T frames, each block with the edges of its neighbours, and with zeros at the borders of the
frame. Frame i is in the channels of slot i mod T, and the taps of the kernel are in the order of the slots: a step
writes one frame and moves none.

Dimensions: B batch, F frames, H height, W width, C channels, T taps in time; r and w are the rows and columns of a
block, N the blocks.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from fv_jax.models.lazy_frames import LazyFrames

ROW_BLOCKS = 8  # sublanes of a tile of a vector register


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How frames of one shape are cut.

    Its methods are traced once for all convolutions of a shape; inlined, they leave the program as it is. Networks are
    traced for TPUs also where they run on CPU, and this takes most of the time.

    Attributes:
      batch, height, width: of the frames.
      shards: the number of chips that the columns are divided among.
      stride: of the convolution, 1 or 2.
    """

    batch: int
    height: int
    width: int
    shards: int
    stride: int

    @property
    def out_rows(self) -> int:
        """Rows of a block of the result."""
        return -(-self.height // (ROW_BLOCKS * self.stride))

    @property
    def out_columns(self) -> int:
        """Columns of a block of the result."""
        return -(-self.width // (self.shards * self.stride))

    @property
    def count(self) -> int:
        """The number N of blocks."""
        return self.shards * self.batch * ROW_BLOCKS

    @property
    def before(self) -> int:
        """Rows above, and columns left, of a block that its convolution reads."""
        return 1 if self.stride == 1 else 0

    def buffer_shape(self, channels: int) -> tuple[int, ...]:
        """Returns the shape of a buffer of so many channels: of each block, its neighbours' edges included."""
        rows, columns = (self.stride * side + self.before + 1 for side in (self.out_rows, self.out_columns))
        return rows, columns, self.count, channels

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def write(self, buffer_rwNC: jax.Array, frame_BHWC: jax.Array, slot: jax.Array | int) -> jax.Array:
        """Writes a frame into the channels of a slot."""
        rows, columns = self.stride * self.out_rows, self.stride * self.out_columns
        missing = ROW_BLOCKS * rows - self.height, self.shards * columns - self.width
        channels = frame_BHWC.shape[-1]
        # The barrier keeps the computation of the frame apart: fused with each piece of it, it would run for each.
        frame_BHWC = jnp.pad(lax.optimization_barrier(frame_BHWC), ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
        block = frame_BHWC.reshape(self.batch, ROW_BLOCKS, rows, self.shards, columns, channels)
        left, right = _shift(block[:, :, :, :, -1:], 1, axis=3), _shift(block[:, :, :, :, :1], -1, axis=3)
        if self.before:
            top = jnp.concatenate([part[:, :, -1:] for part in (left, block, right)], axis=4)
            bottom = jnp.concatenate([part[:, :, :1] for part in (left, block, right)], axis=4)
            pieces = [(block, 1, 1), (left, 1, 0), (right, 1, columns + 1), (_shift(top, 1, axis=1), 0, 0)]
            pieces.append((_shift(bottom, -1, axis=1), rows + 1, 0))
        else:
            bottom = jnp.concatenate([part[:, :, :1] for part in (block, right)], axis=4)
            pieces = [(block, 0, 0), (right, 0, columns), (_shift(bottom, -1, axis=1), rows, 0)]
        for piece, row, column in pieces:
            piece_rwNC = piece.transpose(2, 4, 3, 0, 1, 5).reshape(*piece.shape[2:5:2], self.count, channels)
            buffer_rwNC = lax.dynamic_update_slice(buffer_rwNC, piece_rwNC, (row, column, 0, slot * channels))
        return buffer_rwNC

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def join(self, y_rwNC: jax.Array) -> jax.Array:
        """Joins the blocks of the result to a frame (B, H / stride, W / stride, C)."""
        rows, columns, _, channels = y_rwNC.shape
        blocks = y_rwNC.reshape(rows, columns, self.shards, self.batch, ROW_BLOCKS, channels)
        frame = blocks.transpose(3, 4, 0, 2, 1, 5).reshape(
            self.batch, ROW_BLOCKS * rows, self.shards * columns, channels
        )
        return frame[:, : self.height // self.stride, : self.width // self.stride]


def _shift(x: jax.Array, by: int, axis: int) -> jax.Array:
    """Moves every block by one place, 1 or -1, along an axis; zeros take the place that becomes free."""
    # The barrier has the edges cut before they are sent: without it XLA sends whole frames, and cuts the edges then.
    x = lax.optimization_barrier(x)
    free = lax.broadcasted_iota(jnp.int32, x.shape, axis) == (0 if by == 1 else x.shape[axis] - 1)
    return jnp.where(free, jnp.zeros((), x.dtype), jnp.roll(x, by, axis))


@functools.partial(jax.jit, inline=True)
def _order_taps(kernel: jax.Array) -> jax.Array:
    """Returns the kernel (T, 3, 3, T x C, C') of each slot that the current frame may be in."""
    taps = len(kernel)
    orders = [[(slot - current - 1) % taps for slot in range(taps)] for current in range(taps)]
    return jnp.stack([jnp.concatenate([kernel[tap] for tap in order], axis=-2) for order in orders])


def conv_blocks(
    x: LazyFrames, past_BFHWC: jax.Array | None, kernel: jax.Array, bias: jax.Array, stride: int, shards: int
) -> tuple[jax.Array, jax.Array]:
    """Convolves frame after frame, each in blocks.

    Args:
      x: F frames (B, F, H, W, C).
      past_BFHWC, kernel, bias, stride: as those of `convolve`, the bias (1, 1, 1, C').
      shards: the number of chips that the columns are divided among; any other number gives the same result, with more
        traffic.

    Returns:
      What `convolve` returns.
    """
    taps, channels = len(kernel), kernel.shape[-2]
    first = x.frame(0)
    blocks = Blocks(*first.shape[:3], shards, stride)
    kernels = _order_taps(kernel)

    def seen(index: int) -> jax.Array:
        if index >= taps - 1:
            return x.frame(index - taps + 1)
        return first if past_BFHWC is None else past_BFHWC[:, index]

    def step(
        carry: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, tuple[jax.Array, ...]]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        (buffer, y), (index, parts) = carry, inputs
        slot = (index + taps - 1) % taps
        buffer = blocks.write(buffer, x.make(*parts), slot)
        numbers = ('HWNC', 'HWIO', 'HWNC')
        y_rwNC = lax.conv_general_dilated(buffer, kernels[slot], (stride,) * 2, 'VALID', dimension_numbers=numbers)
        frame = blocks.join(y_rwNC + bias)
        return (buffer, lax.dynamic_update_index_in_dim(y, frame, index, 0)), None

    buffer = lax.empty(blocks.buffer_shape(taps * channels), first.dtype)
    for index in range(taps - 1):
        buffer = blocks.write(buffer, seen(index), index)
    shape = x.length, blocks.batch, blocks.height // stride, blocks.width // stride, kernel.shape[-1]
    # Zeros, although all of them are replaced: XLA allocates `lax.empty` for all convolutions at the start of a program
    # that fits the chip alone, whatever else is in memory (v5e-8: 12.0 instead of 6.8 GiB of temporaries).
    y = jnp.zeros(shape, jnp.result_type(first, kernel))
    last = [seen(index)[:, None] for index in range(x.length, x.length + taps - 1)]
    # The slice is empty, but gives the result its shape where the kernel has one tap.
    last = jnp.concatenate([first[:, None][:, :0], *last], axis=1)
    # The barrier has them computed before the loop: after it, the clip that they are made of would be kept until then.
    buffer, last = lax.optimization_barrier((buffer, last))
    (_, y), _ = lax.scan(step, (buffer, y), (jnp.arange(x.length), x.frame_parts()))
    return jnp.moveaxis(y, 0, 1), last
