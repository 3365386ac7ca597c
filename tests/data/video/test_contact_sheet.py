"""Contact sheets and labels."""

import numpy as np

from fv_jax.data.video.contact_sheet import add_label, contact_sheet

COLOURS = {'input': (255, 0, 0), 'bilinear': (0, 255, 0), 'enhanced': (0, 0, 255), 'truth': (9, 9, 9)}


def videos(frames=3, height=32, width=48):
    return {name: np.broadcast_to(np.uint8(c), (frames, height, width, 3)).copy() for name, c in COLOURS.items()}


def test_add_label():
    frame = videos()['input'][0]
    got = add_label(frame, 'input')
    strip = got.shape[0] - 32
    assert got.shape == (32 + strip, 48, 3) and strip > 10
    np.testing.assert_array_equal(got[strip:], frame)
    assert got[:strip].max() > 200 and np.median(got[:strip]) == 0
    assert not np.array_equal(got[:strip], add_label(frame, 'other')[:strip])


def test_contact_sheet_has_every_clip_whole_and_enlarged():
    one = videos()
    one['truth'][1, 15:17, 23:25] = 255  # four pixels in the middle of the middle frame
    one['truth'][0] = 50
    sheet = np.asarray(contact_sheet([('clip 0', one), ('clip 1', videos())], zoom=4))
    assert sheet.shape[1] >= 4 * 48 and sheet.shape[0] >= 4 * 32
    column = sheet[:, -48:]
    white = (column == 255).all(-1)
    # Once as it is and once 4 times larger.
    rows = [int(r.sum()) for r in white[: sheet.shape[0] // 2] if 0 < r.sum() < 48]
    assert rows.count(2) >= 2 and rows.count(8) == 8
    assert not (column == 50).all(-1).any()  # the first frame is not shown
