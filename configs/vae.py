"""The causal VAE.

    python -m fv_jax.train --config=configs/vae.py --workdir=runs/vae

The small VAE in the package (`fv_jax/weights/embedded`, 16 bits) was trained on CPU on the clips and the sprites in the
package, in phases, each from the one before (`--config.init_from=RUN_BEFORE`):

    python -m fv_jax.train --config=configs/vae.py:tiny_images --workdir=runs/images    images of 64x64
    ... :tiny_clips       9 frames
    ... :tiny_crops      17 frames
    ... :tiny_large      128x128
    ... :tiny_long       33 frames: the embedded clips, which have 17, forwards and backwards
    ... :tiny            192x192, 25 frames

It took 14, 65, 20, 60, 45 and 25 minutes on one or two shared cores; configs/README.md has what each phase brought.
Some were ended or shortened while they ran: `:tiny_large` after 105 and 200 of 900 steps, `:tiny_long` at step 375 of
450, `:tiny` after 30 of 150.

Then it was widened where a frame is small, and trained on sprites in motion, the clips in the package and photographs
in motion (`launch/photographs.sh`):

    python -m fv_jax.export --checkpoint=runs/vae --output=runs/narrow.safetensors
    python launch/widen_vae.py runs/narrow.safetensors 1,2,4,6 runs/wide.safetensors
    ... :tiny_motion        17 frames of 96x96; ended at step 634
    ... :tiny_motion_long   33 frames of 128x128
    ... :tiny_motion_whole  17 frames of 192x336
    python -m fv_jax.export --checkpoint=runs/vae --output=fv_jax/weights/embedded/vae_tiny.safetensors

`--config=vae:tiny_motion_whole --config.init_from=embedded` continues from it.

`:smoke` takes seconds.
"""

from ml_collections import ConfigDict

from configs.common import parse_variant


def get_config(variant: str = '') -> ConfigDict:
    """Builds the configuration of a variant; its fields are those of `fv_jax.train.TrainConfig`."""
    name, _ = parse_variant(variant, ('smoke', 'tiny', *_PHASES))
    config = ConfigDict(
        {
            'stage': _stage(),
            'data': _data(),
            'optim': _optim(),
            'loop': {'num_steps': 100_000, 'log_every': 10, 'eval_every': 2000, 'save_every': 2000},
            'seed': 0,
            'init_from': None,
        }
    )
    if name:
        _small(config)
    if name in _PHASES:
        _PHASES[name](config)
    if name == 'smoke':
        config.data.update(
            train='synthetic', heldout='synthetic', frames=9, height=32, width=32, heldout_size=(9, 32, 32)
        )
        config.loop.update(num_steps=3, log_every=1, eval_every=3, save_every=3)
    return config


def _stage() -> dict:
    return {
        'kind': 'autoencoder',
        'network': {
            'base_channels': 128,
            'multipliers': (1, 2, 2, 4),
            'temporal_levels': 2,
            'num_res_blocks': 3,
            'groups': 32,
            'dtype': 'bfloat16',
        },
        'options': {'kl_weight': 1e-4, 'init_from_image_vae': False},
    }


def _data() -> dict:
    return {
        'train': 'embedded',
        'heldout': 'embedded',
        'frames': 17,
        'height': 256,
        'width': 256,
        'fit': 'crop',
        'max_pan': 0.0,
        'eval_clips': 4,
        'heldout_size': (17, 256, 480),
        'loader': {'batch_size': 16, 'seed': 0},
    }


def _optim() -> dict:
    return {
        'algorithm': 'adamw',
        'learning_rate': 1e-4,
        'lr_schedule': 'cosine',
        'warmup_steps': 1000,
        'b2': 0.99,
        'clip_norm': 1.0,
        'ema_decay': 0.999,
    }


