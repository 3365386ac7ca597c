"""Arithmetic by formula: what a network's multiplications cost, wherever and however they are run.

A multiplication and its addition are two. With M tokens of width D, N heads of size K (N K = D), an MLP of width I and
E numbers of conditioning, one row's pass through a block of the DiT takes

    linear     8 M D^2 + 4 M D I + 24 E D                (1)   q k v and out; the MLP; the twelve modulations
    attention  4 M^2 D                                   (2)

and a 3x3x3 convolution of C to C' channels 2 * 27 C C' for every output but those at the rim, whose zeros are not
counted. Norms, activations and samplers' sums are left out.

Backwards everything costs twice the forward pass, once for the inputs and once for the weights; frozen weights (LoRA)
cost once. What rematerialisation and kernels compute again is `recomputed`, and no part of a model's own FLOPs.
"""

import dataclasses
from collections.abc import Iterator

from fv_jax.models.dit import DiTConfig
from fv_jax.models.t5 import T5Config
from fv_jax.models.vae import VAEConfig

# Products of M x M x K in one pass of flash attention: forwards q k and w v. Backwards, where keys' and queries'
# gradients are two kernels, q k and do v twice each, and w do, ds q, ds k.
FORWARD_PRODUCTS, BACKWARD_PRODUCTS = 2, 7
MODEL_BACKWARD_PRODUCTS = 4  # of the formula itself, which recomputes no logits


@dataclasses.dataclass(frozen=True)
class Flops:
    """attention: (2), where the head size bounds the rate. linear: other matrix products. vae: convolutions."""

    attention: float = 0.0
    linear: float = 0.0
    vae: float = 0.0

    @property
    def total(self) -> float:
        return self.attention + self.linear + self.vae

    def __add__(self, other: 'Flops') -> 'Flops':
        return Flops(self.attention + other.attention, self.linear + other.linear, self.vae + other.vae)

    def __mul__(self, times: float) -> 'Flops':
        return Flops(times * self.attention, times * self.linear, times * self.vae)


@dataclasses.dataclass(frozen=True)
class Sequence:
    """A row's tokens."""

    text: int
    video: int

    @property
    def tokens(self) -> int:
        return self.text + self.video


# --- the DiT ---


def dit_forward(config: DiTConfig, row: Sequence) -> Flops:
    """One row, one pass."""
    return dit_blocks(config, row) + Flops(linear=_inputs(config, row) + _embeddings(config) + _head(config, row))


def dit_blocks(config: DiTConfig, row: Sequence) -> Flops:
    """All blocks of one row, one pass, with their LoRA."""
    linear = _token_linears(config, row.tokens) + _modulation(config) + _lora(config, row.tokens)
    return Flops(4 * row.tokens**2 * config.embed_dim, linear) * config.num_layers


def dit_training(config: DiTConfig, row: Sequence) -> Flops:
    """One row, forwards and backwards."""
    forward = dit_forward(config, row)
    backward = 2 * forward.attention, 2 * forward.linear - _inputs(config, row)  # what goes in has no gradient
    if config.lora is not None:
        # Through frozen weights once; what does not depend on LoRA has no gradient at all.
        frozen = _token_linears(config, row.tokens) * config.num_layers + 2 * row.tokens * config.embed_dim * (
            config.patch_dim
        )
        backward = backward[0], frozen + 2 * _lora(config, row.tokens) * config.num_layers
    return forward + Flops(*backward)


def recomputed(config: DiTConfig, row: Sequence) -> Flops:
    """What training computes besides: what `remat` does not keep, and the attention kernel's own logits."""
    blocks = dit_blocks(config, row)
    products = BACKWARD_PRODUCTS - MODEL_BACKWARD_PRODUCTS
    again = Flops(attention=blocks.attention * products / FORWARD_PRODUCTS)
    if config.remat in ('full', 'offload'):
        return again + blocks
    if config.remat == 'dots':
        # Attention's output is kept, but not what its kernel's backward pass needs besides.
        return again + Flops(attention=blocks.attention)
    return again


def _token_linears(config: DiTConfig, tokens: int) -> float:
    return tokens * (8 * config.embed_dim**2 + 4 * config.embed_dim * config.mlp_dim)


def _modulation(config: DiTConfig) -> float:
    return 2 * config.cond_dim * 12 * config.embed_dim


def _lora(config: DiTConfig, tokens: int) -> float:
    """x A B of every linear of a block that has one."""
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


def _inputs(config: DiTConfig, row: Sequence) -> float:
    """Patches and text to tokens; the patches' map runs over the whole sequence."""
    return 2 * config.embed_dim * (row.tokens * config.patch_dim + row.text * config.text_dim)


def _embeddings(config: DiTConfig) -> float:
    """The conditioning vector."""
    count = 1 + config.embed_num_frames + config.embed_noise_augmentation_timestep
    return 2 * count * (config.embed_dim * config.cond_dim + config.cond_dim**2)


def _head(config: DiTConfig, row: Sequence) -> float:
    return 2 * config.embed_dim * (row.tokens * config.patch_dim + 2 * config.cond_dim)


# --- the VAE ---


def vae_encode(config: VAEConfig, frames: int, height: int, width: int, *, first: bool) -> Flops:
    """One chunk of one clip; height and width of the video. first: of a clip."""
    return Flops(vae=sum(_encoder(config, frames, height, width, first)))


def vae_decode(config: VAEConfig, frames: int, height: int, width: int, *, first: bool) -> Flops:
    """One chunk of one clip; frames, height and width of the latents."""
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
    norm = 4 * config.latent_channels * f * h * w  # of a channel: its scale and its offset, read from the latents
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
    in_time = 1 if first and f == 1 else 3  # every tap in time sees a single picture: one is enough
    return 2 * in_time * f * _taps(h) * _taps(w) * inputs * outputs


def _taps(size: int) -> int:
    """Of a kernel of three, over all positions of a side, without those on its zero padding."""
    return 3 * size - 2


# --- T5 ---


def t5_forward(config: T5Config, tokens: int) -> Flops:
    """One text."""
    heads = config.num_heads * config.head_dim
    linear = 2 * tokens * config.embed_dim * (4 * heads + 3 * config.mlp_dim)
    return Flops(4 * tokens**2 * heads, linear) * config.num_layers
