"""The report of an evaluation: verdict, marks, order, values that are not defined."""

import copy
import json

import pytest

from fv_jax.core.report import blocks
from fv_jax.core.report.blocks import Mark
from fv_jax.core.report.markdown import to_markdown
from fv_jax.core.report.page import to_html
from fv_jax.evaluation.report_page import build_report, describe_measurement, describe_verdict
from fv_jax.evaluation.report_values import Outcome, find_outcome, join_words, read_metrics, read_number
from tests.evaluation.report_data import HOSTILE, make_data, make_videos, write_media


def headings(report, level=2):
    return [block.text for block in report.blocks if isinstance(block, blocks.Heading) and block.level == level]


def tables(report):
    return [block for block in report.blocks if isinstance(block, blocks.Table)]


def column(table, title):
    (index,) = [i for i, column in enumerate(table.columns) if column.title == title]
    return {row[0].text: row[index] for row in table.rows}


def test_data_is_json_and_the_sections_have_their_order():
    data = json.loads(json.dumps(make_data()))
    report = build_report(data, [])
    assert headings(report) == [
        'Summary',
        'Paired differences',
        'Number of steps',
        'Clips',
        'Not computed',
        'Settings',
    ]
    assert headings(report, 3) == ['city', HOSTILE]


def test_first_paragraph_reports_what_was_measured():
    lead = build_report(make_data(), []).blocks[0]
    assert lead.lead and lead.text.startswith(
        '2 clips of 17 frames at 192x288 pixels, enlarged from 48x72, weak degradation; 8 methods by 10 metrics. '
        'Network: runs/a at step 1000.'
    )


def test_clips_of_several_sizes_are_reported_as_a_range():
    data = make_data()
    data['clips'][0] |= {'frames': 49, 'size': [1072, 1920], 'input_size': None}
    text = describe_measurement(data)
    assert text.startswith('2 clips of 17 to 49 frames at 192x288 to 1072x1920 pixels, enlarged from 48x72, weak')


def test_verdict_counts_perceptual_metrics_with_a_reference_alone():
    data = make_data(steps=(1, 4))
    text = describe_verdict(data, read_metrics(data))
    assert text == (
        'Compared with bilinear by perceptual metrics with a reference, 95 % confidence. '
        '1 step: better by LPIPS (AlexNet) and DISTS; no significant difference by VMAF-NEG. '
        '4 steps: better by LPIPS (AlexNet), DISTS and VMAF-NEG.'
    )


def test_verdict_joins_networks_with_one_finding():
    data = make_data(steps=(2, 4, 8))
    assert '2 steps, 4 steps and 8 steps: better by' in describe_verdict(data, read_metrics(data))


def test_verdict_without_perceptual_metrics_concludes_nothing():
    data = make_data()
    data['paired'] = [pair for pair in data['paired'] if pair['metric'] in ('psnr', 'niqe')]
    assert 'nothing is concluded' in describe_verdict(data, read_metrics(data))


@pytest.mark.parametrize(
    ('key', 'low', 'high', 'outcome'),
    [
        ('psnr', 0.1, 0.5, Outcome.BETTER),
        ('psnr', -0.5, -0.1, Outcome.WORSE),
        ('dists', 0.1, 0.5, Outcome.WORSE),
        ('dists', -0.5, -0.1, Outcome.BETTER),
        ('dists', -0.5, 0.0, Outcome.NO_DIFFERENCE),
        ('psnr', None, None, Outcome.UNDECIDED),
        ('sharpness', 1.0, 2.0, None),
    ],
)
def test_outcome_of_an_interval(key, low, high, outcome):
    assert find_outcome(read_metrics(make_data())[key], {'low': low, 'high': high}) is outcome


def test_best_is_marked_but_never_the_truth_or_a_ceiling():
    table = tables(build_report(make_data(), []))[0]
    for title, best in {'PSNR ↑': 'bicubic', 'DISTS ↓': '8 steps', 'NIQE ↓': '8 steps'}.items():
        assert [name for name, cell in column(table, title).items() if cell.mark is Mark.BEST] == [best], title
    assert all(cell.mark is Mark.NONE for cell in column(table, 'Sharpness').values())
    assert column(table, 'PSNR ↑')['bilinear'] == blocks.Cell('27.10', '± 0.68')


def test_values_that_look_equal_are_all_best():
    data = make_data()
    data['summary']['bilinear']['psnr']['mean'] = 27.3801
    table = tables(build_report(data, []))[0]
    cells = column(table, 'PSNR ↑')
    assert [name for name, cell in cells.items() if cell.mark is Mark.BEST] == ['bilinear', 'bicubic']


def test_values_that_are_not_defined():
    table = tables(build_report(make_data(), []))[0]
    assert column(table, 'PSNR ↑')['ground truth'].text == '\N{EN DASH}'
    assert column(table, 'XPSNR ↑')['ground truth'].text == '∞'
    assert read_number(float('nan')) is None and read_number('inf') == float('inf')


