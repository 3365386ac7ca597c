"""A run of the small VAE, and its parameters written as a file."""

from pathlib import Path

import numpy as np

from fv_jax import export, train
from fv_jax.weights import load_vae
from tests import runs
from tests.golden import measure


def test_vae_is_trained_and_exported(tmp_path, capsys):
    whole = tmp_path / 'whole'
    loop = f'--config.loop.num_steps={measure.NUM_STEPS}', '--config.loop.save_every=1'
    flags = *loop, '--config.data.height=32', '--config.data.width=32'  # of the golden run
    assert train.main(runs.autoencoder(whole, *flags)) == 0
    measure.assert_golden_steps('vae', measure.read_steps(whole))
    (evaluated,) = [row for row in runs.rows(whole) if 'eval/psnr' in row]
    assert evaluated['step'] == 3 and np.isfinite(evaluated['eval/psnr'])
    exports(whole, tmp_path, capsys)


def exports(run: Path, folder: Path, capsys) -> None:
    """The averages, rounded to float16, in a file that a config can name."""
    output = folder / 'vae.safetensors'
    capsys.readouterr()
    assert export.main([f'--checkpoint={run}', f'--output={output}']) == 0
    assert f'{output}: step 3, {output.stat().st_size:,} bytes' in capsys.readouterr().out
    network, averages = load_vae(str(output)), runs.arrays(run, 3)
    kernel = averages["params['trainable']['decoder']['conv_in']['kernel']"]
    np.testing.assert_array_equal(network.decoder.conv_in.kernel[...], kernel.astype(np.float16))
    assert network.config.widths == (4, 4, 4, 4)
    assert not list(folder.glob('.*'))
    for arguments, code, words in (
        ([f'--checkpoint={run}', f'--output={folder}/vae.pt'], 2, 'must end in .safetensors'),
        ([f'--checkpoint={run}', f'--output={folder}/none/vae.safetensors'], 2, 'does not exist'),
        ([f'--checkpoint={folder}', f'--output={output}'], 1, 'contains no checkpoints'),
        ([f'--checkpoint={run}', f'--output={output}', '--step=9'], 1, 'has no step 9; it has 1, 2, 3'),
    ):
        assert export.main(arguments) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith('export: ') and words in line
