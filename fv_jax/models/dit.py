"""The diffusion transformer of both stages: joint attention over text and video tokens (model guide 1).

DiT is arXiv:2212.09748; a modulation for text and one for video are CogVideoX's, arXiv:2408.06072.

    e    = time(sinusoid(timestep)) [+ frames(sinusoid(F))
           + source(sinusoid(noise-augmentation timestep))]                                        model guide 1.1
           [+ interval(sinusoid(timestep of t - timestep of r))], not official
    h    = [text W_t + b_t | patches W_p + b_p]                                                     model guide 1.2
    h    = h + gate_a attention(modulate_a(norm1 h));  h = h + gate_m mlp(modulate_m(norm2 h))      model guide 1.3
    out  = unpatchify(W (modulate(norm(final_norm(h video)))))                                      model guide 1.6

Text and video tokens share every weight of a block and have modulations of their own. The network maps
`(x, timestep, text)` to a tensor shaped like `x`; its stage determines whether that is a velocity or v.

Blocks are stacked along a leading axis `layers` and run by `jax.lax.scan`. `embed_cond`, `embed_tokens`,
`run_blocks` and `head` are the parts of `__call__`.

Dimensions: B batch, F latent frames, H W latent height and width, C latent channels, L text tokens, S video tokens,
M = L + S joint tokens (text first; padding last, where `context` pads the sequence), D width, E conditioning width, T
text width, N heads, K head size.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from fv_jax.core import axes
from fv_jax.core.array_typing import Array, Float, Int, typed
from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError, check_choice, check_range
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.models.layers import (
    MLP,
    DtypeName,
    Dtypes,
    LayerNorm,
    Linear,
    Modulation,
    gelu_tanh,
    modulate,
    sinusoid,
    stack_layers,
    zeros,
)
from fv_jax.models.lora import LoRAConfig, Target
from fv_jax.models.patch import patch_grid, patchify, unpatchify
from fv_jax.models.remat import BLOCK_INPUT, Remat, apply_remat
from fv_jax.models.rope import Rope, apply_rope, rope_axis_dims, rope_table
from fv_jax.models.sequence import SequenceLayout, TokenInfo

# Official constants (model guide 1.3, 1.4, 1.6). They differ, and the output shows which one was used.
BLOCK_NORM_EPS = 1e-5
FINAL_NORM_EPS = 1e-5
QK_NORM_EPS = 1e-6
HEAD_NORM_EPS = 1e-6

RESIDUAL = (axes.ACT_BATCH, axes.ACT_TOKENS, axes.ACT_EMBED)


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Sizes and numerics of a DiT. The defaults are the official stage 2.

    Attributes:
      patch_size: side of a patch in latent pixels; patches do not extend over time.
      embed_dim, mlp_dim, cond_dim, text_dim: widths of tokens, of an MLP's hidden layer, of the conditioning vector and
        of the text encoder's embeddings.
      num_heads: the head size is embed_dim / num_heads, a multiple of 16.
      embed_num_frames, embed_noise_augmentation_timestep: whether to add these embeddings, as stage 2 does.
      embed_interval: whether to add the embedding of the length of an interval, as flow maps do; always float32.
      dtype: computation dtype; norms, softmax, rotary positions and sinusoids stay float32.
      param_dtype: dtype that parameters are stored in.
      remat: what the backward pass recomputes. 'none'; 'dots': all but the outputs of linears and attention, which on a
        CPU also takes less time; 'full': all but the output of attention; 'offload': the same, with the inputs of
        blocks in the host's memory. On a GPU attention in float32 is recomputed by all but 'none'. 'auto': the first of
        'none', 'dots' and 'full' that fits, chosen at the start of a run (`planning/fitting`).
      lora: low-rank additions to the blocks' linears, always float32 (`models/lora.py`).
      local_attention_init: b, the initial bias of queries and keys. The rotation turns it into the logit
        (b^2 / sqrt(K)) sum over channels of cos(difference of angles), largest between a token and itself: attention
        starts as a local average (at b = 2 and K = 64 the next token in a row weighs 0.55 of the token itself). Text
        tokens have no angles, so that distant video tokens attend less to them at first. 0 is DiT's initialization.
    """

    latent_channels: int = 16
    patch_size: int = 2
    embed_dim: int = 1920
    num_layers: int = 30
    num_heads: int = 30
    mlp_dim: int = 7680
    cond_dim: int = 512
    text_dim: int = 4096
    embed_num_frames: bool = True
    embed_noise_augmentation_timestep: bool = True
    embed_interval: bool = False
    dtype: DtypeName = 'float32'
    param_dtype: DtypeName = 'float32'
    remat: Remat = 'dots'
    lora: LoRAConfig | None = None
    local_attention_init: float = 0.0

    def __post_init__(self):
        check_range(self, *(field.name for field in dataclasses.fields(self) if field.type is int), low=1)
        check_range(self, 'local_attention_init', low=0)
        dim, heads = f'embed_dim={self.embed_dim}', f'num_heads={self.num_heads}'
        require(self.embed_dim % self.num_heads == 0, f'{dim}: not a multiple of {heads}', ConfigError)
        wrong = f'{dim}: must be even, the sinusoids are half cosine, half sine'
        require(self.embed_dim % 2 == 0, wrong, ConfigError)
        try:
            rope_axis_dims(self.head_dim)
        except ValueError as error:
            raise ConfigError(f'{heads}: {error} ({dim})') from None
        check_choice(self, 'dtype', 'param_dtype', choices=DtypeName.__args__)
        check_choice(self, 'remat', choices=Remat.__args__)

    @property
    def head_dim(self) -> int:
        """K, the size of an attention head."""
        return self.embed_dim // self.num_heads

    @property
    def patch_dim(self) -> int:
        """The number of features of a patch."""
        return self.latent_channels * self.patch_size**2

    def lora_on(self, target: Target) -> LoRAConfig | None:
        """Returns the LoRA configuration for these linears of every block, or None where they have no LoRA."""
        return self.lora if self.lora is not None and target in self.lora.targets else None


