"""Metrics in Python files of a folder."""

import numpy as np
import pytest

from fv_jax.evaluation.metric_files import read_metric_files
from fv_jax.evaluation.suite import Suite

VIDEO = np.full((3, 8, 8, 3), 51, np.uint8)


def write(folder, **files):
    for name, text in files.items():
        (folder / f'{name}.py').write_text(text)
    return folder


def test_metrics_of_a_folder_are_measured(tmp_path):
    write(
        tmp_path,
        musiq="DIRECTION = 'higher'\ndef score(frames): return frames.mean()",
        dover="DIRECTION = 'lower'\ndef score(frames): return len(frames)",
        _helper='raise RuntimeError',
    )
    suite = Suite(read_metric_files(tmp_path))
    assert [(m.name, m.direction) for m in suite.metrics] == [('dover', 'lower'), ('musiq', 'higher')]
    assert suite.measure(VIDEO, VIDEO, 'a') == {'dover': 3, 'musiq': 51}


@pytest.mark.parametrize(
    ('body', 'reason'),
    [("raise KeyError('x')", "m.py: score failed: 'x'"), ("return float('nan')", 'm.py: score returned nan')],
)
def test_a_score_that_fails_is_not_computed(tmp_path, body, reason):
    suite = Suite(read_metric_files(write(tmp_path, m=f"DIRECTION = 'higher'\ndef score(frames): {body}")))
    assert suite.measure(VIDEO, None, 'a') == {'m': None}
    assert suite.not_computed['m, a'].endswith(reason)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (None, 'holds no metrics'),
        ("DIRECTION = 'up'\ndef score(frames): return 1", "m.py: DIRECTION='up'; must be one of higher, lower"),
        ("DIRECTION = 'lower'", 'm.py: has no function score'),
        ('import missing_package', "m.py: No module named 'missing_package'"),
    ],
)
def test_files_that_define_no_metric(tmp_path, text, message):
    if text is not None:
        write(tmp_path, m=text)
    with pytest.raises(ValueError, match=message):
        read_metric_files(tmp_path)
