"""FLOPs of the networks by formula, independent of how and where they are executed.

A multiplication and its addition are two FLOPs. With M tokens of width D, N heads of size K (N K = D), an MLP of width
I and a conditioning vector of width E, the forward pass of one example through a block of the DiT takes

    linear     8 M D^2 + 4 M D I + 24 E D                (1)   q k v and out; the MLP; the twelve modulations
    attention  4 M^2 D, and M^2 N exponentials           (2)

and a 3x3x3 convolution of C to C' channels 2 * 27 C C' for each output, without the taps on zero padding. Norms,
activations and the arithmetic of samplers are not counted.

The backward pass costs twice the forward pass, once for the gradient of the inputs and once for that of the weights;
frozen weights (LoRA) cost once. What rematerialization and kernels recompute is `dit_recompute`, and not part of the
model FLOPs (arXiv:2204.02311, appendix B, distinguishes model and hardware FLOPs utilization). Of attention that is the
logits and their exponentials in the backward pass, a product more than the model's four; the forward pass runs once,
for every `remat` policy saves what it leaves to the backward pass.
"""

import dataclasses
from collections.abc import Iterator

from fv_jax.models.dit import DiTConfig
from fv_jax.models.t5 import T5Config
from fv_jax.models.vae import VAEConfig

# Products of M x M x K in flash attention. Forward: q k and w v. Backward, in one kernel: q k, do v, w do, ds q, ds k.
FORWARD_PRODUCTS, BACKWARD_PRODUCTS = 2, 5
MODEL_BACKWARD_PRODUCTS = 4  # of the formula, which does not recompute the logits


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs by what bounds their rate.

    Attributes:
      attention: of (2), which the head size can keep below the peak rate.
      linear: of all other matrix products.
      vae: of convolutions.
      exponentials: of (2), a number that is not part of the FLOPs.
    """

    attention: float = 0.0
    linear: float = 0.0
    vae: float = 0.0
    exponentials: float = 0.0

    @property
    def total(self) -> float:
        return self.attention + self.linear + self.vae

    def __add__(self, other: 'Flops') -> 'Flops':
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Flops(*(a + b for a, b in pairs))

    def __mul__(self, times: float) -> 'Flops':
        return Flops(*(times * each for each in dataclasses.astuple(self)))


@dataclasses.dataclass(frozen=True)
class SequenceLength:
    """The numbers of text and video tokens of one example."""

    text: int
    video: int

    @property
    def total(self) -> int:
        return self.text + self.video


# --- the DiT ---


def dit_forward(config: DiTConfig, sequence: SequenceLength) -> Flops:
    """Counts the forward pass of one example."""
    return dit_blocks(config, sequence) + Flops(
        linear=_embed_tokens(config, sequence) + _embed_cond(config) + _head(config, sequence)
    )


def dit_blocks(config: DiTConfig, sequence: SequenceLength) -> Flops:
    """Counts the forward pass of one example through all blocks, with LoRA."""
    linear = _token_linears(config, sequence.total) + _modulation(config) + _lora(config, sequence.total)
    logits = sequence.total**2 * config.num_heads
    return Flops(4 * sequence.total**2 * config.embed_dim, linear, exponentials=logits) * config.num_layers


def dit_training(config: DiTConfig, sequence: SequenceLength) -> Flops:
    """Counts the forward and the backward pass of one example, without recomputation."""
    forward = dit_forward(config, sequence)
    backward = (
        2 * forward.attention,
        2 * forward.linear - _embed_tokens(config, sequence),
    )  # the inputs need no gradient
    if config.lora is not None:
        # Frozen weights need the gradient of their inputs alone; what does not depend on LoRA needs none.
        frozen = _token_linears(config, sequence.total) * config.num_layers + 2 * sequence.total * config.embed_dim * (
            config.patch_dim
        )
        backward = backward[0], frozen + 2 * _lora(config, sequence.total) * config.num_layers
    return forward + Flops(*backward)


def dit_recompute(config: DiTConfig, sequence: SequenceLength) -> Flops:
    """Counts what training recomputes for one example: what `remat` does not save, and the logits of attention."""
    blocks = dit_blocks(config, sequence)
    products = (BACKWARD_PRODUCTS - MODEL_BACKWARD_PRODUCTS) / FORWARD_PRODUCTS
    linear = blocks.linear if config.remat in ('full', 'offload') else 0.0
    return Flops(products * blocks.attention, linear, exponentials=blocks.exponentials)


def _token_linears(config: DiTConfig, tokens: int) -> float:
    return tokens * (8 * config.embed_dim**2 + 4 * config.embed_dim * config.mlp_dim)


def _modulation(config: DiTConfig) -> float:
    return 2 * config.cond_dim * 12 * config.embed_dim


def _lora(config: DiTConfig, tokens: int) -> float:
    """Counts x A B of every linear of a block that has LoRA."""
    if config.lora is None:
        return 0.0
    dim, inner, rank = config.embed_dim, config.mlp_dim, config.lora.rank
    sizes = {
        'qkv': 3 * tokens * (dim + dim),
        'attention_out': tokens * (dim + dim),
        'modulation': config.cond_dim + 12 * dim,
        'mlp': 2 * tokens * (dim + inner),
    }
    return 2 * rank * sum(sizes[target] for target in config.lora.targets)


def _embed_tokens(config: DiTConfig, sequence: SequenceLength) -> float:
    """Counts the embeddings of patches and text; that of patches is applied to the whole sequence."""
    return 2 * config.embed_dim * (sequence.total * config.patch_dim + sequence.text * config.text_dim)


def _embed_cond(config: DiTConfig) -> float:
    """Counts the embeddings that make the conditioning vector."""
    count = 1 + config.embed_num_frames + config.embed_noise_augmentation_timestep + config.embed_interval
    return 2 * count * (config.embed_dim * config.cond_dim + config.cond_dim**2)


def _head(config: DiTConfig, sequence: SequenceLength) -> float:
    return 2 * config.embed_dim * (sequence.total * config.patch_dim + 2 * config.cond_dim)


# --- the VAE ---


def vae_encode(config: VAEConfig, frames: int, height: int, width: int, *, first: bool) -> Flops:
    """Counts the encoding of a chunk of one clip.

    Args:
      config: of the VAE.
      frames, height, width: of the chunk, in pixels.
      first: whether it is the first chunk of the clip.
    """
    return Flops(vae=sum(_encoder(config, frames, height, width, first)))


def vae_decode(config: VAEConfig, frames: int, height: int, width: int, *, first: bool) -> Flops:
    """Counts the decoding of a chunk of one clip.

    Args:
      config: of the VAE.
      frames, height, width: of the latents.
      first: whether it is the first chunk of the clip.
    """
    return Flops(vae=sum(_decoder(config, frames, height, width, first)))


def _encoder(config: VAEConfig, f: int, h: int, w: int, first: bool) -> Iterator[float]:
    widths = config.widths
    yield _conv3d(f, h, w, 3, widths[0], first)
    for level, width in enumerate(widths):
        inputs = [widths[max(level - 1, 0)]] + [width] * (config.num_res_blocks - 1)
        yield from (_res_block(f, h, w, channels, width, first) for channels in inputs)
        if level < len(widths) - 1:
            f = f // 2 + f % 2 if level < config.temporal_levels else f
            h, w = h // 2, w // 2
            yield 2 * f * (3 * h - 1) * (3 * w - 1) * width**2
    yield from (_res_block(f, h, w, widths[-1], widths[-1], first) for _ in range(2))
    yield _conv3d(f, h, w, widths[-1], 2 * config.latent_channels, first)


def _decoder(config: VAEConfig, f: int, h: int, w: int, first: bool) -> Iterator[float]:
    widths = config.widths[::-1]
    norm = 4 * config.latent_channels * f * h * w  # per channel: scale and offset, computed from the latents
    yield _conv3d(f, h, w, config.latent_channels, widths[0], first)
    for _ in range(2):
        yield _res_block(f, h, w, widths[0], widths[0], first) + norm * 2 * widths[0]
    for level, width in enumerate(widths):
        inputs = [widths[max(level - 1, 0)]] + [width] * config.num_res_blocks
        for channels in inputs:
            yield _res_block(f, h, w, channels, width, first) + norm * (channels + width)
        if level < len(widths) - 1:
            f = 2 * f - f % 2 if level < config.temporal_levels and f > 1 else f
            h, w = 2 * h, 2 * w
            yield 2 * f * _taps(h) * _taps(w) * width**2
    yield norm * widths[-1] + _conv3d(f, h, w, widths[-1], 3, first)


def _res_block(f: int, h: int, w: int, inputs: int, outputs: int, first: bool) -> float:
    shortcut = 2 * f * h * w * inputs * outputs if inputs != outputs else 0
    return _conv3d(f, h, w, inputs, outputs, first) + _conv3d(f, h, w, outputs, outputs, first) + shortcut


def _conv3d(f: int, h: int, w: int, inputs: int, outputs: int, first: bool) -> float:
    in_time = 1 if first and f == 1 else 3  # of a single frame all three taps are the same frame
    return 2 * in_time * f * _taps(h) * _taps(w) * inputs * outputs


def _taps(size: int) -> int:
    """Counts the taps of a kernel of width 3 over all positions of a side, without those on zero padding."""
    return 3 * size - 2


# --- T5 ---


def t5_forward(config: T5Config, tokens: int) -> Flops:
    """Counts the encoding of one text of `tokens` tokens."""
    heads = config.num_heads * config.head_dim
    linear = 2 * tokens * config.embed_dim * (4 * heads + 3 * config.mlp_dim)
    return Flops(4 * tokens**2 * heads, linear, exponentials=tokens**2 * config.num_heads) * config.num_layers
