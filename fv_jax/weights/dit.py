"""The official DiT checkpoints (stage1.pt, stage2.pt) as our DiT: sizes from shapes, and the table (FACTS 3).

Official linears are (out, in); packed outputs (q | k | v, the twelve modulations, shift | scale) are rows one after
the other, which become the middle dimension of our kernels.
"""

from flax import nnx

from fv_jax.models.dit import STAGE2, DiT, DiTConfig
from fv_jax.weights import keymap
from fv_jax.weights.keymap import Row, Tensors, affine, norm

PREFIX = 'model.diffusion_model.'
MIXINS = f'{PREFIX}mixins.'
LAYER = f'{PREFIX}transformer.layers.{{i}}.'
MODULATIONS = f'{MIXINS}adaln_layer.adaLN_modulations.{{i}}.1'
Q_NORM = f'{MIXINS}adaln_layer.query_layernorm_list.{{i}}'
K_NORM = f'{MIXINS}adaln_layer.key_layernorm_list.{{i}}'
FRAMES_EMBED = f'{PREFIX}time_size_embedding'
SOURCE_EMBED = f'{PREFIX}ref_step_time_embedding'


def is_dit(tensors: Tensors) -> bool:
    """Whether these are a DiT's keys."""
    return any(key.startswith(PREFIX) for key in tensors)


def infer_config(tensors: Tensors) -> DiTConfig:
    """Every size from the tensors' shapes, the extra embeddings from their keys."""

    def size(default: int, *candidates: tuple[str, int]) -> int:
        return keymap.common_size(tensors, [(key.replace('{i}', '*'), dim) for key, dim in candidates], default)

    proj = f'{MIXINS}patch_embed.proj.weight'
    embed_dim = size(
        STAGE2.embed_dim,
        (f'{MIXINS}patch_embed.proj.bias', 0),
        (f'{PREFIX}transformer.final_layernorm.weight', 0),
        (f'{LAYER}input_layernorm.weight', 0),
        (f'{LAYER}post_attention_layernorm.weight', 0),
        (f'{LAYER}mlp.dense_4h_to_h.bias', 0),
    )
    head_dim = size(STAGE2.head_dim, *((f'{x}.{y}', 0) for x in (Q_NORM, K_NORM) for y in ('weight', 'bias')))
    counted = (
        f'{MODULATIONS}.weight',
        f'{Q_NORM}.weight',
        f'{LAYER}input_layernorm.weight',
        f'{LAYER}mlp.dense_h_to_4h.bias',
    )
    return DiTConfig(
        latent_channels=size(STAGE2.latent_channels, (proj, 1)),
        patch_size=size(STAGE2.patch_size, (proj, 2), (proj, 3)),
        embed_dim=embed_dim,
        num_layers=keymap.common_count(tensors, counted, STAGE2.num_layers),
        num_heads=embed_dim // head_dim,
        mlp_dim=size(
            STAGE2.mlp_dim,
            (f'{LAYER}mlp.dense_h_to_4h.bias', 0),
            (f'{LAYER}mlp.dense_h_to_4h.weight', 0),
            (f'{LAYER}mlp.dense_4h_to_h.weight', 1),
        ),
        cond_dim=size(
            STAGE2.cond_dim,
            (f'{PREFIX}time_embed.0.bias', 0),
            (f'{PREFIX}time_embed.2.bias', 0),
            (f'{MODULATIONS}.weight', 1),
        ),
        text_dim=size(STAGE2.text_dim, (f'{MIXINS}patch_embed.text_proj.weight', 1)),
        embed_num_frames=any(key.startswith(FRAMES_EMBED) for key in tensors),
        embed_source_timestep=any(key.startswith(SOURCE_EMBED) for key in tensors),
    )


def table(config: DiTConfig) -> list[Row]:
    """Every parameter of a DiT of this `config`, and the official tensors it is made of."""
    dim, cond, inner, head = config.embed_dim, config.cond_dim, config.mlp_dim, config.head_dim
    patch = (config.latent_channels, config.patch_size, config.patch_size)

    def mlp(official: str, ours: str) -> list[Row]:
        return affine(f'{official}.0', f'{ours}.hidden', (cond, dim)) + affine(
            f'{official}.2', f'{ours}.out', (cond, cond)
        )

    rows = [
        *affine(f'{MIXINS}patch_embed.proj', 'patch_embed', (dim, *patch)),
        *affine(f'{MIXINS}patch_embed.text_proj', 'text_embed', (dim, config.text_dim)),
        *mlp(f'{PREFIX}time_embed', 'time_embed'),
        *affine(MODULATIONS, 'blocks.modulation', (12 * dim, cond)),
        *norm(f'{LAYER}input_layernorm', 'blocks.attention_norm', dim),
        *affine(f'{LAYER}attention.query_key_value', 'blocks.attention.qkv', (3 * dim, dim)),
        *norm(Q_NORM, 'blocks.attention.q_norm', head),
        *norm(K_NORM, 'blocks.attention.k_norm', head),
        *affine(f'{LAYER}attention.dense', 'blocks.attention.out', (dim, dim)),
        *norm(f'{LAYER}post_attention_layernorm', 'blocks.mlp_norm', dim),
        *affine(f'{LAYER}mlp.dense_h_to_4h', 'blocks.mlp.hidden', (inner, dim)),
        *affine(f'{LAYER}mlp.dense_4h_to_h', 'blocks.mlp.out', (dim, inner)),
        *norm(f'{PREFIX}transformer.final_layernorm', 'final_norm', dim),
        *norm(f'{MIXINS}final_layer.norm_final', 'output.norm', dim),
        *affine(f'{MIXINS}final_layer.adaLN_modulation.1', 'output.modulation', (2 * dim, cond)),
        *affine(f'{MIXINS}final_layer.linear', 'output.out', (config.patch_dim, dim)),
    ]
    if config.embed_num_frames:
        rows += mlp(FRAMES_EMBED, 'frames_embed')
    if config.embed_source_timestep:
        rows += mlp(SOURCE_EMBED, 'source_embed')
    return rows


def load(name: str, tensors: Tensors) -> DiT:
    """The DiT of an official checkpoint's tensors, in float32. `name` is the file's, for messages."""
    config = infer_config(tensors)
    return keymap.load(name, tensors, table(config), config.num_layers, lambda: DiT(config, rngs=nnx.Rngs(0)))
