"""The model card (README.md) of exported weights."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

NAME = 'README.md'


def render(
    name: str,
    config: Mapping[str, Any],
    digests: Mapping[str, str],
    about: Mapping[str, str],
    forwards: Sequence[str],
    loader: str,
) -> str:
    """Renders the card as Markdown.

    Args:
      name: of the weights.
      config: of the run.
      digests: of the VAE and the text encoder.
      about: source, step, parameters, hash and license.
      forwards: a line for each exported function; empty for none.
      loader: the code that loads them, given `folder`.
    """
    stage = config['stage']
    encoder = stage.get('text', {}).get('encoder')
    needs = [f'* VAE: `{stage["vae"]}`, {_format_digest(digests.get("vae"))}'] if stage.get('vae') else []
    needs += [f'* text encoder: `{encoder}`, {_format_digest(digests.get("text"))}'] if encoder else []
    sections = [
        f'---\nlicense: {json.dumps(about["license"])}\nlibrary_name: fv_jax\n---\n# {name}',
        f'Weights of a FlashVideo stage, `{stage["kind"]}`, for fv_jax.',
        '\n'.join(
            [
                f'* source run: `{about["source"]}`, step {about["step"]}',
                f'* parameters: {about["parameters"]}',
                f'* hash of the parameters: `{about["hash"]}`',
                *needs,
                f'* license of the weights: {about["license"]}',
            ]
        ),
        'The folder opens like the folder of a run:\n\n'
        "```python\nimport fv_jax\n\nrun = fv_jax.open_run('FOLDER')\n"
        'network = run.network.model(**run.params)\n```',
    ]
    if forwards:
        listed = '\n'.join(f'* `{line}`' for line in forwards)
        sections.append(
            '## Without fv_jax\n\n`forward/` holds functions of this network that need jax and numpy alone, for these '
            f"shapes:\n\n{listed}\n\n```python\nfolder = 'FOLDER/forward'\n{loader}```"
        )
    sections.append(f'## Configuration\n\n```json\n{json.dumps(config, indent=1)}\n```')
    return '\n\n'.join(sections) + '\n'


def _format_digest(digest: str | None) -> str:
    return f'hash `{digest}`' if digest else 'whose hash the run did not record'
