"""Official weight files to our networks, read without torch."""

from pathlib import Path

from fv_jax.models.dit import DiT
from fv_jax.models.vae import VAE
from fv_jax.weights import compact, dit, embedded, torch_file, vae

__all__ = ['load_official', 'load_vae', 'vae_path']


def load_official(path: str | Path) -> DiT | VAE:
    """The network in an official file: stage1.pt or stage2.pt gives a DiT, 3d-vae.pt a VAE; float32, ready to call.

    What the file holds is told from its keys, every size from its tensors' shapes.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a whole torch file, one that holds more than tensors, one of no known kind, or one whose tensors
        do not make a whole network (the message lists every unknown, missing and misshapen key).
    """
    contents = torch_file.read(path)
    if not isinstance(contents, dict):
        raise ValueError(f'{path}: holds a {type(contents).__name__}, not an official checkpoint')
    for outer, is_kind, load in (('module', dit.is_dit, dit.load), ('state_dict', vae.is_vae, vae.load)):
        tensors = contents.get(outer)
        if isinstance(tensors, dict) and is_kind(tensors):
            return load(str(path), tensors)
    raise ValueError(
        f"{path}: neither a DiT ('module' with keys {dit.PREFIX}*) nor a VAE ('state_dict' with keys encoder.* and "
        f'decoder.*); it has {", ".join(map(repr, list(contents)[:5])) or "nothing"}'
    )


def vae_path(name: str) -> Path:
    """The file of the VAE that a configuration names."""
    return embedded.VAE_TINY if name == 'embedded' else Path(name)


def load_vae(name: str) -> VAE:
    """The VAE that a configuration names: 'embedded', the small one in the package; a .safetensors of ours; or an
    official 3d-vae.pt.

    Raises FileNotFoundError or ValueError as `load_official` does, and when the file holds something else.
    """
    path = vae_path(name)
    if path.suffix == '.safetensors':
        return compact.load_vae(path)
    network = load_official(path)
    if not isinstance(network, VAE):
        raise ValueError(f'{name}: holds a {type(network).__name__}, not a VAE')
    return network
