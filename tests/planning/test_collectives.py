"""Bytes sent by collectives, parsed from HLO text."""

import pytest

from fv_jax.planning.collectives import parse_collectives, sum_estimated_cycles

PROGRAM = """HloModule jit_step, is_scheduled=true

%condition (p: (s32[], f32[8,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(LIMIT)
  %p = (s32[]{:T(128)}, f32[8,4]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%piece.1 (p.1: f32[2,4]) -> f32[8,4] {
  %p.1 = f32[2,4]{1,0} parameter(0)
  ROOT %all-gather.1 = f32[8,4]{1,0} all-gather(%p.1), replica_groups=[2,4]<=[8], frontend_attributes={chain_id="7"}
}

%body (q: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %q = (s32[]{:T(128)}, f32[8,4]{1,0}) parameter(0)
  %one = s32[] constant(2)
  %j = s32[] get-tuple-element(%q), index=0
  %next = s32[] add(%j, %one)
  %x = f32[8,4]{1,0:T(8,128)} get-tuple-element(%q), index=1
  %kernel = f32[8,4] custom-call(%x), backend_config={"text":
"a line of its own
}}, metadata={op_name="kernel"}
  %cut = f32[2,4]{1,0} slice(%x), slice={[0:2], [0:4]}
  %fused = f32[8,4]{1,0} fusion(%cut), kind=kCustom, calls=%piece.1
  %shifted = (f32[8,4]{1,0}, f32[8,4], u32[], u32[]) collective-permute-start(%fused), source_target_pairs={{0,1},{1,0}}
  %done = f32[8,4]{1,0} collective-permute-done(%shifted)
  ROOT %tuple.2 = (s32[]{:T(128)}, f32[8,4]{1,0}) tuple(%next, %done)
}

ENTRY %main (a: f32[8,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %from = s32[] copy(%zero)
  %tuple.1 = (s32[]{:T(128)}, f32[8,4]{1,0}) tuple(%from, %a)
  %loop = (s32[]{:T(128)}, f32[8,4]{1,0}) while(%tuple.1), condition=%condition, body=%body
  %y = f32[8,4]{1,0} get-tuple-element(%loop), index=1
  %piece = f32[2,4]{1,0} slice(%y), slice={[0:2], [0:4]}
  %again = f32[8,4]{1,0} fusion(%piece), kind=kCustom, calls=%piece.1
  %sum = (bf16[8,4]{1,0}, f32[4]{0}) all-reduce(%again, %y), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add
  %z = f32[1,4]{1,0} reduce-scatter(%y), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  ROOT %out = f32[8,4]{1,0} all-to-all(%y), replica_groups={}, dimensions={0}
}
"""


def test_collectives_in_loops_fusions_and_chains_are_counted():
    traffic = parse_collectives(PROGRAM.replace('LIMIT', '10'), 8)
    assert traffic.unknown_loops == ()
    loops = 5  # from 0 by 2 to 10
    assert traffic.counts['collective-permute'] == loops
    assert traffic.sent_bytes['collective-permute'] == loops * 8 * 4 * 4
    assert traffic.sent_bytes['all-reduce'] == 2 * 3 / 4 * (8 * 4 * 2 + 4 * 4)
    assert traffic.sent_bytes['reduce-scatter'] == 7 * 4 * 4
    assert traffic.sent_bytes['all-to-all'] == 7 / 8 * 8 * 4 * 4
    # The fusion is called from two places.
    assert traffic.sent_bytes['all-gather'] == (loops + 1) * 3 / 4 * 8 * 4 * 4
    assert traffic.total_bytes == sum(traffic.sent_bytes.values())


def test_padding_of_tiles_is_sent():
    """Tiles are of the last two dimensions in memory, the first of the order the fastest."""
    start = 'HloModule m\n\nENTRY %main (a: bf16[2]) -> bf16[2] {\n  %a = bf16[2]{0} parameter(0)\n'
    for result, values in (
        ('bf16[4,100,64]{2,1,0:T(8,128)(2,1)S(1)}', 4 * 104 * 128),
        ('bf16[4,64,100]{1,2,0:T(8,128)(2,1)}', 4 * 104 * 128),
        ('bf16[4,64,128]{2,1,0:T(8,128)(2,1)}', 4 * 64 * 128),
        ('bf16[100]{0:T(1024)}', 1024),
        ('bf16[4,100,64]{2,1,0}', 4 * 100 * 64),
    ):
        traffic = parse_collectives(f'{start}  ROOT %x = {result} all-gather(%a), replica_groups={{}}\n}}\n', 4)
        assert traffic.sent_bytes == {'all-gather': 3 / 4 * 2 * values}, result


