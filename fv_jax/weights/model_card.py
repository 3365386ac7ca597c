"""The model card (README.md) of exported weights, with the front matter that the Hugging Face Hub reads."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fv_jax.weights import exported_functions

NAME = 'README.md'


@dataclasses.dataclass(frozen=True)
class Card:
    """What every card contains.

    Attributes:
      stage: its kind.
      task: the Hub's name of the task; '' for none.
      license: an identifier of the Hub's list; '' for none.
      base_model: USER/NAME on the Hub of what the weights were tuned from; '' for none.
      about: source, step, parameters, hash and license of the weights.
    """

    stage: str
    task: str
    license: str
    base_model: str
    about: Mapping[str, str]

    def front_matter(self, library: str, tags: Sequence[str]) -> str:
        """Returns the YAML between two lines of ---, every value written as JSON, which is YAML too."""
        fields = {
            'license': self.license.lower(),
            'library_name': library,
            'pipeline_tag': self.task,
            'base_model': self.base_model,
            'tags': [*tags, 'flashvideo'],
        }
        lines = [f'{name}: {json.dumps(value)}' for name, value in fields.items() if value]
        return '\n'.join(['---', *lines, '---'])

    def origin(self) -> list[str]:
        """Returns the lines on where the weights are from."""
        about = self.about
        return [
            f'* source run: `{about["source"]}`, step {about["step"]}',
            f'* parameters: {about["parameters"]}',
            f'* hash of the parameters: `{about["hash"]}`',
            f'* license of the weights: {about["license"]}',
        ]


def render_own(
    name: str, config: Mapping[str, Any], digests: Mapping[str, str], card: Card, functions: Sequence[str]
) -> str:
    """Renders the card of a folder of this project as Markdown.

    Args:
      name: of the weights.
      config: of the run.
      digests: of the VAE and the text encoder.
      card: what every card contains.
      functions: a line for each exported function; empty for none.
    """
    stage = config['stage']
    encoder = stage.get('text', {}).get('encoder')
    needs = [f'* VAE: `{stage["vae"]}`, {_format_digest(digests.get("vae"))}'] if stage.get('vae') else []
    needs += [f'* text encoder: `{encoder}`, {_format_digest(digests.get("text"))}'] if encoder else []
    sections = [
        f'{card.front_matter("fv_jax", ["jax"])}\n# {name}',
        f'Weights of a FlashVideo stage, `{card.stage}`, for fv_jax.',
        '\n'.join([*card.origin(), *needs]),
        'The folder opens like the folder of a run:\n\n'
        "```python\nimport fv_jax\n\nrun = fv_jax.open_run('FOLDER')\n"
        'network = run.network.model(**run.params)\n```',
    ]
    if functions:
        listed = '\n'.join(f'* `{line}`' for line in functions)
        sections.append(
            '## Without fv_jax\n\n`forward/` holds functions of this network that need jax and numpy alone, for these '
            f"shapes:\n\n{listed}\n\n```python\nfolder = 'FOLDER/forward'\n{exported_functions.LOADER}```"
        )
    sections.append(f'## Configuration\n\n```json\n{json.dumps(config, indent=1)}\n```')
    return '\n\n'.join(sections) + '\n'


def render_diffusers(name: str, card: Card, usage: str, notes: Sequence[str]) -> str:
    """Renders the card of a folder for diffusers.

    Args:
      name: of the weights.
      card: what every card contains.
      usage: code that loads and runs it.
      notes: what differs from sampling with fv_jax, a line each.
    """
    sections = [
        f'{card.front_matter("diffusers", ["diffusers"])}\n# {name}',
        f'Weights of a FlashVideo stage, `{card.stage}`, trained with fv_jax, for diffusers.',
        '\n'.join(card.origin()),
        f'```python\n{usage}```',
    ]
    if notes:
        listed = '\n'.join(f'* {note}' for note in notes)
        sections.append(f'## Differences from fv_jax\n\n{listed}')
    return '\n\n'.join(sections) + '\n'


def render_peft(name: str, card: Card, modules: str) -> str:
    """Renders the card of LoRA for PEFT and diffusers. modules: its rank and linears."""
    sections = [
        f'{card.front_matter("diffusers", ["diffusers", "lora"])}\n# {name}',
        f'LoRA of a FlashVideo stage, `{card.stage}`, trained with fv_jax: {modules}.',
        '\n'.join(card.origin()),
        'For a pipeline of the weights that it was trained on:\n\n'
        "```python\npipe.load_lora_weights('FOLDER')\n```\n\n"
        'With fv_jax:\n\n```bash\npython -m fv_jax.export --checkpoint BASE --add-lora FOLDER --output OUT\n```',
    ]
    return '\n\n'.join(sections) + '\n'


def _format_digest(digest: str | None) -> str:
    return f'hash `{digest}`' if digest else 'whose hash the run did not record'
