"""How `prepare` extracts clips from videos.

  python -m fv_jax.prepare --input VIDEOS --output CLIPS [--config=configs/prepare.py:VARIANT] [--config.frames=33]

Without a variant: the clips of the real stage 2, 49 frames at 1072x1920 (`prepare` without a config does the same).
Smaller videos are skipped. One core processes about 9 frames per second.

With --config.text.encoder=T5_FOLDER (or =hash, for small networks) the embedding of its caption is stored with every
clip, 226 x 4096 values of T5 XXL, 1.9 MB a clip, so that training does not load T5.

With --config.latents.vae=3d-vae.pt (or =embedded) the latents of every clip and of four degraded variants are stored
instead of the clip, so that training neither decodes nor encodes: 13 x 134 x 240 x 16 float16 values each, 67 MB a
clip. With :...,pairs=like_previews they look like stage 1's output too (`configs/degradations.py`);
--config.latents.model_guided.checkpoint=FILES names the folder of the official release, or another stage 1.

  :tiny      17 frames at 256x480, for training on a CPU: about 25 frames a second on one core, from 1080p.
  :smoke     9 frames at 64x112, at most one clip a shot, for trying out.
  :embedded  the clips in the package (fv_jax/data/embedded), one per shot, at explicit times: 66 training shots and,
             with ,split=heldout, 8 held-out ones. From Big Buck Bunny
             ((c) 2008 Blender Foundation, CC BY 3.0, peach.blender.org) at 1280x720, 24 frames a second, 14,315 frames:
               python -m fv_jax.prepare --input big_buck_bunny_720p.mp4 --output fv_jax/data/embedded \
                   --overwrite --config=configs/prepare.py:embedded
               (and again with :embedded,split=heldout)
             4.1 MB in total; 3 minutes.
"""

import ml_collections

from configs import degradations
from configs.common import parse_variant
from fv_jax.core.config import ConfigError, did_you_mean

VARIANTS = ('tiny', 'smoke', 'embedded')
EMBEDDED_FPS = 24

# First frames of the embedded clips in the video: one clip a shot, chosen for texture, detail and motion; no titles, no
# fades. A held-out clip shows a view that no training clip shows, and the shots before and after it are not used. Where
# the video alternates between two views, each is in one split only. The characters are on both.
TRAIN_FRAMES = 17
TRAIN_STARTS = (
    *(1154, 1502, 1573, 1679, 1729, 2167, 2304, 2438, 2536, 3410, 3530, 3641, 3825, 4233, 4391, 4488, 4631, 4700),
    *(4764, 4827, 4948, 5017, 5111, 5224, 5410, 5498, 5554, 6060, 6093, 6181, 6234, 6278, 6311, 6361, 6674, 6723),
    *(6802, 6913, 7040, 7096, 7134, 7250, 7372, 7452, 7503, 7590, 7631, 7700, 7775, 8041, 9128, 9322, 9383, 9423),
    *(9487, 9528, 9753, 10038, 10104, 10187, 10263, 10412, 10518, 11110, 11483, 11615),
)
HELDOUT_FRAMES = 33
HELDOUT_STARTS = {
    344: 'a stream between meadows, the camera gliding',
    1815: 'a rabbit on dark grass, a butterfly in front',
    2832: 'three rodents against a hedge',
    5810: 'a rabbit walking behind a bush at the edge of a wood',
    6552: 'a rabbit skipping with a rope under a tree',
    8740: 'a rabbit and a rat in a wood',
    9857: 'a flying squirrel on a branch',
    10671: 'trees, then stakes in front of them, the camera falling fast and stopping',
}


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """Builds the configuration of a variant; its fields are those of `fv_jax.data.video.clips.ClipsConfig`."""
    name, fields = parse_variant(variant, VARIANTS, {'split': 'train', 'pairs': ''})
    config = ml_collections.ConfigDict()
    config.name = 'clips'
    config.frames = 49
    config.height = 1072
    config.width = 1920
    config.fps = None  # None keeps that of the video, or of most of its frames if it is variable
    config.max_upscale = 1.0
    config.detector = 'adaptive'
    config.threshold = None
    config.min_shot_frames = 15
    config.margin = 2
    config.clips_per_shot = None
    config.ranges = ()
    config.bars = 'keep'  # or 'crop': letterbox and pillarbox
    config.drop_black = True
    config.interlaced = 'deinterlace'  # or 'refuse'
    config.hdr = 'tone_map'  # to BT.709, or 'refuse'
    config.crf = 18.0
    config.preset = 'medium'
    config.shard_mb = 256.0  # of video files a shard
    config.unit_seconds = 120.0  # longer videos are cut; None keeps them whole
    config.captioner = {'function': '', 'command': '', 'batch_size': 8}
    config.text = {'encoder': '', 'length': None, 'dim': None, 'masked': False, 'dtype': 'bfloat16'}
    degraded = degradations.pairs(fields['pairs']) if fields['pairs'] else degradations.weak_and_strong()
    config.latents = {'vae': '', 'num_degraded_variants': 4, 'seed': 0, **degraded}
    if name == 'tiny':
        config.update(frames=17, height=256, width=480)
    if name == 'smoke':
        config.update(frames=9, height=64, width=112, clips_per_shot=1, preset='ultrafast')
    if name == 'embedded':
        config.update(_embedded(fields['split']))
    return config


def _embedded(split: str) -> dict:
    splits = {'train': (TRAIN_STARTS, TRAIN_FRAMES), 'heldout': (tuple(HELDOUT_STARTS), HELDOUT_FRAMES)}
    if split not in splits:
        raise ConfigError(f'split={split}: {did_you_mean(split, splits)}')
    starts, frames = splits[split]
    return {
        'name': split,
        'frames': frames,
        'height': 256,
        'width': 480,
        'detector': 'none',
        'unit_seconds': None,
        'ranges': tuple((start / EMBEDDED_FPS, (start + frames) / EMBEDDED_FPS) for start in starts),
        'crf': 20.0,  # 37 dB on average, the loss of chroma at half the resolution included
        'preset': 'veryslow',
    }