STAGE2 = DiTConfig()
STAGE1 = DiTConfig(
    embed_dim=3072,
    num_layers=42,
    num_heads=48,
    mlp_dim=12288,
    embed_num_frames=False,
    embed_noise_augmentation_timestep=False,
)


class JointAttention(nnx.Module):
    """Self-attention over all tokens, with normalized and rotated queries and keys (model guide 1.4)."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        dtypes = Dtypes(config.dtype, config.param_dtype)
        dim, self.heads = config.embed_dim, (config.num_heads, config.head_dim)
        self.qkv = Linear(
            dim,
            (3, dim),
            (axes.EMBED, None, axes.HEADS),
            dtypes=dtypes,
            rngs=rngs,
            lora=config.lora_on('qkv'),
            lora_parts=3,
        )
        self.q_norm = LayerNorm(config.head_dim, eps=QK_NORM_EPS, dtypes=dtypes, bias=config.local_attention_init)
        self.k_norm = LayerNorm(config.head_dim, eps=QK_NORM_EPS, dtypes=dtypes, bias=config.local_attention_init)
        lora = config.lora_on('attention_out')
        self.out = Linear(dim, dim, (axes.HEADS, axes.EMBED), dtypes=dtypes, rngs=rngs, lora=lora)

    def __call__(self, x_BMD: jax.Array, tokens: TokenInfo, context: ParallelContext) -> jax.Array:
        qkv_BM3D = self.qkv(x_BMD)
        q, k, v = (qkv_BM3D[:, :, i].reshape(*x_BMD.shape[:2], *self.heads) for i in range(3))
        q = apply_rope(self.q_norm(q), tokens.rope).astype(v.dtype)
        k = apply_rope(self.k_norm(k), tokens.rope).astype(v.dtype)
        placed = (axes.ACT_BATCH, axes.ACT_TOKENS, axes.ACT_HEADS, None)
        o_BMNK = context.attention(*(context.constrain(y, placed) for y in (q, k, v)), tokens.count)
        return self.out(o_BMNK.reshape(x_BMD.shape))


class Block(nnx.Module):
    """A transformer block: attention and MLP, each between a modulated norm and a gate (model guide 1.3)."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        dtypes = Dtypes(config.dtype, config.param_dtype)
        dim, inner = config.embed_dim, config.mlp_dim
        # Twelve vectors: (video, text) x (attention, mlp) x (shift, scale, gate). Zeros make a new block the identity.
        self.modulation = Linear(
            config.cond_dim,
            (12, dim),
            (axes.COND, None, axes.MODULATION),
            dtypes=dtypes,
            rngs=rngs,
            kernel_init=zeros,
            lora=config.lora_on('modulation'),
        )
        self.attention_norm = LayerNorm(dim, eps=BLOCK_NORM_EPS, dtypes=dtypes)
        self.attention = JointAttention(config, rngs=rngs)
        self.mlp_norm = LayerNorm(dim, eps=BLOCK_NORM_EPS, dtypes=dtypes)
        kernel_axes = ((axes.EMBED, axes.MLP), (axes.MLP, axes.EMBED))
        lora = config.lora_on('mlp')
        self.mlp = MLP((dim, inner, dim), kernel_axes, gelu_tanh, dtypes=dtypes, rngs=rngs, lora=lora)

    def __call__(self, h_BMD: jax.Array, emb_BE: jax.Array, tokens: TokenInfo, context: ParallelContext) -> jax.Array:
        attention, mlp = self.modulations(emb_BE, tokens)

        x = modulate(self.attention_norm(h_BMD), attention.shift, attention.scale)
        o = self.attention(x, tokens, context)
        h_BMD = context.constrain(h_BMD + (attention.gate * o).astype(h_BMD.dtype), RESIDUAL)

        x = modulate(self.mlp_norm(h_BMD), mlp.shift, mlp.scale)
        o = self.mlp(x, lambda y: context.constrain(y, (axes.ACT_BATCH, axes.ACT_TOKENS, axes.ACT_MLP)))
        return context.constrain(h_BMD + (mlp.gate * o).astype(h_BMD.dtype), RESIDUAL)

    def modulations(self, emb_BE: jax.Array, tokens: TokenInfo) -> tuple[Modulation, Modulation]:
        """Computes the modulations of attention and of the MLP, each part broadcastable to (B, M, D)."""
        m_B12D = self.modulation(jax.nn.silu(emb_BE))
        video, text = m_B12D[:, :6, None], m_B12D[:, 6:, None]
        # Selected per token: slicing and concatenating the sequence would reshard it, for the token axis may be sharded
        # at any position.
        each = [jnp.where(tokens.is_text_1M1, text[:, i], video[:, i]) for i in range(6)]
        return Modulation(*each[:3]), Modulation(*each[3:])