def _small(config: ConfigDict) -> None:
    config.stage.network.update(base_channels=16, multipliers=(1, 1, 2, 3), num_res_blocks=1, groups=2, dtype='float32')
    # A quarter of the clips are sprites, which stage 1 is trained on. Half of the crops pan: the clips have few pans as
    # fast as those of the held-out shots. Played forth and back, its clips of 17 frames are as long as what is needed.
    config.data.update(
        train='pingpong:embedded+sprite_crops:22',
        frames=25,
        height=192,
        width=192,
        max_pan=40.0,
        in_memory=True,
        heldout_size=(33, 256, 480),
        loader={'batch_size': 1, 'num_threads': 1},
    )
    # Muon reaches in 200 steps on images what AdamW reaches in 500 (25.3 dB against 22.7 after 200).
    config.optim.update(algorithm='muon', learning_rate=3e-4, warmup_steps=5, final_lr_ratio=0.05, ema_decay=0.97)
    config.loop.update(num_steps=105, log_every=5, eval_every=105, save_every=15)


def _motion(config: ConfigDict) -> None:
    # Wider where a frame is small, by launch/widen_vae.py.
    config.stage.network.multipliers = (1, 2, 4, 6)
    # Sprites are drawn as they are needed: a network memorizes few clips.
    config.stage.options.update(reconstruction='charbonnier', motion_weight=0.5, kl_weight=3e-4)
    config.data.update(
        train='pingpong:embedded@35+sprite_crops:100000@40+moving:images:data/photographs/train@25',
        frames=17,
        height=96,
        width=96,
        in_memory=False,
        heldout='embedded',
        heldout_size=(17, 256, 480),
        loader={'batch_size': 4, 'num_threads': 1},
    )
    config.optim.update(learning_rate=5e-4, warmup_steps=30, final_lr_ratio=0.1, ema_decay=0.99)
    config.loop.update(num_steps=1200, log_every=10, eval_every=400, save_every=50)


def _motion_long(config: ConfigDict) -> None:
    _motion(config)
    config.data.update(frames=33, height=128, width=128, loader={'batch_size': 1, 'num_threads': 1})
    config.optim.update(learning_rate=4e-4, final_lr_ratio=0.3)
    config.loop.update(num_steps=450)


def _motion_whole(config: ConfigDict) -> None:
    _motion(config)
    config.data.update(height=192, width=336, loader={'batch_size': 1, 'num_threads': 1})
    config.optim.update(learning_rate=2.5e-4, warmup_steps=10, final_lr_ratio=0.05, ema_decay=0.98)
    config.loop.update(num_steps=320, eval_every=320)


def _long(config: ConfigDict) -> None:
    config.data.update(frames=33, height=128, width=128)
    config.optim.update(learning_rate=5e-4, warmup_steps=20, final_lr_ratio=0.1, ema_decay=0.99)
    config.loop.update(num_steps=450, eval_every=150, save_every=25)


def _large(config: ConfigDict) -> None:
    config.data.update(
        train='embedded+sprite_crops:22',
        frames=17,
        height=128,
        width=128,
        heldout_size=(17, 256, 480),
        loader={'batch_size': 2, 'num_threads': 1},
    )
    config.optim.update(learning_rate=7e-4, warmup_steps=20, final_lr_ratio=0.02, ema_decay=0.995)
    config.loop.update(num_steps=500, eval_every=250, save_every=50)


def _crops(config: ConfigDict) -> None:
    _large(config)
    config.data.update(height=64, width=64)
    config.optim.ema_decay = 0.99
    config.loop.update(log_every=20, eval_every=500, save_every=100)


def _clips(config: ConfigDict) -> None:
    _crops(config)
    config.stage.options.init_from_image_vae = True
    config.data.update(frames=9, loader={'batch_size': 4, 'num_threads': 1})
    config.optim.update(learning_rate=1e-3, warmup_steps=50, ema_decay=0.999)
    config.loop.update(num_steps=1600, eval_every=1600)


def _images(config: ConfigDict) -> None:
    _crops(config)
    # Many small images a step: with one or two crops a step the colours of the crop at hand win over everything else.
    config.data.update(frames=1, max_pan=0.0, loader={'batch_size': 16, 'num_threads': 1})
    config.optim.update(learning_rate=1e-3, warmup_steps=50, lr_schedule='constant', ema_decay=0.999)
    config.loop.update(num_steps=1300, eval_every=1300)


_PHASES = {
    'tiny_images': _images,
    'tiny_clips': _clips,
    'tiny_crops': _crops,
    'tiny_large': _large,
    'tiny_long': _long,
    'tiny_motion': _motion,
    'tiny_motion_long': _motion_long,
    'tiny_motion_whole': _motion_whole,
}
