"""The Colab notebook, executed from start to end in a process of its own, with small random stages.

Cells are run as Jupyter runs them, in order, in one namespace, and what the last line of a cell is gets shown. No
kernel is needed for that, and so no dependency: the notebook has no magics. What it installs is a copy of this tree,
into a folder of the test's own and without the package's dependencies, which are here.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from fv_jax.data.video import containers, decoding
from fv_jax.sampling import metadata
from tests.sampling import tiny

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / 'launch' / 'flashvideo_colab.ipynb'

RUNNER = """
import ast, json, sys

class Jupyter:
    def __init__(self):
        self.shown = []
        self.names = {'__name__': '__main__', 'display': self.show}

    def show(self, value):
        self.shown.append(value._repr_html_())

    def run(self, source):
        module = ast.parse(source)
        last = module.body.pop() if isinstance(module.body[-1], ast.Expr) else None
        exec(compile(module, '<cell>', 'exec'), self.names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), '<cell>', 'eval'), self.names)
            if value is not None:
                self.show(value)

jupyter = Jupyter()
for source in json.load(open(sys.argv[1])):
    jupyter.run(source)
print('package', jupyter.names['fv_jax'].__file__)
json.dump(jupyter.shown, open('shown.json', 'w'))
"""


def cells() -> list[dict]:
    return json.loads(NOTEBOOK.read_text(encoding='utf-8'))['cells']


def source(cell: dict) -> str:
    return ''.join(cell['source'])


def test_notebook_has_no_outputs():
    notebook = json.loads(NOTEBOOK.read_text(encoding='utf-8'))
    assert (notebook['nbformat'], notebook['nbformat_minor']) == (4, 5)
    assert len({cell['id'] for cell in cells()}) == len(cells())
    for cell in cells():
        assert cell['cell_type'] in ('markdown', 'code')
        assert cell['cell_type'] == 'markdown' or (cell['outputs'] == [] and cell['execution_count'] is None)


def test_notebook_runs(tmp_path):
    tiny.save_vae(tmp_path / 'vae.safetensors')
    tiny.save_pipeline(tmp_path / 'weights', tmp_path / 'vae.safetensors')
    copied = tmp_path / 'source'
    copied.mkdir()
    for name in ('setup.py', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, copied)
    for name in ('fv_jax', 'configs'):
        shutil.copytree(ROOT / name, copied / name, ignore=shutil.ignore_patterns('__pycache__'))
    installed = tmp_path / 'installed'
    installed.mkdir()  # or Python would not look into it

    chosen = {
        'choices': f'SOURCE = {copied.as_uri()!r}\n'
        f'WEIGHTS = {str(tmp_path / "weights")!r}\n'
        "PROMPTS = ['a dog', 'a cat']\nNUM_PREVIEWS = 1\nSEED = 5",
        'pick': 'PICK = 1\nchosen = previews[PICK]\nchosen',
    }
    code = [chosen.pop(cell['id'], source(cell)) for cell in cells() if cell['cell_type'] == 'code']
    assert not chosen
    (tmp_path / 'cells.json').write_text(json.dumps(code))
    environment = os.environ | {
        'PYTHONPATH': str(installed),
        'PIP_TARGET': str(installed),
        'PIP_NO_DEPS': '1',
        'PIP_NO_INDEX': '1',
        'PIP_NO_BUILD_ISOLATION': '0',  # pip reads it so
        'JAX_PLATFORMS': 'cpu',
        'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    }
    command = [sys.executable, '-c', RUNNER, 'cells.json']
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f'package {installed}' in done.stdout

    shown = json.loads((tmp_path / 'shown.json').read_text())
    both, chosen, side_by_side = shown
    assert both.index('a dog (seed 5)') < both.index('a cat (seed 6)') and 'a cat (seed 6)' in chosen
    assert side_by_side.count('a cat (seed 6)') >= 2  # the preview and the video
    assert [html.count('data:video/mp4') for html in shown] == [2, 1, 2]
    made = metadata.from_json(containers.read_comment(tmp_path / 'video.mp4'))
    assert (made.preview.prompt, made.preview.seed, made.enhance.seed) == ('a cat', 6, 6)
    frames = decoding.decode(tmp_path / 'video.mp4').frames
    assert frames.shape == (9, 64, 128, 3) and np.std(frames) > 1