class Head(nnx.Module):
    """The output head: norm, modulation and projection to patch features (model guide 1.6)."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        dtypes = Dtypes(config.dtype, config.param_dtype)
        dim = config.embed_dim
        self.norm = LayerNorm(dim, eps=HEAD_NORM_EPS, dtypes=dtypes)
        self.modulation = Linear(
            config.cond_dim, (2, dim), (axes.COND, None, axes.MODULATION), dtypes=dtypes, rngs=rngs, kernel_init=zeros
        )
        self.out = Linear(dim, config.patch_dim, (axes.EMBED, axes.PATCH), dtypes=dtypes, rngs=rngs, kernel_init=zeros)

    def __call__(self, h_BMD: jax.Array, emb_BE: jax.Array) -> jax.Array:
        m_B2D = self.modulation(jax.nn.silu(emb_BE))
        return self.out(modulate(self.norm(h_BMD), shift=m_B2D[:, 0, None], scale=m_B2D[:, 1, None]))


class DiT(nnx.Module):
    """The diffusion transformer of both stages; `config` says which extra embeddings it has.

    A new network is the zero function (adaLN-zero): gates, final projection and the extra embeddings' last linears
    are initialized with zeros. Only the last linear of each MLP is: an MLP of zeros passes no gradient to its first.
    """

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        dtypes = Dtypes(config.dtype, config.param_dtype)
        dim, cond = config.embed_dim, config.cond_dim
        self.config = config
        self.patch_embed = Linear(config.patch_dim, dim, (axes.PATCH, axes.EMBED), dtypes=dtypes, rngs=rngs)
        self.text_embed = Linear(config.text_dim, dim, (axes.TEXT, axes.EMBED), dtypes=dtypes, rngs=rngs)
        sizes, kernel_axes = (dim, cond, cond), ((axes.EMBED, axes.COND), (None, axes.COND))
        self.time_embed = MLP(sizes, kernel_axes, jax.nn.silu, dtypes=dtypes, rngs=rngs)
        if config.embed_num_frames:
            self.frames_embed = MLP(sizes, kernel_axes, jax.nn.silu, dtypes=dtypes, rngs=rngs, out_init=zeros)
        if config.embed_noise_augmentation_timestep:
            self.source_embed = MLP(sizes, kernel_axes, jax.nn.silu, dtypes=dtypes, rngs=rngs, out_init=zeros)
        if config.embed_interval:
            # float32, as LoRA: it is trained beside frozen parameters.
            float32 = Dtypes(config.dtype, 'float32')
            self.interval_embed = MLP(sizes, kernel_axes, jax.nn.silu, dtypes=float32, rngs=rngs, out_init=zeros)
        self.blocks = stack_layers(lambda rngs: Block(config, rngs=rngs), config.num_layers, rngs=rngs)
        self.final_norm = LayerNorm(dim, eps=FINAL_NORM_EPS, dtypes=dtypes)
        self.output = Head(config, rngs=rngs)

    @typed
    def __call__(
        self,
        x_BFHWC: Float[Array, 'b f h w c'],
        timestep_B: Float[Array, ' b'] | Int[Array, ' b'],
        text_BLD: Float[Array, 'b l t'],
        noise_augmentation_timestep_B: Float[Array, ' b'] | Int[Array, ' b'] | None = None,
        interval_B: Float[Array, ' b'] | None = None,
        *,
        context: ParallelContext = SINGLE_DEVICE,
    ) -> Float[Array, 'b f h w c']:
        """Predicts a tensor shaped like the latents, in the computation dtype.

        Args:
          x_BFHWC: latents, multiplied by the stage's scale factor; height and width multiples of the patch.
          timestep_B: 1000 t, one per example: 1000 at the source, 0 at the data.
          text_BLD: the text encoder's output; every token is attended to.
          noise_augmentation_timestep_B: index 0 ... 999 into the noise schedule, the level to which the source was
            noised. Required by a network with `embed_noise_augmentation_timestep` and refused by every other.
          interval_B: 1000 (t - r). Required by a network with `embed_interval` and refused by every other.
          context: the parallel context: sharding constraints, attention and padding of the sequence.

        Raises:
          ValueError: sizes that do not fit the configuration, or an input that is missing or not accepted.
        """
        self._check(x_BFHWC, text_BLD)
        layout = SequenceLayout.from_grid(text_BLD.shape[1], patch_grid(x_BFHWC.shape, self.config.patch_size), context)
        emb_BE = self.embed_cond(timestep_B, layout.grid[0], noise_augmentation_timestep_B, interval_B)
        h_BMD = self.embed_tokens(x_BFHWC, text_BLD, layout, context=context)
        h_BMD = self.run_blocks(h_BMD, emb_BE, layout, context=context)
        return self.head(h_BMD, emb_BE, layout, context=context)

    def embed_cond(
        self,
        timestep_B: jax.Array,
        num_frames: int,
        noise_augmentation_timestep_B: jax.Array | None = None,
        interval_B: jax.Array | None = None,
    ) -> Float[Array, 'b e']:
        """Computes the conditioning vector (model guide 1.1); `num_frames` counts LATENT frames.

        Raises:
          ValueError: an input is missing or not accepted.
        """
        config = self.config
        _check_input('noise_augmentation_timestep', config, noise_augmentation_timestep_B, 'an index from 0 to 999')
        _check_input('interval', config, interval_B, '1000 (t - r)')
        emb_BE = self.time_embed(self._sinusoid(timestep_B))
        if config.embed_num_frames:
            emb_BE += self.frames_embed(self._sinusoid(jnp.full(timestep_B.shape, num_frames)))
        if config.embed_noise_augmentation_timestep:
            emb_BE += self.source_embed(self._sinusoid(noise_augmentation_timestep_B))
        if config.embed_interval:
            emb_BE += self.interval_embed(self._sinusoid(interval_B))
        return emb_BE

    def embed_tokens(
        self,
        x_BFHWC: Float[Array, 'b f h w c'],
        text_BLD: Float[Array, 'b l t'],
        layout: SequenceLayout,
        *,
        context: ParallelContext = SINGLE_DEVICE,
    ) -> Float[Array, 'b m d']:
        """Builds the joint sequence: text tokens, then patches (model guide 1.2), then padding."""
        # Each part is padded to the joint length and then selected from: concatenating them would reshard the sequence.
        num_text, after_text = layout.num_text, layout.length - layout.num_text
        patches_BSP = patchify(x_BFHWC, self.config.patch_size)
        patches_BMP = jnp.pad(patches_BSP, ((0, 0), (num_text, layout.num_padding), (0, 0)))
        video_BMD = self.patch_embed(context.constrain(patches_BMP, (axes.ACT_BATCH, axes.ACT_TOKENS, None)))
        text_BMD = jnp.pad(self.text_embed(text_BLD), ((0, 0), (0, after_text), (0, 0)))
        text_BMD, video_BMD = (context.constrain(h, RESIDUAL) for h in (text_BMD, video_BMD))
        return jnp.where(layout.is_text, text_BMD, video_BMD)

    def run_blocks(
        self,
        h_BMD: Float[Array, 'b m d'],
        emb_BE: Float[Array, 'b e'],
        layout: SequenceLayout,
        *,
        context: ParallelContext = SINGLE_DEVICE,
    ) -> Float[Array, 'b m d']:
        """Applies all blocks, one after the other, by a scan over the stacked parameters."""
        tokens = self._tokens(layout, context)
        # Not nnx.scan, which cannot be nested in another loop or in jax.checkpoint.
        graphdef, stacked = nnx.split(self.blocks)

        def body(h_BMD: jax.Array, layer: nnx.State) -> tuple[jax.Array, None]:
            h_BMD = checkpoint_name(h_BMD, BLOCK_INPUT)
            return nnx.merge(graphdef, layer)(h_BMD, emb_BE, tokens, context), None

        h_BMD, _ = jax.lax.scan(apply_remat(body, self.config.remat), h_BMD, stacked)
        return h_BMD

    def head(
        self,
        h_BMD: Float[Array, 'b m d'],
        emb_BE: Float[Array, 'b e'],
        layout: SequenceLayout,
        *,
        context: ParallelContext = SINGLE_DEVICE,
    ) -> Float[Array, 'b f h w c']:
        """Applies the final norm, projects the video tokens and reassembles latents (model guide 1.6)."""
        # All tokens are projected before the video's are sliced out: the token axis may be sharded, and what a slice
        # then moves between devices is 30 times narrower.
        patches_BMP = self.output(self.final_norm(h_BMD), emb_BE)
        patches_BMP = context.constrain(patches_BMP, (axes.ACT_BATCH, axes.ACT_TOKENS, None))
        patches_BSP = patches_BMP[:, layout.num_text : layout.num_tokens]
        return unpatchify(patches_BSP, layout.grid, self.config.patch_size)

    def _sinusoid(self, values_B: jax.Array) -> jax.Array:
        return sinusoid(values_B.astype(jnp.float32), self.config.embed_dim)

    def _tokens(self, layout: SequenceLayout, context: ParallelContext) -> TokenInfo:
        rope = rope_table(*layout.grid, self.config.head_dim, layout.num_text, layout.num_padding)
        rope = Rope(*(context.constrain(table, (axes.ACT_TOKENS, None)) for table in rope))
        return TokenInfo(layout.is_text, rope, layout.num_tokens)

    def _check(self, x_BFHWC: jax.Array, text_BLD: jax.Array) -> None:
        if x_BFHWC.shape[-1] != self.config.latent_channels:
            raise ValueError(
                f'latents have {x_BFHWC.shape[-1]} channels and the network has latent_channels='
                f'{self.config.latent_channels}; channels come last (BFHWC)'
            )
        if text_BLD.shape[-1] != self.config.text_dim:
            raise ValueError(f'text is {text_BLD.shape[-1]} wide and the network has text_dim={self.config.text_dim}')


def _check_input(name: str, config: DiTConfig, given: jax.Array | None, meaning: str) -> None:
    embeds = getattr(config, f'embed_{name}')
    require(not embeds or given is not None, f'this network embeds {name}: pass it, {meaning}')
    require(embeds or given is None, f'{name} was given, but this network has embed_{name}=False: remove it')
