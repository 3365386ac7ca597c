"""A folder of things that commands can be pointed at, right and wrong ones, and the mistakes that each command can make
with them.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np

from fv_jax.checkpoints import streaming
from tests import runs
from tests.data import sample_videos
from tests.sampling import tiny

Own = dict[str, tuple[tuple[dict[str, str | None], tuple[str, ...]], ...]]
OFFICIAL = runs.ROOT / 'tests/parity/official_dev'

_PROGRAMS = {
    'syntax.py': 'def get_config(:',
    'raises.py': 'def get_config(variant):\n    return {}[variant]',
    'imports.py': 'import not_there_at_all',
    'nothing.py': '',
    'number.py': 'def get_config(variant):\n    return 3',
    'fields.py': (
        'from ml_collections import ConfigDict\n\n\ndef get_config(variant):\n'
        '    config = ConfigDict({"stage": {"kind": "lowres"}})\n    config.stagee = 1\n    return config'
    ),
    'text.txt': 'no program',
}


def make_programs(world: Path) -> None:
    """Writes the configuration programs, all that mistakes in flags and configurations need."""
    (world / 'programs').mkdir(parents=True)
    for name, text in _PROGRAMS.items():
        (world / 'programs' / name).write_text(text)
    (world / 'programs' / 'bytes.py').write_bytes(b'\xff\xfe\x00\x01')


def make(world: Path) -> None:
    """Fills the folder."""
    make_programs(world)
    sample_videos.write_two_shots(world / 'video.mp4', frames=12)
    for name, data in (
        ('text.mp4', b'not a video'),
        ('text.pt', b'no weights'),
        ('empty.pt', b''),
        ('text.npz', b'none'),
    ):
        (world / name).write_bytes(data)
    (world / 'cut.pt').write_bytes((OFFICIAL / 'stage2.pt').read_bytes()[:5000])
    (world / 'cut.npz').write_bytes(b'PK\x03\x04' + bytes(50))
    (world / 'empty.npz').write_bytes(b'')
    np.save(world / 'array.npy', np.zeros(3))
    np.savez(world / 'other.npz', x=np.zeros(3))
    (world / 'prompts.txt').write_text('\n \n')
    (world / 'bytes.txt').write_bytes(b'\xff\xfe a bee')
    for name in ('empty', 'videos', 'captioned', 'json'):
        (world / name).mkdir()
    (world / 'videos' / 'text.mp4').write_bytes(b'not a video')
    shutil.copy(world / 'video.mp4', world / 'captioned' / 'video.mp4')
    (world / 'captioned' / 'captions.json').write_text('["no", "table"]')
    (world / 'json' / 'config.json').write_text('[1]')
    _make_runs(world)


def _make_runs(world: Path) -> None:
    tiny.save_vae(world / 'vae.safetensors')
    (world / 'cut.safetensors').write_bytes((world / 'vae.safetensors').read_bytes()[:-100])
    tiny.save_run(world / 'run', tiny.stage_config(world / 'vae.safetensors'))
    tiny.save_run(world / 'first', tiny.first_stage_config(world / 'vae.safetensors'), size=tiny.PREVIEW)
    tiny.save_run(world / 'lost_vae', tiny.stage_config(world / 'not_there.safetensors'))
    wrong = dataclasses.replace(tiny.stage_config(world / 'vae.safetensors'), vae_dtype='float32')
    tiny.save_run(world / 'other', wrong, saved=tiny.wider(wrong))
    (world / 'bare' / 'checkpoints').mkdir(parents=True)
    array = streaming.LazyArray((3,), np.dtype('float32'), lambda: np.zeros(3, np.float32))
    streaming.save(world / 't5', 0, {'frozen': {'x': array}}, {'t5': {}})
    shutil.copytree(world / 'run', world / 'no_meta')
    shutil.rmtree(world / 'no_meta' / 'checkpoints' / '7' / 'meta')
    shutil.copytree(world / 'run', world / 'bad_record')
    (world / 'bad_record' / 'run.json').write_text('[]')
    for name, text in (('another', json.dumps({'stage': 3})), ('no_json', '{'), ('list', '[1, 2]'), ('number', '3')):
        (world / name).mkdir()
        (world / name / 'config.json').write_text(text)


def command_mistakes(world: Path) -> Own:
    """command -> (flags in place of its right ones, words of which the message must have one)."""
    return {
        'train': (*_train(world), *_contradictions(world)),
        'plan': _plan(),
        'prepare': _prepare(world),
        'degrade': _degrade(world),
        'sample': _sample(world),
        'convert': _convert(world),
        'export': _export(world),
        'evaluate': _evaluate(world),
        'inspect': _inspect(world),
        'cache': _one('--trim-gb', '-1', 'many', 'nan', 'inf', '[1]', ''),
    }


def _one(flag: str, *values: object) -> list[tuple[dict[str, str | None], tuple[str, ...]]]:
    return [({flag: str(value)}, (flag,)) for value in values]


def _train(world: Path) -> list:
    found = _one('--profile-steps', '3:1', '0:4', 'all', '1:500', '-1', '')
    found += _one('--allow-config-change', 'optimm', 'data.flipp', 'seed.x', 'data..', '.')
    found += _one('--replay', *(world / name for name in _NO_BUNDLES))
    found += [({'--workdir': str(world / name)}, (str(world / name),)) for name in _NO_FOLDERS]
    found += [({'--coordinator': 'here'}, ('--num-processes',)), ({'--process-id': '3'}, ('--coordinator',))]
    three = {'--coordinator': 'here:1', '--num-processes': '2', '--process-id': '2'}
    found += [(three, ('--process-id',)), (three | {'--coordinator': 'here'}, ('--coordinator',))]
    found += [(three | {'--num-processes': '0', '--process-id': '0'}, ('--process-id', '--num-processes'))]
    found += [({'--workdir': ' '}, ('--workdir',)), ({'--config': ' '}, ('--config',)), ({' more': None}, ('more',))]
    found += [({'--config.seed': '1', '--replay': str(world / 'other.npz')}, ('--config.seed',))]
    return found


_NO_BUNDLES = ('text.npz', 'cut.npz', 'empty.npz', 'array.npy', 'other.npz', 'empty', 'video.mp4')
_NO_FOLDERS = ('video.mp4', 'video.mp4/run', 'another', 'no_json', 'list', 'number', 'no_meta')


def _contradictions(world: Path) -> list:
    """Lists contradictions between valid fields, invalid sizes, and files that are missing or of another kind."""
    fields = [
        ('data.height', '40'), ('data.width', '50'), ('data.frames', '10'), ('data.frames', '0'),
        ('data.heldout_size', '(9, 30, 32)'), ('data.heldout_size', '(8, 32, 32)'), ('data.heldout_size', '(9, 32)'),
        ('data.buckets', '({"frames": 9, "height": 32, "width": 48},) * 2'), ('data.buckets', '({"frames": 9},)'),
        ('data.buckets', '({"frames": 9, "height": 32, "width": 48, "depth": 1},)'), ('data.buckets', '(3,)'),
        ('data.buckets', '({"frames": 9, "height": 33, "width": 48},)'), ('data.token_budget', '0'),
        ('data.weak.low', '9'), ('data.weak.high', '0.5'), ('data.strong_probability', '0.5'),
        ('data.cache.num_degraded_variants', '0'), ('data.cache.crop', '(3, 4)'), ('data.max_crop_fraction', '1.5'),
        ('data.bad_records.on_bad_record', 'ignore'), ('data.loader.batch_size', '0'), ('data.eval_clips', '0'),
        ('data.train', world / 'nowhere'), ('data.train', world / 'empty'), ('data.train', f'images:{world}/x'),
        ('data.train', f'images:{world}/empty'), ('data.train', f'tfds:{world}/empty'), ('data.train', 'a@0'),
        ('data.train', 'synthetic@1+sprites'), ('data.train', 'sprites:none'), ('data.train', 'sprites:-3'),
        ('data.train', 'stills:' + str(world / 'empty')), ('data.train', ''), ('data.train', 'nowhere://bucket/folder'),
        ('data.heldout', world / 'nowhere'), ('data.heldout', 'sprites:x'),
        ('stage.vae', world / 'nowhere.pt'), ('stage.vae', world / 'text.pt'), ('stage.vae', world / 'empty.pt'),
        ('stage.vae', world / 'cut.pt'), ('stage.vae', world / 'cut.safetensors'), ('stage.vae', world / 'empty'),
        ('stage.vae', OFFICIAL / 'stage2.pt'), ('stage.vae', 'none'), ('stage.vae', ''), ('stage.vae', world / 'run'),
        ('stage.network.latent_channels', '5'), ('stage.network.num_heads', '3'), ('stage.network.embed_dim', '50'),
        ('stage.network.patch_size', '3'), ('stage.network.dtype', 'float64'), ('stage.network.remat', 'some'),
        ('stage.text.encoder', world / 'empty'), ('stage.text.encoder', world / 'nowhere'),
        ('stage.text.dim', '3'), ('stage.text.masked', 'true'),
        ('stage.kind', 'lowres'), ('stage.kind', 'autoencoder'), ('stage.kind', 'superess'),
        ('stage.superres', 'none'), ('stage.options.noise_augmentation_timestep', '1000'),
        ('stage.options.sampler', 'eulr'),
        ('stage.options.noise_augmentation_timestep_range', '(9, 3)'), ('stage.options.caption_dropout', '1.5'),
        ('optim.algorithm', 'adam'), ('optim.lr_schedule', 'linear'), ('optim.b1', '1'), ('optim.b2', '1.5'),
        ('optim.ema_decay', '1'), ('optim.learning_rate', '0'), ('optim.warmup_steps', '-1'),
        ('loop.num_steps', '0'), ('loop.num_steps', '3000000000'), ('loop.max_to_keep', '0'), ('loop.save_every', '0'),
        ('loop.collapse_monitor.energy', '(2, 3)'),
        ('loop.bad_steps.on_limit', 'continue'), ('loop.bad_steps.max_consecutive', '0'),
        ('parallel.data', '0'), ('parallel.data', '7'), ('parallel.fsdp', '3'), ('parallel.tensor', '5'),
        ('parallel.context', '-2'), ('parallel.ulysses_degree', '0'), ('seed', '-1'), ('seed', '9999999999'),
        ('init_from', world / 'nowhere'), ('init_from', world / 'text.pt'), ('init_from', world / 'empty'),
        ('init_from', world / 'first'), ('init_from', world / 'video.mp4'), ('init_from', world / 'cut.pt'),
        ('init_from', OFFICIAL / 'stage1.pt'), ('init_from', OFFICIAL / '3d-vae.pt'),
    ]  # fmt: skip
    # What is found by a part of the house that knows no field names the file, the axis or the group.
    return [
        ({f'--config.{path}': str(value)}, (path.rpartition('.')[2], path.partition('.')[0] + ':', str(value) or 'x'))
        for path, value in fields
    ]


def _plan() -> list:
    found = _one('--topology', 'v5e-3', 'v6-8', 'h100-7', 'v5p:3x3', 'v5p:4x4x5', '', 'v5e', 'gpu', 'v4-7', 'v5e:0x4')
    found += _one('--only', 'training', 'all', 'train,x')
    found += [
        ({'--search': None, '--find-smallest-slice': None}, ('--search',)),
        ({'--topology': ' '}, ('--topology',)),
    ]
    found += [({'--config': str(runs.ROOT / 'configs/vae.py:smoke')}, ('stage.kind',))]
    found += [
        ({'--json': '/not/there/plan.json'}, ('--json',)),
        ({'--find-smallest-slice': None, '--topology': 'w'}, ('--topology',)),
    ]
    found += [({f'--config.{path}': value}, (path.rpartition('.')[2], 'parallel')) for path, value in (
        ('parallel.data', '3'), ('parallel.tensor', '16'), ('data.loader.batch_size', '0'), ('parallel.fsdp', '5'),
    )]  # fmt: skip
    found += [({'--search': None, '--config.data.token_budget': '100000'}, ('token_budget',))]
    return found


def _prepare(world: Path) -> list:
    found = _one('--input', world / 'nowhere', world / 'empty', world / 'videos/text.mp4', world / 'text.mp4')
    found = [(flags, ('--input', 'skipped')) for flags, _ in found]
    found += [({'--input': ' '}, ('--input',)), ({'--output': ' '}, ('--output',))]
    found += [({'--input': str(world / 'captioned')}, ('captions.json',))]
    found += [({'--output': str(world / 'video.mp4')}, ('video.mp4',))]
    found += [({f'--config.{path}': str(value)}, (path.rpartition('.')[2],)) for path, value in (
        ('name', 'a/b'), ('name', ''), ('name', '../x'), ('frames', '10'), ('height', '30'), ('width', '0'),
        ('fps', '0'), ('crf', '52'), ('preset', 'fast er'), ('detector', 'magic'), ('ranges', '((3, 1),)'),
        ('ranges', '((1,),)'),
        ('shard_mb', '0'), ('unit_seconds', '0.5'), ('min_shot_frames', '0'),
        ('text.encoder', world / 'nowhere'), ('text.dim', '4'),
        ('text.encoder', world / 'json'), ('latents.vae', world / 'nowhere.pt'), ('latents.vae', world / 'cut.pt'),
        ('latents.vae', OFFICIAL / 'stage1.pt'), ('latents.seed', '-1'), ('latents.weak.low', '9'), ('margin', '-1'),
        ('max_upscale', '0'), ('clips_per_shot', '0'),
    )]  # fmt: skip
    return found


def _degrade(world: Path) -> list:
    found = _one('--output', world / 'x.jpg', world / 'nowhere/x.png', '')
    found += [({'--input': str(world / name)}, (name,)) for name in ('text.mp4', 'empty', 'nowhere.mp4')]
    found += _one('--frames', 0, -1) + _one('--num-samples', 0) + _one('--seed', -1) + _one('--height', 0)
    return found


def _sample(world: Path) -> list:
    out = str(world / 'out.mp4')
    clip = {
        ' clip': None, '--prompt': ' ', '--input': str(world / 'video.mp4'), '--checkpoint': str(world / 'run'),
        '--output': out,
    }  # fmt: skip
    found = (
        _one('--seed', -1, 2**32, 'x')
        + _one('--num-samples', 0, -4)
        + _one('--batch-size', 0)
        + _one('--prompt', '', '  ')
    )
    found += _one('--fps', 0, -1, 'nan', 'inf') + _one('--crf', -1, 60, 'nan') + _one('--dtype', 'float16')
    found += [({'--official': str(world / name)}, (name,)) for name in ('empty', 'video.mp4')] + _one(
        '--output', world / 'nowhere/x/y', world / 'run'
    )
    found += [({'--output': str(world / 'video.mp4')}, ('--output',)), ({'--output': ' '}, ('--output',))]
    found += [({'--checkpoint': str(world / name)}, (name,)) for name in _NO_RUNS]
    found += [({'--text': str(world / name)}, (name,)) for name in ('empty', 'json', 'nowhere')]
    found += [
        ({'--prompt': ' ', '--prompts': str(world / name)}, (name,)) for name in ('prompts.txt', 'bytes.txt', 'x')
    ]
    found += [
        ({' enhance': None, f' {world / name}': None, '--prompt': ' ', '--output': ' '}, (name,))
        for name in ('empty', 'run', 'video.mp4', 'x')
    ]
    found += [
        ({' reproduce': None, f' {world / name}': None, '--prompt': ' ', '--output': out}, (name,))
        for name in ('video.mp4', 'text.mp4', 'x', 'empty')
    ]
    found += [({' previews': None}, ('previews',)), ({' enhance': None, '--output': ' ', '--prompt': ' '}, ('FOLDER',))]
    found += [({'--prompts': 'x'}, ('--prompts',)), ({'--prompt': ' '}, ('--prompt',))]
    found += [({f'--{field}': value}, (field.rpartition('.')[2],)) for field, value in (
        ('stage1.num_steps', '0'), ('stage1.num_stepss', '3'), ('stage1.frames', '8'), ('stage1.size', '(30, 40)'),
        ('stage1.sampler', 'euler'), ('stage1.guidance_kind', 'x'), ('stage1.guidance_scale', '-1'),
        ('stage2.numerics', 'other'), ('stage2.scale', '0'), ('stage2.width_slices', '0'), ('stage2.sampler', 'x'),
        ('stage2.num_steps', '1.5'), ('stage2.shift', '1e999'), ('stage1.size', '(256,)'), ('stage2.size', '3'),
        ('config.seed', '3'), ('stage3.seed', '1'), ('overlap', '3'), ('scale', '2'), ('num-steps', '3'),
    )]  # fmt: skip
    found += [(clip | {f'--{flag}': value}, (flag,)) for flag, value in (
        ('scale', '0'), ('scale', 'nan'), ('scale', '0.01'), ('size', '10x'), ('size', '15x16'), ('size', '0x0'),
        ('overlap', '-1'), ('overlap', '9'), ('step', '8'), ('num-steps', '0'), ('num-samples', '2'), ('text', 'hash'),
        ('stage2.num_steps', '3'), ('crf', '99'), ('scale', 'inf'),
    )]  # fmt: skip
    found += [(clip | {'--checkpoint': str(world / name)}, (name,)) for name in ('first', *_NO_RUNS)]
    found += [(clip | {'--input': str(world / name)}, (name,)) for name in ('text.mp4', 'empty', 'x.mp4')]
    found += [
        (clip | {'--output': str(world / 'out.avi')}, ('--output',)),
        (clip | {'--checkpoint': ' '}, ('--checkpoint',)),
    ]
    return found


_NO_RUNS = ('empty', 'bare', 'video.mp4', 'text.pt', 'lost_vae', 'no_meta', 'vae.safetensors', 'cut.safetensors', 't5')


def _convert(world: Path) -> list:
    names = ('empty', 'json', 'text.pt', 'empty.pt', 'cut.pt', 'video.mp4', 'bare', 'no_meta', 'cut.safetensors')
    found = [({'--input': str(world / name)}, (name,)) for name in names]
    found += _one(
        '--output', world / 'nowhere/x', world / 'video.mp4', world / 'run', world / 'out.pt', OFFICIAL / 'stage2.pt'
    )
    found += [*_one('--step', 3), ({'--input': ' '}, ('--input',)), ({'--output': ' '}, ('--output',))]
    found += [({'--text': str(OFFICIAL / 't5'), '--dtype': 'float64'}, ('--dtype',))]
    found += [({'--input': str(OFFICIAL / '3d-vae.pt'), '--dtype': 'bfloat16'}, ('--dtype',))]
    run = {'--input': str(world / 'run'), '--output': str(world / 'out.pt')}
    found += [(run | {'--step': '8'}, ('step 8', '--step')), (run | {'--output': str(world / 'out')}, ('--output',))]
    return found


def _export(world: Path) -> list:
    found = [({'--checkpoint': str(world / name)}, (name,)) for name in _NO_RUNS if name != 'lost_vae']
    found += _one('--output', world / 'nowhere/x', world / 'x.pt', world / 'run', world / 'empty', world / 'video.mp4')
    found += [({'--step': '8'}, ('step 8',)), ({'--checkpoint': ' '}, ('--checkpoint',))]
    found += [({'--export-functions': 'cpu'}, ('--size',)), ({'--size': '9x32x32'}, ('--export-functions',))]
    both = {'--export-functions': 'cpu', '--size': '9x32x32'}
    found += [(both | {'--export-functions': 'gpu'}, ('--export-functions',)), (both | {'--size': '9x32'}, ('--size',))]
    found += [
        (both | {'--size': '8x32x32'}, ('frames', '--size')),
        (both | {'--size': '9x30x32'}, ('sides',)),
    ]
    found += [({'--output': str(world / 'out.safetensors'), '--dtype': 'float32'}, ('--dtype',))]
    return found


def _evaluate(world: Path) -> list:
    found = [({'--checkpoint': str(world / name)}, (name,)) for name in (*_NO_RUNS, 'first', 'other')]
    found += (
        _one('--num-clips', 0, -1) + _one('--num-steps', 0, -2) + _one('--max-frames', 0) + _one('--scale', 0, 'nan')
    )
    found += [({'--compare': value}, ('--compare', value)) for value in ('nowhere', 'nofield=1')]
    weak = f'{runs.ROOT}/configs/degradations.py:weak'
    found += [
        ({'--degradation-config': value}, ('--degradation-config', 'programs'))
        for value in (weak, str(world / 'programs/raises.py'))
    ]
    found += [({'--output': ' '}, ('--output',)), ({'--config.seed': '1'}, ('--config.seed',))]
    return found


def _inspect(world: Path) -> list:
    names = [name for name in (*_NO_RUNS, 'json') if name not in ('lost_vae', 'vae.safetensors', 't5')]
    found = [({f' {world / "run"}': ' ', f' {world / name}': None}, (name,)) for name in names]
    found += [({'--step': '8'}, ('step 8',)), ({'--depth': '0'}, ('--depth',)), ({f' {world / "run"}': ' '}, ('path',))]
    vae = {f' {world / "run"}': ' ', f' {world / "vae.safetensors"}': None}
    found += [(vae | {'--step': '7'}, ('--step',)), (vae | {'--verify': None}, ('--verify',))]
    return found
