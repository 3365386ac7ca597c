"""Stage 2: low-res latents to 1072x1920 by flow matching.

    python -m fv_jax.train --config=configs/stage2.py --workdir=runs/stage2

The real run: official sizes, 49 frames at 1072x1920, shards of clips from `python -m fv_jax.prepare` and the official
3d-vae.pt (`--config.data.train`, `--config.data.heldout`, `--config.stage.vae`). If the shards have text embeddings,
`--config.stage.text.encoder` names their encoder. It needs a TPU or GPU slice.

    :phase1  :phase2  :phase3    the real curriculum, each from the one before (`bash launch/train_stage2.sh`)
    :phase1,tiny=true ...        the same in minutes a phase on two CPU cores, on the clips in the package
    :lora    LoRA of rank 128 on the official stage2.pt, whose weights are frozen in bfloat16: your own clips, few chips
    :head128 the same from scratch in 15 heads of 128, not 30 of 64; the phases take --config.stage.network.num_heads=15
    :tiny    minutes on two CPU cores: the clips and the small VAE in the package, latents encoded once
    :distil  a flow map, which needs no guidance and 1 to 5 evaluations in place of 10: LoRA on the official stage2.pt
    :tiny_captions, then :distil,tiny=true   a small teacher with guidance by captions of sprites, and its flow map:
             12 and 15 minutes on one CPU core, after the clips are encoded
    :quickstart  minutes: continues the small stage 2 of the package on its videos (`bash launch/quickstart.sh`)
    :tiny_mixed  the small stage 2 of the package, on sprites, videos and photographs (`launch/photographs.sh`)
    :smoke   seconds: synthetic clips, three steps
    :...,pairs=like_previews  degradations that look like stage 1's output (`configs/degradations.py`), of variants that
             encode clips once; for the others `prepare` stores latents with them

Heads of 128 multiply and add as much, with as many parameters but for the norms of queries and keys (7,680 more of 1.7
billion). TPUs take half the time: their matrix units are 128 (v4, v5) or 256 (v6e, v7x) wide, and attention fills no
more of them than a head. At the roofline with recomputation a step of one clip takes 18.4 s on v5e-8 in heads of 64 and
9.5 in heads of 128, on v6e-8 7.7 and 3.9 (`python -m fv_jax.plan`). Official weights do not fit.

The curriculum (`PHASES`). Sizes, the order of the phases and the noise are the authors': clips and images of the
540p class, then 1072x1920 and images up to 2048x2048, then a small set that people preferred; the source noised to
600-900, 600-750, 650-750. They published neither learning rates, batches nor lengths. Ours, and why:

* Batches of 1.7 million video tokens in every phase: 64 clips at 544x960, 16 at 1072x1920. The author warns that
  training from scratch collapses early, unseen in the loss, unless the batch is large enough; the nearest published
  curriculum (CogVideoX-Fun) uses 1.7 million and more. The same in all phases, so that a rate means the same.
* 1e-4 from scratch, as DiT is trained with AdamW, then 5e-5 and 1e-5: each phase changes less. Constant, as the
  author's, after a warm-up; clipping at 0.1 is the author's too.
* 30,000 steps where a step is cheap (a quarter of the pixels), 10,000 where details are learned, 1,000 on a small set,
  which more steps would only memorize. They are starting points: stop by the held-out metrics.
* Clips to images 4 to 1 in examples, because images have detail but no motion; 12 to 1 in the last phase,
  which refines motion.
"""

from ml_collections import ConfigDict

from configs import degradations
from configs.common import (
    CLEAN,
    MOVING,
    NOT_ENLARGED,
    SHARP,
    join_filters,
    official_loop,
    official_optim,
    parse_variant,
    text_encoder,
)
from fv_jax.models.vae import OFFICIAL

CLIPS, IMAGES = 'data/train', 'images:data/images'
PREFERRED, PREFERRED_IMAGES = 'data/preferred', 'images:data/preferred_images'
TOKENS = 1_700_000  # of a global batch

