"""The summary for a terminal."""

from fv_jax.evaluation.text_table import format_table
from tests.evaluation.report_data import make_data


def test_format_table_has_a_line_for_each_method_in_columns():
    data = make_data()
    lines = format_table(data).splitlines()
    assert [line.split('  ')[0] for line in lines] == ['method', *(method['name'] for method in data['methods'])]
    assert lines[0].split('  ')[-1] == 'NIQE ↓' and 'Sharpness' not in lines[0]
    assert {len(line) for line in lines} == {len(lines[0])}
    assert lines[1].split()[1] == '27.10' and lines[-1].split('  ')[-1].strip() == '4.80'