def test_paired_differences_are_marked_by_direction():
    table = tables(build_report(make_data(), []))[1]
    cells = column(table, '1 step')
    assert table.columns[1].detail == 'minus bilinear'
    assert cells['LPIPS (AlexNet) ↓'] == blocks.Cell(
        '\N{MINUS SIGN}0.031', '[\N{MINUS SIGN}0.047, \N{MINUS SIGN}0.015]', Mark.BETTER
    )
    assert cells['Flicker ↓'].mark is Mark.WORSE and cells['Flicker ↓'].text == '+0.0009'
    assert cells['PSNR ↑'].mark is Mark.NONE and cells['Sharpness'].mark is Mark.NONE


def test_one_clip_has_neither_errors_nor_intervals(tmp_path):
    report = build_report(make_data(clips=('city',)), [])
    assert report.blocks[0].text.startswith('1 clip of 17 frames')
    assert 'undecided (too few clips) by LPIPS (AlexNet), DISTS and VMAF-NEG' in report.blocks[0].text
    assert column(tables(report)[1], '1 step')['DISTS ↓'].detail == ''
    assert column(tables(report)[0], 'DISTS ↓')['bilinear'].detail == ''
    to_html(report)
    to_markdown(report, tmp_path)


def test_charts_need_two_numbers_of_steps():
    assert 'Number of steps' not in headings(build_report(make_data(steps=(4,)), []))
    (charts,) = [block for block in build_report(make_data(), []).blocks if isinstance(block, blocks.Charts)]
    assert [chart.title for chart in charts.charts] == ['PSNR', 'LPIPS (AlexNet)', 'DISTS', 'VMAF-NEG']
    (line,) = charts.charts[0].lines
    assert [(point.x, point.y) for point in line.points] == [(1, 26.81), (2, 26.60), (4, 26.41), (8, 26.30)]
    assert charts.charts[0].levels == [blocks.Level('bilinear', 27.10)]


def test_checkpoints_are_lines_of_their_own():
    data = make_data()
    others = [copy.deepcopy(method) for method in data['methods'] if method['kind'] == 'network']
    for method in others:
        data['summary'][f'b {method["name"]}'] = data['summary'][method['name']]
        method |= {'name': f'b {method["name"]}', 'checkpoint': 'runs/b'}
    data['methods'] += others
    (charts,) = [block for block in build_report(data, []).blocks if isinstance(block, blocks.Charts)]
    assert [line.name for line in charts.charts[0].lines] == ['runs/a, step 1000', 'runs/b, step 1000']


def test_sets_are_columns_of_the_summary_alone():
    data = make_data()
    fvd = {'label': 'FVD', 'direction': 'lower', 'unit': '', 'digits': 1, 'frames': 'all', 'reference': True}
    data['metrics']['fvd'] = fvd
    data['sets'] = {
        'bilinear': {'fvd': {'value': 410.0, 'clips': 64}},
        '4 steps': {'fvd': {'value': 310.0, 'clips': 64}},
    }
    found = tables(build_report(data, []))
    assert column(found[0], 'FVD ↓')['4 steps'] == blocks.Cell('310.0', '64 clips', Mark.BEST)
    assert all('FVD ↓' not in [c.title for c in table.columns] for table in found[1:])


def test_media_of_a_clip(tmp_path):
    videos = make_videos((32, 48), 3)
    report = build_report(make_data(), write_media(tmp_path / 'media', (HOSTILE,), videos))
    (comparison,) = [block for block in report.blocks if isinstance(block, blocks.VideoComparison)]
    assert comparison.name == HOSTILE and comparison.size == (32, 48) and comparison.fps == 12
    assert (comparison.left, comparison.right) == ('bilinear', '4 steps')
    assert '&lt;b&gt;&amp;&quot;x' in to_html(report)
    text = to_markdown(report, tmp_path / 'media')
    assert '[4 steps](media/clip%200/4%20steps.mp4)' in text and '](media/clip%200/strip.png)' in text


def test_bad_input_is_refused(tmp_path):
    media = write_media(tmp_path, ('village',), make_videos((32, 48), 2))
    with pytest.raises(ValueError, match="'village': no such clip in the report; the clips are"):
        build_report(make_data(), media)
    with pytest.raises(ValueError, match='format 2 of a report is not known; this version reads 1'):
        build_report(make_data() | {'format': 2}, [])
    with pytest.raises(ValueError, match=r"metrics of sets \['fvd'\] are not all described"):
        build_report(make_data() | {'sets': {'bilinear': {'fvd': {'value': 1.0, 'clips': 64}}}}, [])


def test_words_are_joined():
    assert [join_words(words) for words in ([], ['a'], ['a', 'b'], ['a', 'b', 'c'])] == [
        '',
        'a',
        'a and b',
        'a, b and c',
    ]
