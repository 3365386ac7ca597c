"""Stage 1: text to the latents of a low-resolution preview, by v-prediction.

    python -m fv_jax.train --config=configs/stage1.py --workdir=runs/stage1

The real run: the official stage1.pt is fine-tuned by LoRA of rank 128 on qkv, attention output and modulation, with its
own weights frozen in bfloat16; 49 frames at 256x480, shards of clips from `python -m fv_jax.prepare` with embeddings
of their captions (`--config.text.encoder=t5-v1_1-xxl` there; training does not need the folder), and the official
3d-vae.pt (`--config.data.train`, `--config.data.heldout`, `--config.stage.vae`). `--config.init_from` names other
weights to start from, or none. It needs a TPU or GPU slice; eight v5e chips suffice. Latents that are encoded once,
`--config.data.cache="{'num_degraded_variants': 0, 'crop': None}"`, save a seventh of the time of a step there
(`python -m fv_jax.plan --config=stage1 --topology=v5e-8`).

    :full_ft  the same without LoRA: all 5.6 billion parameters are trained, in float32
    :tiny     small, trained from scratch on captioned sprites that move (previews of 17 frames at 128x192)
    :smoke    seconds: synthetic clips, four steps

The small stage 1 in the package is `:tiny`; configs/README.md has its commands, times and figures.
"""

from ml_collections import ConfigDict

from configs.common import CLEAN, MOVING, join_filters, official_loop, official_optim, parse_variant, text_encoder


def get_config(variant: str = '') -> ConfigDict:
    """Builds the configuration of a variant; its fields are those of `fv_jax.train.TrainConfig`."""
    name, _ = parse_variant(variant, ('smoke', 'tiny', 'full_ft'))
    config = ConfigDict(
        {
            'stage': {
                'kind': 'lowres',
                'vae': '3d-vae.pt',
                'vae_dtype': 'bfloat16',
                'text': text_encoder('t5-v1_1-xxl'),
                'network': _network(),
                'options': _options(),
            },
            'data': _data(),
            'optim': official_optim(learning_rate=1e-4),
            'loop': official_loop(),
            'parallel': {'data': 1, 'fsdp': -1},  # clips over all chips, and a share of the weights on each
            'seed': 0,
            'init_from': 'stage1.pt',
        }
    )
    if name == 'full_ft':
        config.stage.network.lora = None
        config.stage.network.param_dtype = 'float32'
        config.optim.learning_rate = 1e-5
    if name in ('tiny', 'smoke'):
        _small(config)
    if name == 'smoke':
        config.stage.network.update(embed_dim=64, num_heads=2, num_layers=2, mlp_dim=128, text_dim=32)
        config.stage.options.update(text_length=4, num_steps=3)
        config.stage.text.update(length=4, dim=32)
        config.data.update(train='synthetic', heldout='synthetic', frames=9, height=32, width=48, eval_clips=1)
        config.data.cache = None
        config.data.loader.update(batch_size=2)
        config.loop.update(num_steps=4, log_every=1, eval_every=4, save_every=2)
    return config


def _network() -> dict:
    return {
        'embed_dim': 3072,
        'num_layers': 42,
        'num_heads': 48,
        'mlp_dim': 12288,
        'cond_dim': 512,
        'text_dim': 4096,
        'embed_num_frames': False,
        'embed_noise_augmentation_timestep': False,
        'dtype': 'bfloat16',
        'param_dtype': 'bfloat16',
        'remat': 'full',
        'lora': {'rank': 128, 'alpha': 1.0, 'targets': ('qkv', 'attention_out', 'modulation')},
    }


def _options() -> dict:
    return {
        'prediction_type': 'v_prediction',
        'scale_factor': 0.7,
        'caption_dropout': 0.1,
        'text_length': 226,
        'guidance_kind': 'official',
        'guidance_scale': 8.0,
        'guidance_exponent': 5,
        'num_steps': 51,
        'sampler': 'dpmpp_2m_sde',
    }


def _data() -> dict:
    return {
        'train': 'data/train',
        'heldout': 'data/heldout',
        'filter': join_filters(CLEAN, MOVING),
        'drop_duplicates': True,
        'frames': 49,
        'height': 256,
        'width': 480,
        'fit': 'resize',
        'flip': False,  # captions tell left from right
        'eval_clips': 4,
        'heldout_size': None,
        'cache': None,
        'loader': {'batch_size': 32, 'seed': 0, 'num_threads': 8, 'prefetch_batches': 2},
    }


def _small(config: ConfigDict) -> None:
    config.init_from = None
    config.loop.microbatches = 1
    config.stage.vae, config.stage.vae_dtype = 'embedded', 'float32'
    config.stage.text.encoder = 'hash'
    config.stage.network.lora = None
    config.stage.network.update(
        embed_dim=256,
        num_layers=5,
        num_heads=4,
        mlp_dim=1024,
        cond_dim=32,
        text_dim=64,
        dtype='float32',
        param_dtype='float32',
        remat='none',
    )
    config.stage.options.update(
        scale_factor=0.625,  # latents of the small VAE have a standard deviation of 1.6
        text_length=16,
        guidance_kind='decreasing',
        guidance_scale=9.0,
        guidance_exponent=2,
        num_steps=25,
        sampler='dpmpp_2m',
    )
    # Of sprites of all sizes and at all positions 70,000 clips were not enough (figures in configs/README.md).
    config.data.update(
        train='grid_sprites:12000',
        heldout='grid_sprites',
        filter='',
        frames=17,
        height=128,
        width=192,
        fit='crop',
        cache={'num_degraded_variants': 0, 'crop': None},
    )
    config.data.loader.update(batch_size=8, num_threads=1)
    config.optim.update(
        algorithm='muon',
        learning_rate=1.5e-3,
        lr_schedule='cosine',
        warmup_steps=50,
        final_lr_ratio=0.02,
        clip_norm=1.0,
        ema_decay=0.998,
    )
    config.loop.update(num_steps=4800, log_every=50, eval_every=400, save_every=200)