PHASES = {
    'phase1': {
        'train': f'{CLIPS}@4+{IMAGES}@1',
        # Clips are shrunk to half their size: those that were enlarged have all the detail of this phase.
        'filter': join_filters(CLEAN, MOVING, SHARP),
        'size': (49, 544, 960),
        'sizes': ((49, 544, 960), (49, 960, 544), (49, 720, 720), (1, 544, 960), (1, 960, 544), (1, 720, 720)),
        'noise': (600, 900),
        'image_noise': (600, 900),
        'learning_rate': 1e-4,
        'num_steps': 30_000,
    },
    'phase2': {
        'train': f'{CLIPS}@4+{IMAGES}@1',
        'filter': join_filters(CLEAN, MOVING, SHARP, NOT_ENLARGED),
        'size': (49, 1072, 1920),
        'sizes': ((49, 1072, 1920), (49, 1920, 1072), (1, 1072, 1920), (1, 1920, 1072), (1, 2048, 2048)),
        'noise': (600, 750),
        'image_noise': (600, 750),
        'learning_rate': 5e-5,
        'num_steps': 10_000,
    },
    'phase3': {
        'train': f'{PREFERRED}@12+{PREFERRED_IMAGES}@1',
        # People chose these: they see what is still or soft on purpose, and miss that a clip was enlarged.
        'filter': join_filters(CLEAN, NOT_ENLARGED),
        'size': (49, 1072, 1920),
        'sizes': ((49, 1072, 1920), (49, 1920, 1072), (1, 1072, 1920), (1, 1920, 1072), (1, 2048, 2048)),
        'noise': (650, 750),
        'image_noise': (650, 750),
        'learning_rate': 1e-5,
        'num_steps': 1_000,
    },
}

# On two cores: half the size of the clips, then all of it; noise around the small VAE's noise-augmentation timestep.
# The preferred set of the last phase is the same set of clips if none is named.
TINY_PHASES = {
    'phase1': {'size': (17, 128, 240), 'noise': (20, 150), 'learning_rate': 2e-3, 'num_steps': 500},
    'phase2': {'size': (17, 256, 480), 'noise': (20, 120), 'learning_rate': 1e-3, 'num_steps': 600},
    'phase3': {'size': (17, 256, 480), 'noise': (50, 90), 'learning_rate': 2e-4, 'num_steps': 100},
}


def get_config(variant: str = '') -> ConfigDict:
    """Builds the configuration of a variant; its fields are those of `fv_jax.train.TrainConfig`."""
    names = 'smoke', 'tiny', 'quickstart', 'tiny_mixed', 'tiny_captions', 'head128', 'lora', 'distil', *PHASES
    name, fields = parse_variant(variant, names, {'tiny': False, 'pairs': ''})
    config = ConfigDict(
        {
            'stage': {
                'kind': 'superres',
                'vae': '3d-vae.pt',
                'vae_dtype': 'bfloat16',
                'text': text_encoder(''),
                'network': _network(),
                'options': _options(),
            },
            'data': _data(),
            'optim': official_optim(learning_rate=2e-5),
            'loop': official_loop(),
            'parallel': {'data': 1, 'context': -1},  # one clip's tokens over all chips
            'seed': 0,
            'init_from': None,
        }
    )
    if name in ('smoke', 'tiny', 'quickstart', 'tiny_mixed', 'tiny_captions') or fields['tiny']:
        _small(config)
    if name == 'tiny':
        _tiny(config)
    if name == 'quickstart':
        _quickstart(config)
    if name == 'tiny_mixed':
        _mixed(config)
    if name == 'tiny_captions' or (name == 'distil' and fields['tiny']):
        _captions(config)
    if name == 'distil':
        (_tiny_distil if fields['tiny'] else _distil)(config)
    if name in PHASES:
        (_tiny_phase if fields['tiny'] else _phase)(config, name)
    if name == 'lora':
        _lora(config)
    if name == 'head128':
        config.stage.network.num_heads = 15
    if name == 'smoke':
        config.stage.network.update(embed_dim=64, num_heads=2, num_layers=2, mlp_dim=128)
        config.data.update(train='synthetic', heldout='synthetic', frames=9, height=32, width=48, eval_clips=1)
        config.data.cache = {'num_degraded_variants': 1, 'crop': None}
        config.loop.update(num_steps=4, eval_every=4, save_every=2)
    if fields['pairs']:
        config.data.update(degradations.pairs(fields['pairs']))
        if config.data.cache is not None:
            config.data.cache.num_degraded_variants = 4  # of all kinds
    return config


