"""launch/Dockerfile, by reading it: there is no Docker where the tests run."""

import ast
import re

from tests.launch.scripts import LAUNCH

ROOT = LAUNCH.parent
TEXT = (LAUNCH / 'Dockerfile').read_text()
STEPS = [tuple(line.split(maxsplit=1)) for line in TEXT.splitlines() if line and not line.startswith('#')]
SETUP = (ROOT / 'setup.py').read_text()


def steps(name: str) -> list[str]:
    return [value for key, value in STEPS if key == name]


def extras() -> set[str]:
    values = [
        node.value
        for node in ast.walk(ast.parse(SETUP))
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', None) == 'EXTRAS'
    ]
    return set(ast.literal_eval(values[0]))


def test_dockerfile_base_image_has_a_supported_python():
    (image,) = steps('FROM')
    needed = re.search(r"python_requires='>=3\.(\d+)'", SETUP)
    assert image == 'python:3.12-slim' and int(needed[1]) <= 12


def test_dockerfile_installs_an_extra_of_the_package():
    arguments = dict(value.split('=') for value in steps('ARG'))
    named = {arguments['EXTRA'], *re.findall(r'--build-arg EXTRA=([\w,]+)', TEXT)}
    assert named == {'tpu,gcs', 'cuda,gcs'} and {'tpu', 'cuda', 'gcs'} <= extras()
    assert [step for step in steps('RUN') if 'pip install ".[${EXTRA}]"' in step]


def test_dockerfile_users():
    """The one it names are there: root, and the one that it makes."""
    arguments = dict(value.split('=') for value in steps('ARG'))
    assert steps('USER') == ['${RUN_AS}']
    made = [step.split()[-1] for step in steps('RUN') if step.startswith('useradd')]
    assert made == ['fv']
    assert {arguments['RUN_AS'], *re.findall(r'--build-arg RUN_AS=(\w+)', TEXT)} == {'root', 'fv'}


def test_dockerfile_copies_existing_files():
    """The launch scripts say `bash launch/run.sh` and `--config=configs/...`, from where the image's commands start."""
    sources = [source for step in steps('COPY') for source in step.split()[:-1]]
    assert all((ROOT / source).exists() for source in sources)
    assert {'fv_jax', 'configs', 'launch', 'setup.py', 'README.md'} <= set(sources)
    assert steps('WORKDIR') == ['/app']