@pytest.mark.parametrize(
    'instruction, package, link',
    [
        ('all-gather(%a), replica_groups={{0,1},{2,3}}', 1 / 2, 0),
        ('all-gather(%a), replica_groups=[2,2]<=[4]', 1 / 2, 0),
        ('all-gather(%a), replica_groups={{0,2},{1,3}}', 0, 2 * 1 / 2),  # two devices of a package share a link
        ('all-gather(%a), replica_groups=[2,2]<=[2,2]T(1,0)', 0, 2 * 1 / 2),
        ('all-gather(%a), replica_groups={}', 0, 3 / 4),  # a ring: 0 sends to 1, 1 to 2 of the next package
        ('collective-permute(%a), source_target_pairs={{0,1},{1,0},{2,3},{3,2}}', 1, 0),
        ('collective-permute(%a), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}', 0, 1),
        ('collective-permute(%a), source_target_pairs={{0,2},{1,3},{2,0},{3,1}}', 0, 2),
    ],
)
def test_bytes_in_a_package_and_over_links(instruction, package, link):
    start = 'HloModule m\n\nENTRY %main (a: f32[8]) -> f32[8] {\n  %a = f32[8]{0} parameter(0)\n'
    traffic = parse_collectives(f'{start}  ROOT %x = f32[8]{{0}} {instruction}\n}}\n', 4, 2)
    assert (traffic.package_bytes, traffic.link_bytes) == (package * 32, link * 32)
    alone = parse_collectives(f'{start}  ROOT %x = f32[8]{{0}} {instruction}\n}}\n', 4)
    assert (alone.package_bytes, alone.link_bytes) == (0, alone.total_bytes)


def test_collectives_of_called_computations_are_counted():
    text = PROGRAM.replace('LIMIT', '10').replace(
        'fusion(%cut), kind=kCustom, calls=%piece.1', 'custom-call-start(%cut), called_computations={%piece.1}'
    )
    assert parse_collectives(text, 8) == parse_collectives(PROGRAM.replace('LIMIT', '10'), 8)


def test_chained_all_gather_counts_once():
    """The first step of the chain is outside of a loop, the others are in it."""
    body = PROGRAM.replace('LIMIT', '10')
    start = (
        '%piece.0 (p.0: f32[2,4]) -> f32[8,4] {'
        + body.split('%piece.1 (p.1: f32[2,4]) -> f32[8,4] {')[1].split('\n}\n')[0].replace('.1', '.0')
        + '\n}\n\n'
    )
    text = body.replace('ENTRY', start + 'ENTRY').replace(
        'fusion(%piece), kind=kCustom, calls=%piece.1', 'fusion(%piece), kind=kCustom, calls=%piece.0'
    )
    assert parse_collectives(text, 8).counts['all-gather'] == 1


def test_loop_of_unknown_trip_count_counts_once_and_is_named():
    text = PROGRAM.replace('constant(LIMIT)', 'negate(%p)')
    traffic = parse_collectives(text, 8)
    assert traffic.unknown_loops == ('loop',)
    assert traffic.counts['collective-permute'] == 1


@pytest.mark.parametrize(
    'text', ['', 'HloModule nothing\n\nENTRY %main () -> f32[] {\n  ROOT %c = f32[] constant(1)\n}\n']
)
def test_program_without_collectives_sends_nothing(text):
    assert parse_collectives(text, 1).total_bytes == 0


def test_estimated_cycles_are_those_of_all_runs():
    text = PROGRAM.replace('LIMIT', '10')
    for start, cycles in (('%shifted = ', 7), ('%again = ', 1000)):
        line = next(line for line in text.splitlines() if start in line)
        text = text.replace(line, f'{line}, backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}')
    assert sum_estimated_cycles(text) == 5 * 7 + 1000
    assert sum_estimated_cycles(text.replace('"1000"', f'"{2**63 - 1}"')) == 5 * 7, (
        'what has no estimate is not counted'
    )
    assert sum_estimated_cycles(PROGRAM) == 0
