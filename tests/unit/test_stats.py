"""Checks the intervals against hand-worked and published values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorline.evals.stats import Interval, MeanInterval, bootstrap_mean, wilson


def test_wilson_of_half_by_hand() -> None:
    # p = 1/2, n = 100: the centre is 1/2 and the half width is z / (2 · √(n + z²)).
    z = 1.959963984540054
    half = z / (2 * math.sqrt(100 + z * z))
    assert wilson(50, 100) == pytest.approx(Interval(0.5, 0.5 - half, 0.5 + half), abs=1e-12)


def test_wilson_at_the_ends_by_hand() -> None:
    # 0 of n: the upper bound is z² / (n + z²); n of n mirrors it.
    z2 = 1.959963984540054**2
    none, every = wilson(0, 60), wilson(60, 60)
    assert (none.share, none.low, every.share, every.high) == (0.0, 0.0, 1.0, 1.0)
    assert none.high == pytest.approx(z2 / (60 + z2), abs=1e-12)
    assert every.low == pytest.approx(60 / (60 + z2), abs=1e-12)


@pytest.mark.parametrize(("kept", "n", "low", "high"), [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
                                                        (1, 29, 0.0061, 0.1718)])  # fmt: skip
def test_wilson_published(kept: int, n: int, low: float, high: float) -> None:
    # The worked examples of Newcombe (1998), Statistics in Medicine 17, table I, method 3.
    assert (round(wilson(kept, n).low or 0, 4), round(wilson(kept, n).high or 0, 4)) == (low, high)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(counts: tuple[int, int]) -> None:
    kept, n = counts
    share, low, high = wilson(kept, n)
    assert share is not None and low is not None and high is not None
    assert 0 <= low <= share <= high <= 1 and low < high
    mirrored = wilson(n - kept, n)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_narrows_with_n_and_widens_with_the_level() -> None:
    def width(interval: Interval) -> float:
        return (interval.high or 0) - (interval.low or 0)

    assert width(wilson(400, 800)) < width(wilson(40, 80)) < width(wilson(40, 80, level=0.99))


def test_nothing_counted_has_no_figures() -> None:
    assert wilson(0, 0) == Interval(None, None, None)
    assert bootstrap_mean([], seed=1) == MeanInterval(None, None, None)


@pytest.mark.parametrize(("kept", "n"), [(-1, 5), (6, 5), (1, 0)])
def test_wilson_refuses_impossible_counts(kept: int, n: int) -> None:
    with pytest.raises(ValueError, match="kept"):
        wilson(kept, n)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_is_between_0_and_1(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        wilson(1, 2, level=level)
    with pytest.raises(ValueError, match="level"):
        bootstrap_mean([1.0], seed=1, level=level)


def test_bootstrap_of_zeros_and_ones_by_the_binomial() -> None:
    # Means of 100 draws of a fair coin: standard deviation 0.05, so 95 % lie within about 0.5 ± 0.098.
    mean, low, high = bootstrap_mean([0.0, 1.0] * 50, seed=3, resamples=4000)
    assert mean == 0.5
    assert (low, high) == pytest.approx((0.402, 0.598), abs=0.011)


def test_bootstrap_level_is_the_share_inside() -> None:
    wide, narrow = (bootstrap_mean(list(range(100)), seed=3, level=level) for level in (0.95, 0.5))
    assert wide.mean == narrow.mean == 49.5
    # A normal mean: 0.6745 standard errors of 2.887 to each side hold half of the means.
    assert (narrow.low, narrow.high) == pytest.approx((49.5 - 1.947, 49.5 + 1.947), abs=0.25)
    assert (wide.low, wide.high) == pytest.approx((49.5 - 5.658, 49.5 + 5.658), abs=0.5)


def test_bootstrap_depends_on_the_seed_only() -> None:
    values = [0.1, 0.4, 0.35, 0.9, 0.05]
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_bootstrap_of_one_value_and_of_a_value_that_is_no_number() -> None:
    for same in ([0.3], [0.3] * 5):
        assert bootstrap_mean(same, seed=1) == MeanInterval(pytest.approx(0.3), None, None), (
            "an interval of no width looks sure"
        )
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean([0.3, math.nan], seed=1)


def test_bootstrap_weights_by_hand() -> None:
    # Four draws can happen: both 1 (mean 1), both 5 (mean 5), and twice one of each: (3·1 + 1·5) / 4 = 2.
    weighted = bootstrap_mean([1.0, 5.0], weights=[3, 1], seed=1, level=0.4)
    assert weighted == MeanInterval(2.0, 2.0, 2.0)
    assert bootstrap_mean([1.0, 5.0], weights=[3, 1], seed=1)[1:] == (1.0, 5.0)
    assert bootstrap_mean([1.0, 5.0, 2.0], weights=[7, 7, 7], seed=1) == pytest.approx(
        bootstrap_mean([1.0, 5.0, 2.0], seed=1)
    )


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, math.inf]])
def test_bootstrap_refuses_weights_that_do_not_fit(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        bootstrap_mean([1.0, 2.0], weights=weights, seed=1)