def _network() -> dict:
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


def _options() -> dict:
    return {
        'noise_augmentation_timestep': 675,
        'noise_augmentation_timestep_range': None,
        'image_noise_augmentation_timestep_range': None,
        'shift': 2.5,
        'scale_factor': 1.15258426,
        'caption_dropout': 0.1,
        'text_length': 226,
        'guidance_scale': 13.0,
        'num_steps': 5,
        'sampler': 'euler',
        'numerics': 'exact',
    }


def _data() -> dict:
    return {
        'train': CLIPS,
        'heldout': 'data/heldout',
        'filter': PHASES['phase2']['filter'],
        'drop_duplicates': True,
        'frames': 49,
        'height': 1072,
        'width': 1920,
        'buckets': (),
        'token_budget': None,
        'fit': 'resize',
        'flip': True,
        'eval_clips': 4,
        'heldout_size': None,
        **degradations.weak_and_strong(),
        'cache': None,
        'bad_records': {'on_bad_record': 'skip', 'max_bad_records': 100},
        'loader': {'batch_size': 8, 'seed': 0, 'num_threads': 8, 'prefetch_batches': 2},
    }


def _phase(config: ConfigDict, name: str) -> None:
    phase = PHASES[name]
    frames, height, width = phase['size']
    config.data.filter = phase['filter']
    config.data.update(train=phase['train'], frames=frames, height=height, width=width, token_budget=TOKENS)
    config.data.buckets = _buckets(phase['sizes'])
    # What 8, 16 and more shards of the data divide; a batch of the largest size has 16 clips.
    config.data.batch_multiple = 16
    config.stage.options.noise_augmentation_timestep_range = phase['noise']
    config.stage.options.image_noise_augmentation_timestep_range = phase['image_noise']
    config.optim.learning_rate = phase['learning_rate']
    config.loop.num_steps = phase['num_steps']


def _tiny_phase(config: ConfigDict, name: str) -> None:
    phase = TINY_PHASES[name]
    frames, height, width = phase['size']
    _tiny(config)
    # Four whole clips of either size a step, or a few more images.
    token_budget = 4 * OFFICIAL.latent_spec.num_tokens(frames, height, width)
    config.data.update(
        train='embedded@4+stills:embedded@1',
        frames=frames,
        height=height,
        width=width,
        fit='resize',
        token_budget=token_budget,
    )
    config.data.buckets = _buckets((phase['size'], (1, height, width)))
    config.data.update(degradations.weak_and_strong())
    config.data.cache.num_degraded_variants = 4  # of both kinds
    config.stage.options.noise_augmentation_timestep_range = phase['noise']
    config.stage.options.image_noise_augmentation_timestep_range = phase['noise']
    config.optim.update(learning_rate=phase['learning_rate'], lr_schedule='constant')
    config.loop.update(num_steps=phase['num_steps'], eval_every=phase['num_steps'], save_every=100)


