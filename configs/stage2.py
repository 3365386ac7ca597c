"""Stage 2: low-res latents to 1072x1920 by flow matching.

    python -m fv_jax.train --config=configs/stage2.py --workdir=runs/stage2

The real run: official sizes, 49 frames at 1072x1920, film shards from `python -m fv_jax.prepare` and the official
3d-vae.pt (`--config.data.train`, `--config.data.heldout`, `--config.stage.vae`). It needs a TPU or GPU slice.

    :tiny    minutes on two CPU cores: the film and the small VAE that come with the package, latents encoded once
    :smoke   seconds: made-up film, three steps
"""

from ml_collections import ConfigDict

from configs.common import official_optim, parse_variant


def get_config(variant: str = '') -> ConfigDict:
    """See above. The fields are those of `fv_jax.train.RunConfig`."""
    name, _ = parse_variant(variant, ('smoke', 'tiny'))
    config = ConfigDict(
        {
            'stage': {'kind': 'superres', 'vae': '3d-vae.pt', 'dit': _dit(), 'superres': _superres()},
            'data': _data(),
            'optim': official_optim(learning_rate=2e-5),
            'loop': {'num_steps': 20_000, 'log_every': 1, 'eval_every': 1000, 'save_every': 500, 'keep': 3},
            'seed': 0,
            'init_from': None,
        }
    )
    if name:
        _small(config)
    if name == 'smoke':
        config.stage.dit.update(embed_dim=64, num_heads=2, num_layers=2, mlp_dim=128)
        config.data.update(train='synthetic', heldout='synthetic', frames=9, height=32, width=48, eval_clips=1)
        config.data.cache = {'low_variants': 1, 'crop': None}
        config.loop.update(num_steps=4, eval_every=4, save_every=2)
    return config


def _dit() -> dict:
    return {
        'embed_dim': 1920,
        'num_layers': 30,
        'num_heads': 30,
        'mlp_dim': 7680,
        'cond_dim': 512,
        'text_dim': 4096,
        'dtype': 'bfloat16',
        'remat': 'full',
    }


def _superres() -> dict:
    return {
        'source_timestep': 675,
        'shift': 2.5,
        'scale_factor': 1.15258426,
        'caption_dropout': 0.1,
        'text_length': 226,
        'guidance_scale': 13.0,
        'num_steps': 5,
        'solver': 'euler',
        'numerics': 'exact',
    }


def _data() -> dict:
    return {
        'train': 'data/train',
        'heldout': 'data/heldout',
        'frames': 49,
        'height': 1072,
        'width': 1920,
        'fit': 'resize',
        'flip': True,
        'eval_clips': 4,
        'heldout_size': None,
        'weak': {'low': 4.0, 'high': 8.0},
        'cache': None,
        'loader': {'batch_size': 8, 'seed': 0, 'num_threads': 8, 'prefetch_batches': 2},
    }


def _small(config: ConfigDict) -> None:
    config.stage.vae = 'embedded'
    config.stage.dit.update(
        embed_dim=192, num_layers=4, num_heads=3, mlp_dim=768, cond_dim=128, text_dim=32, dtype='float32', remat='none'
    )
    config.stage.superres.update(
        source_timestep=50, shift=1.0, scale_factor=1.0, text_length=4, guidance_scale=1.0, num_steps=4
    )
    config.data.update(train='embedded', heldout='embedded', frames=17, height=256, width=480, fit='crop')
    config.data.cache = {'low_variants': 2, 'crop': None}
    config.data.loader.update(batch_size=1)
    config.optim.update(
        learning_rate=1e-3, lr_schedule='cosine', warmup_steps=50, final_lr_ratio=0.05, clip_norm=1.0, ema_decay=0.99
    )
    config.loop.update(num_steps=500, eval_every=250, save_every=250)
