"""Which clip goes to which size, and which size is trained on when."""

import numpy as np
import pytest

from fv_jax.core.latent_spec import LatentSpec
from fv_jax.data.buckets import Assignment, Bucket, BucketFit, BucketSchedule, assign, batch_size
from fv_jax.data.record_sizes import RecordSizes
from fv_jax.models.vae import OFFICIAL

SMALL, WIDE, TALL, LONG, IMAGE = (
    Bucket(17, 64, 112),
    Bucket(17, 128, 224),
    Bucket(17, 224, 128),
    Bucket(33, 64, 112),
    Bucket(1, 128, 224),
)
SPEC = OFFICIAL.latent_spec
ALL = (SMALL, WIDE, TALL, LONG, IMAGE)


@pytest.mark.parametrize(
    ('size', 'found'),
    [
        ((17, 128, 224), WIDE),
        ((20, 200, 230), WIDE),  # 35 % is cut off, and less of none
        ((17, 230, 200), TALL),
        ((17, 100, 200), SMALL),
        ((49, 100, 200), LONG),  # of two that cut off alike, the one with more tokens
        ((49, 130, 230), WIDE),
        ((1, 1000, 1800), IMAGE),
        ((9, 128, 224), 'of fewer than 17 frames'),
        ((0, 0, 0), 'of unknown size'),
        ((17, 60, 224), 'smaller than 64x112'),
        ((17, 64, 640), 'of another aspect ratio: more than 40% would be cropped'),
        ((1, 100, 224), 'smaller than 128x224'),
    ],
)
def test_clip_is_assigned_to_the_best_bucket(size: tuple[int, int, int], found: Bucket | str) -> None:
    assert BucketFit().bucket(size, ALL, SPEC) == found


def test_cropped_clip_is_assigned_to_the_largest_bucket_that_fits() -> None:
    fit = BucketFit(scaled=False)
    assert fit.bucket((17, 64, 640), ALL, SPEC) == SMALL
    assert fit.bucket((17, 300, 300), ALL, SPEC) in (WIDE, TALL)
    assert fit.bucket((17, 127, 224), ALL, SPEC) == SMALL


def test_clips_that_fit_no_bucket_have_a_reason() -> None:
    assert BucketFit().bucket((1, 200, 300), (SMALL,), SPEC) == 'an image, and no bucket is for images'
    assert BucketFit().bucket((17, 200, 300), (IMAGE,), SPEC) == 'a clip, and no bucket is for clips'
    assert BucketFit(max_upscale=2.0).bucket((17, 32, 56), (SMALL,), SPEC) == SMALL


def test_every_record_is_in_one_bucket_or_counted_as_skipped() -> None:
    rng = np.random.default_rng(0)
    sizes = np.stack([rng.choice([1, 9, 17, 40], 500), rng.integers(16, 400, 500), rng.integers(16, 400, 500)], axis=1)
    found = assign(RecordSizes.from_array(sizes), ALL, BucketFit(), SPEC)
    together = np.concatenate([found.indices_by_bucket[bucket] for bucket in ALL])
    assert len(set(together)) == len(together) and len(together) + sum(found.skipped.values()) == 500
    for bucket in ALL:
        assert len(found.indices_by_bucket[bucket]) > 5
        assert all(BucketFit().bucket(tuple(sizes[i]), ALL, SPEC) == bucket for i in found.indices_by_bucket[bucket])


def test_bucket_order_depends_on_the_latent_spec() -> None:
    """Of 9 frames of 64x64 and 17 of 48x48 the first make more tokens with the official VAE, not with single frames."""
    few, many = Bucket(9, 64, 64), Bucket(17, 48, 48)
    fit = BucketFit(scaled=False)
    assert fit.bucket((17, 64, 64), (few, many), SPEC) == few
    assert fit.bucket((17, 64, 64), (few, many), LatentSpec(16, 1, 8)) == many


def test_batch_size_by_token_budget() -> None:
    tokens = SPEC.num_tokens(*IMAGE.size)
    assert SPEC.num_tokens(*Bucket(49, 1072, 1920).size) == 13 * 67 * 120 and tokens == 8 * 14
    assert batch_size(tokens, 1000, 1) == 8 and batch_size(tokens, 1000, 3) == 6
    assert batch_size(tokens, 50, 4) == 4


def test_bucket_schedule_has_every_bucket_in_proportion() -> None:
    schedule = BucketSchedule((0.7, 0.29, 0.00001), seed=3)
    assert schedule.steps.tolist() == [707, 293, 1]
    first, second = schedule.order(0), schedule.order(1)
    assert (np.bincount(first) == schedule.steps).all() and (np.bincount(second) == schedule.steps).all()
    assert (first != second).any()
    np.testing.assert_array_equal(schedule.order(5), BucketSchedule((0.7, 0.29, 0.00001), seed=3).order(5))
    assert (first != BucketSchedule((0.7, 0.29, 0.00001), seed=4).order(0)).any()
    assert BucketSchedule((5.0,), seed=0).cycle == 1


def test_assignment_drops_records_from_all_buckets_and_counts_why():
    small, large = Bucket(9, 32, 48), Bucket(9, 64, 96)
    dropped = np.array([-1, 0, 1, -1, 1, -1], np.int16)
    assignment = Assignment({small: np.array([0, 1, 2], np.uint32), large: np.array([3, 4], np.uint32)}, {'short': 1})
    found = assignment.drop(dropped, ('soft', 'still'))
    assert {bucket: indices.tolist() for bucket, indices in found.indices_by_bucket.items()} == {small: [0], large: [3]}
    assert found.skipped == {'short': 1, 'soft': 1, 'still': 2}
    whole = Assignment({small: range(6)}, {}).drop(dropped, ('soft', 'still'))
    assert whole.indices_by_bucket[small].tolist() == [0, 3, 5] and whole.skipped == {'soft': 1, 'still': 2}
    kept = Assignment({small: range(6)}, {}).drop(np.full(6, -1, np.int16), ('soft', 'still'))
    assert kept.indices_by_bucket[small] == range(6) and kept.skipped == {}