def _tiny(config: ConfigDict) -> None:
    config.stage.network.update(embed_dim=128, num_heads=2, mlp_dim=512, cond_dim=32)
    # Crops of the latents: many small samples a minute teach more than few whole frames (900 steps of one crop as long
    # as 150 of a frame, and a held-out loss of 0.125 against 0.140).
    config.data.cache.crop = (16, 24)
    config.data.loader.update(batch_size=4, num_threads=1)
    # `python -m fv_jax.evaluate` of one run (launch/quickstart.sh) on four held-out shots, four evaluations each; the
    # network was trained on the source's noise of index 50. PSNR in dB, LPIPS of AlexNet and VGG16, DISTS (lower is
    # better), VMAF-NEG, flicker:
    #   bilinear                   23.87   0.568   0.405   0.279    4.9   0.025
    #   Heun from index 58         23.19   0.485   0.448   0.285   14.5   0.041
    #   Heun from 54               23.31   0.482   0.444   0.283   14.6   0.039
    #   Heun from 50               23.41   0.481   0.441   0.281   14.7   0.038
    #   Heun from 46               23.49   0.481   0.439   0.280   14.9   0.037
    #   Heun from 50, shift 1      23.50   0.486   0.439   0.280   14.4   0.036
    #   Heun from 50, shift 3      23.38   0.482   0.443   0.282   14.7   0.039
    #   Euler from 50, shift 1     23.54   0.487   0.435   0.277   14.4   0.034
    #   Euler from 50              23.50   0.482   0.435   0.276   14.6   0.034
    #   the VAE's round trip       28.06   0.261   0.251   0.165   67.2   0.028
    # Noise beyond what the network was trained to remove stays as grain: sharper, and worse by every metric.
    config.stage.options.update(noise_augmentation_timestep=50, shift=2.0, sampler='euler', num_steps=4)
    config.optim.update(algorithm='muon', learning_rate=2e-3, warmup_steps=20, final_lr_ratio=0.02)
    config.loop.update(num_steps=1600, eval_every=800, save_every=400, log_every=20)


def _embedded(config: ConfigDict) -> None:  # the network of the package's stage 2, and its training
    config.stage.network.update(embed_dim=128, num_heads=2, num_layers=4, mlp_dim=512, cond_dim=32)
    config.data.weak = {'low': 4.0, 'high': 4.0}
    config.data.cache = {'num_degraded_variants': 1, 'crop': None}
    config.data.loader.update(batch_size=8, num_threads=1)
    config.optim.update(algorithm='muon', learning_rate=2e-3, final_lr_ratio=0.02, ema_decay=0.995)
    # The less noise, the better by every metric (configs/README.md).
    config.stage.options.update(noise_augmentation_timestep=0, noise_augmentation_timestep_range=(0, 10))


def _mixed(config: ConfigDict) -> None:
    _embedded(config)
    config.data.update(
        train='sprite_crops:150+embedded+embedded+moving:150:images:data/photographs/train',
        height=256,
        width=384,
        heldout_size=(17, 256, 480),
    )
    config.data.cache.crop = (16, 24)
    config.loop.update(num_steps=6000, eval_every=2000, save_every=500, log_every=100)


def _quickstart(config: ConfigDict) -> None:
    _embedded(config)
    config.init_from = 'embedded'
    # One crop of each clip, as large as those that the stage was trained on: whole clips take longer to encode than to
    # train on.
    config.data.update(height=128, width=192, heldout_size=(17, 256, 480))
    config.optim.update(learning_rate=1e-3, warmup_steps=20, ema_decay=0.99)
    config.loop.update(num_steps=400, eval_every=400, save_every=100, log_every=20)


def _buckets(sizes: tuple[tuple[int, int, int], ...]) -> tuple[dict, ...]:
    return tuple({'frames': frames, 'height': height, 'width': width} for frames, height, width in sizes)


def _lora(config: ConfigDict) -> None:
    config.init_from = 'stage2.pt'
    config.stage.network.update(
        param_dtype='bfloat16',
        lora={'rank': 128, 'alpha': 1.0, 'targets': ('qkv', 'attention_out', 'modulation')},
    )
    config.optim.learning_rate = 1e-4  # as stage 1's


