"""Configuration: strict both ways, with messages a person can act on."""

import dataclasses
import json
from typing import Literal

import numpy as np
import pytest

from fv_jax.core import config
from fv_jax.core.config import ConfigError, check_choice, check_range


@dataclasses.dataclass(frozen=True)
class Model:
    embed_dim: int = 64
    dropout: float = 0.0
    remat: Literal['none', 'full'] = 'none'

    def __post_init__(self):
        if self.embed_dim % 64:
            raise ConfigError(f'embed_dim={self.embed_dim}: must be a multiple of 64')


@dataclasses.dataclass(frozen=True)
class Run:
    name: str
    model: Model = Model()
    size: tuple[int, int] = (256, 480)
    chunks: tuple[int, ...] = (17, 16)
    limit: int | None = None
    resume: bool = True


def test_config_round_trip_through_json():
    run = Run('a', Model(128, 0.5, 'full'), size=(32, 64), chunks=(9,), limit=3, resume=False)
    plain = json.loads(json.dumps(config.to_dict(run)))
    assert config.build(Run, plain) == run
    assert isinstance(config.build(Run, plain).chunks, tuple)


def test_build_applies_defaults_in_nested_configs():
    run = config.build(Run, {'name': 'a', 'model': {'embed_dim': 192}})
    assert run == Run('a', Model(192))
    assert config.build(Run, {'name': 'a', 'limit': None}).limit is None
    dropout = config.build(Model, {'dropout': 1}).dropout
    assert dropout == 1.0 and type(dropout) is float


def test_build_takes_scalars_and_arrays_of_numpy_as_pythons():
    values = {
        'name': np.str_('a'),
        'model': {'embed_dim': np.int64(128), 'dropout': np.float32(0.5), 'remat': np.str_('full')},
        'size': np.array([32, 64]),
        'chunks': [np.int32(9), np.int8(3)],
        'limit': np.uint16(3),
        'resume': np.False_,
    }
    run = config.build(Run, values)
    assert run == Run('a', Model(128, 0.5, 'full'), size=(32, 64), chunks=(9, 3), limit=3, resume=False)
    json.dumps(config.to_dict(run))
    assert config.build(Model, {'dropout': np.int32(1)}).dropout == 1.0
    with pytest.raises(ConfigError, match=r'config.limit: expected int, got 2.5 \(float\)'):
        config.build(Run, {'name': 'a', 'limit': np.float64(2.5)})


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'nmae': 'a'}, "config.nmae: unknown key; did you mean 'name'?"),
        ({'name': 'a', 'model': {'embed_dims': 64}}, "config.model.embed_dims: unknown key; did you mean 'embed_dim'?"),
        ({'name': 'a', 'zzz': 1}, 'config.zzz: unknown key; known: chunks, limit, model, name, resume, size'),
        ({}, 'config: missing name'),
        ([1], 'config: expected a group of fields, got [1]'),
        ({'name': 'a', 'limit': 2**32}, 'config.limit=4294967296: must be below 4294967296'),
        ({'name': 'a', 'model': {'dropout': float('nan')}}, 'config.model.dropout=nan: must be a finite number'),
        ({'name': 'a', 'model': {'dropout': float('-inf')}}, 'config.model.dropout=-inf: must be a finite number'),
        ({'name': 3}, 'config.name: expected str, got 3 (int)'),
        ({'name': None}, "config.name: must not be none; expected str; '' is an empty one"),
        ({'name': 'a', 'model': None}, 'config.model: must not be none; expected a group of fields'),
        ({'name': 'a', 'size': None}, 'config.size: must not be none; expected a sequence'),
        ({'name': 'a', 'resume': 1}, 'config.resume: expected bool, got 1 (int)'),
        ({'name': 'a', 'limit': True}, 'config.limit: expected int, got True (bool)'),
        ({'name': 'a', 'limit': 2.5}, 'config.limit: expected int, got 2.5 (float)'),
        ({'name': 'a', 'model': 3}, 'config.model: expected a group of fields, got 3'),
        ({'name': 'a', 'model': {'dropout': True}}, 'config.model.dropout: expected float, got True (bool)'),
        ({'name': 'a', 'model': {'remat': 'ful'}}, "config.model.remat: 'ful' is not a choice; did you mean 'full'?"),
        ({'name': 'a', 'size': (1, 2, 3)}, 'config.size: expected 2 values, got 3 in (1, 2, 3)'),
        ({'name': 'a', 'size': 256}, 'config.size: expected a sequence, got 256'),
        ({'name': 'a', 'chunks': [17, 'x']}, "config.chunks[1]: expected int, got 'x' (str)"),
        ({'name': 'a', 'model': {'embed_dim': 65}}, 'config.model.embed_dim=65: must be a multiple of 64'),
    ],
)
def test_build_error_is_one_line(values, message):
    with pytest.raises(ConfigError) as error:
        config.build(Run, values)
    assert str(error.value) == message


def test_did_you_mean():
    assert config.did_you_mean('lerning_rate', ['learning_rate', 'batch']) == "did you mean 'learning_rate'?"
    assert config.did_you_mean('q', ['b', 'a']) == 'known: a, b'


@dataclasses.dataclass(frozen=True)
class Fields:
    number: float | None = 3
    pair: tuple[float, float] = (1, 2)
    choice: str = 'full'


@pytest.mark.parametrize(
    ('values', 'limits', 'message'),
    [
        ({'number': 0}, {'low': 1}, 'number=0: must be at least 1'),
        ({'number': 0}, {'above': 0}, 'number=0: must be positive'),
        ({'number': 1, 'pair': (2, 3)}, {'above': 1, 'hint': 'use 2'}, 'number=1: must be above 1; use 2'),
        ({'number': 4}, {'low': 0, 'high': 3.5}, 'number=4: must be from 0 to 3.5'),
        ({'number': 1.0}, {'low': 0, 'below': 1}, 'number=1.0: must be at least 0 and below 1'),
        ({'number': float('nan')}, {'above': 0}, 'number=nan: must be positive'),
        ({'pair': (0, 2)}, {'low': 1}, 'pair=(0, 2): must be at least 1'),
        ({'pair': (3, 2)}, {'low': 1, 'high': 9}, 'pair=(3, 2): must be from 1 to 9, the smaller first'),
    ],
)
def test_check_range_names_field_value_and_limits(values, limits, message):
    with pytest.raises(ConfigError) as error:
        check_range(Fields(**values), 'number', 'pair', **limits)
    assert str(error.value) == message


def test_check_range_accepts_values_in_the_range():
    check_range(Fields(), 'number', 'pair', low=1, high=3)
    check_range(Fields(number=None, pair=(2, 2)), 'number', 'pair', above=0, below=3)


def test_check_choice_names_the_choices_and_the_nearest():
    check_choice(Fields(), 'choice', choices=('none', 'full'))
    with pytest.raises(ConfigError) as error:
        check_choice(Fields(choice='ful'), 'choice', choices=('none', 'full'))
    assert str(error.value) == "choice=ful: must be one of none, full; did you mean 'full'?"
    with pytest.raises(ConfigError, match=r'choice=x: must be one of none, full$'):
        check_choice(Fields(choice='x'), 'choice', choices=('none', 'full'))