def _distil(config: ConfigDict) -> None:
    _lora(config)
    config.stage.text.encoder = 't5-v1_1-xxl'
    _flow_map(config, num_knots=5, teacher_guidance_scale=13.0)
    config.data.flip = False  # captions tell left from right
    config.optim.update(lr_schedule='cosine', final_lr_ratio=0.05)
    config.loop.update(num_steps=6_000, eval_every=500)


def _tiny_distil(config: ConfigDict) -> None:
    config.init_from = 'runs/teacher'
    options = config.stage.options
    _flow_map(config, num_knots=options.num_steps, teacher_guidance_scale=options.guidance_scale)
    config.optim.update(learning_rate=1e-3, warmup_steps=100)
    config.loop.update(num_steps=2400, eval_every=1200)


def _flow_map(config: ConfigDict, *, num_knots: int, teacher_guidance_scale: float) -> None:
    """Makes a flow map of the stage, whose sampler becomes the teacher's."""
    config.stage.kind = 'flow_map'
    config.stage.network.embed_interval = True
    config.stage.options.update(
        num_knots=num_knots,
        teacher_sampler=config.stage.options.sampler,
        teacher_substeps=1,
        teacher_guidance_scale=teacher_guidance_scale,
        target_shares=(0.25, 0.25, 0.5),
        source_share=0.3,
        full_intervals_at=0.4,
        rollout_share=0.0,
        caption_dropout=0.0,
        guidance_scale=1.0,
        guidance_batched=False,  # two evaluations of the teacher, one after the other
        sampler='mean_velocity',
        num_steps=2,
    )
    # The kinds of targets have losses of different sizes.
    config.loop.bad_steps = {'spike_sigmas': 0.0}


def _captions(config: ConfigDict) -> None:
    # A teacher that few steps are not enough for: noise hides which object moves, guidance by the caption shows it, and
    # one guided step exaggerates it (figures in configs/README.md). Attention has no initial bias, which would keep
    # video tokens from the text.
    _embedded(config)
    config.stage.text.update(encoder='hash')
    config.stage.network.update(
        embed_dim=192, num_heads=3, num_layers=3, mlp_dim=768, text_dim=64, local_attention_init=0.0
    )
    config.stage.options.update(
        noise_augmentation_timestep=850,
        noise_augmentation_timestep_range=(600, 900),
        text_length=16,
        guidance_scale=6.0,
        num_steps=5,
        caption_dropout=0.1,
    )
    config.data.update(train='sprites:2400', heldout='sprites', height=64, width=96, eval_clips=16, flip=False)
    config.data.loader.batch_size = 16
    config.loop.update(num_steps=3000, eval_every=1000, save_every=500, log_every=50)


def _small(config: ConfigDict) -> None:
    config.loop.microbatches = 1
    config.stage.vae, config.stage.vae_dtype = 'embedded', 'float32'
    config.stage.network.update(
        embed_dim=192, num_layers=4, num_heads=3, mlp_dim=768, cond_dim=128, text_dim=32, dtype='float32', remat='none'
    )
    # Minutes are too short to find out where things are: after 225 steps of four crops (128 wide, Muon) the held-out
    # loss was 0.129 with it and 0.134 without; the linear predictor's 0.108.
    config.stage.network.local_attention_init = 2.0
    config.stage.options.update(
        noise_augmentation_timestep=50, shift=1.0, scale_factor=1.0, text_length=4, guidance_scale=1.0, num_steps=4
    )
    config.data.update(train='embedded', heldout='embedded', filter='', frames=17, height=256, width=480, fit='crop')
    # Weak alone, as the quickstart's figures are.
    config.data.strong, config.data.strong_probability = None, 0.0
    config.data.bad_records.on_bad_record = 'fail'
    config.data.cache = {'num_degraded_variants': 2, 'crop': None}
    config.data.loader.update(batch_size=1)
    config.optim.update(
        learning_rate=1e-3, lr_schedule='cosine', warmup_steps=50, final_lr_ratio=0.05, clip_norm=1.0, ema_decay=0.99
    )
    config.loop.update(num_steps=500, eval_every=250, save_every=250)
