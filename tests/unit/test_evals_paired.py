"""Paired tests and the win rate: against closed forms, scipy and statsmodels, and coverage by simulation."""

from __future__ import annotations

import asyncio
import math
import warnings
from collections.abc import Sequence

import numpy as np
import pytest

from anchorline.evals import length_control
from anchorline.evals.length_control import length_controlled
from anchorline.evals.lm_harness import HarnessTask
from anchorline.evals.paired import compare_results, mcnemar, spread
from anchorline.evals.stats import wilson
from anchorline.evals.tasks_lm_eval import _interval
from anchorline.evals.winrate import judge_answers, winrate_table
from anchorline.judge import pairwise_judge
from anchorline.llm.fake import FakeEndpoint
from anchorline.types import Answer, Message, Verdict


def answers(texts: Sequence[str]) -> list[Answer]:
    return [Answer(str(n), (Message("user", f"Question {n}"),), text, "stop") for n, text in enumerate(texts)]


@pytest.mark.parametrize(("more", "less"), [(9, 1), (5, 5), (0, 3), (12, 4)])
def test_mcnemar_by_hand_and_by_statsmodels(more: int, less: int) -> None:
    n = more + less
    tail = sum(math.comb(n, k) for k in range(min(more, less) + 1)) / 2**n
    a, b = [True] * more + [False] * less + [True] * 7, [False] * more + [True] * less + [True] * 7
    assert mcnemar(a, b) == pytest.approx(min(1.0, 2 * tail))
    from statsmodels.stats.contingency_tables import mcnemar as theirs

    assert mcnemar(a, b) == pytest.approx(theirs([[7, more], [less, 0]], exact=True).pvalue)


def test_a_permutation_of_signs_is_exact_where_all_are_tried() -> None:
    # five differences above 0: of the 2^5 signs two are as extreme
    found = compare_results([0.3, 0.4, 0.5, 0.9, 0.7], [0.2, 0.2, 0.2, 0.2, 0.2], seed=0)
    assert found.test == "sign permutation" and found.n == 5
    assert found.p == pytest.approx(2 / 32) and found.mean == pytest.approx(0.36)
    assert found.low is not None and found.high is not None and found.low < 0.36 < found.high


def test_what_has_no_spread_has_no_interval() -> None:
    assert spread([0.5] * 9, seed=0) == (None, None)
    same = compare_results([1, 0, 1], [1, 0, 1], seed=0)
    assert (same.mean, same.low, same.p, same.test) == (0.0, None, 1.0, "McNemar, exact")


def test_one_result_alone_settles_nothing() -> None:
    one = compare_results([0.7], [0.2], seed=0)
    assert (one.n, one.low, one.p, one.test) == (1, None, 1.0, "sign permutation")


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(7)
    inside = 0
    for trial in range(120):
        low, high = spread(generator.choice([0.0, 0.5, 1.0], 80, p=[0.2, 0.2, 0.6]).tolist(), seed=trial)
        assert low is not None and high is not None
        inside += low <= 0.7 <= high
    assert 0.89 <= inside / 120 <= 0.99


def test_a_judge_that_always_says_first_comes_out_even() -> None:
    judge = pairwise_judge(FakeEndpoint("A is first.\nVERDICT: A"))
    ours, theirs = answers(["long answer"] * 12), answers(["short"] * 12)
    judged = asyncio.run(judge_answers(judge, ours, theirs))
    table = winrate_table(judged.verdicts, [("a" * n, "b") for n in range(12)], seed=0)
    assert (table["n"], table["win_rate"], table["flip_rate"]) == (12, 0.5, 1.0)
    assert (table["wins"], table["losses"], table["ties"], table["flips"]) == (0, 0, 12, 12)
    assert table["low"] < 0.3 and table["high"] > 0.7, "twelve flips know nothing"
    controlled = table["length_controlled"]
    assert controlled["rate"] == pytest.approx(0.5) and controlled["low"] < 0.3 and controlled["high"] > 0.7


def test_a_reply_without_a_verdict_is_no_tie() -> None:
    def script(request: object) -> str:
        return "no idea" if "Question 1\n" in str(request).replace("\\n", "\n") else "VERDICT: TIE"

    judged = asyncio.run(judge_answers(pairwise_judge(FakeEndpoint(script)), answers("abc"), answers("xyz")))
    assert [failure.id for failure in judged.failures] == ["1"] and judged.failures[0].kind == "unreadable"
    assert len(judged.verdicts) == len(judged.answers) == 2


def test_a_win_rate_counts_a_tie_as_half() -> None:
    verdicts = [Verdict("a"), Verdict("a"), Verdict("b"), Verdict("tie")]
    table = winrate_table(verdicts, [("a", "b")] * 4, seed=0)
    assert table["win_rate"] == 2.5 / 4 and table["low"] <= 0.625 <= table["high"]
    assert table["p"] == 1.0, "two wins and a loss: 2 · (3 + 1) / 2^3, no more than 1"


def test_the_p_value_of_a_win_rate_is_the_sign_tests() -> None:
    verdicts = [Verdict("a")] * 14 + [Verdict("b")] * 4 + [Verdict("tie")] * 30
    from statsmodels.stats.descriptivestats import sign_test as theirs

    points = [1.0] * 14 + [0.0] * 4 + [0.5] * 30
    found = winrate_table(verdicts, [("a", "b")] * 48, seed=0)["p"]
    assert found == pytest.approx(2 * sum(math.comb(18, k) for k in range(5)) / 2**18)
    assert found == pytest.approx(theirs(np.asarray(points) - 0.5)[1])


def test_the_penalty_does_not_narrow_the_interval_of_a_length_controlled_rate() -> None:
    # so few and even results get a penalty that puts the rate at 50 %: the interval must not follow
    found = length_controlled([1.0, 0.0, 1.0, 0.0, 0.0, 1.0] * 5, [float(n % 7) for n in range(30)], seed=0)
    assert found.rate == 0.5 and found.low is not None and found.high is not None
    assert found.low < 0.4 and found.high > 0.6


def test_length_control_takes_away_what_length_alone_won() -> None:
    # the longer answer wins, whoever wrote it, and ours are mostly longer
    generator = np.random.default_rng(1)
    delta = generator.normal(150, 100, 200)
    wins = (generator.random(200) < 1 / (1 + np.exp(-3 * np.tanh(delta / delta.std(ddof=1))))).astype(float)
    found = length_controlled(wins.tolist(), delta.tolist(), seed=0)
    assert wins.mean() > 0.8 and found.rate is not None and found.low is not None and found.high is not None
    assert found.low <= 0.5 < found.high and found.rate < wins.mean() - 0.15
    assert found.length_effect is not None and found.length_effect > 1


def test_length_control_is_statsmodels_logit_where_the_penalty_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import statsmodels.api as sm

    monkeypatch.setattr(length_control, "_strength", lambda *_: 1e6)
    generator = np.random.default_rng(3)
    delta, wins = generator.normal(20, 100, 150), generator.choice([0.0, 0.5, 1.0], 150)
    found = length_controlled(wins.tolist(), delta.tolist(), seed=0)
    columns = np.column_stack([np.ones(150), np.tanh(delta / delta.std(ddof=1))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theta, phi = sm.GLM(wins, columns, family=sm.families.Binomial()).fit().params
    assert found.rate == pytest.approx(1 / (1 + math.exp(-theta)), abs=2e-3)
    assert found.length_effect == pytest.approx(phi, abs=1e-2)


@pytest.mark.parametrize(("wins", "n"), [(37.0, 40), (40.0, 40), (0.0, 10), (10.5, 21)])
def test_at_constant_lengths_the_interval_is_of_a_share(wins: float, n: int) -> None:
    """Where (k + 1/2) log p + (n − k + 1/2) log(1 − p) lies 3.8415 / 2 below its top at (k + 1/2) / (n + 1)."""
    points = [1.0] * int(wins) + [0.5] * round(2 * (wins % 1)) + [0.0] * int(n - wins)
    found = length_controlled(points, [5.0] * n, seed=0)

    def fallen(p: float) -> float:
        def value(p: float) -> float:
            return (wins + 0.5) * math.log(p) + (n - wins + 0.5) * math.log(1 - p)

        return value((wins + 0.5) / (n + 1)) - value(p)

    assert found.rate is not None and found.low is not None and found.high is not None
    assert found.low <= found.rate <= found.high
    # an end that holds the rate of wins alone lies further out
    if wins > 0:
        assert fallen(found.low) == pytest.approx(3.8415 / 2, abs=1e-3)
    if wins < n:
        assert fallen(found.high) == pytest.approx(3.8415 / 2, abs=1e-3)


def test_results_that_are_parted_have_an_interval(capfd: pytest.CaptureFixture[str]) -> None:
    even = [float(n - 20) for n in range(41)]
    won = length_controlled([1.0] * 41, even, seed=0)
    lost = length_controlled([0.0] * 41, even, seed=0)
    assert won.low is not None and won.high is not None and lost.low is not None and lost.high is not None
    assert 0.8 < won.low < 0.95 and 0.999 < won.high <= 1
    assert (lost.low, lost.high) == pytest.approx((1 - won.high, 1 - won.low), abs=1e-4)
    # a win wherever ours is longer, with one of equal length in between: nothing is known of equal lengths
    parted = length_controlled([0.0] * 20 + [0.5] + [1.0] * 20, even, seed=0)
    assert parted.low is not None and parted.high is not None and parted.low < 0.3 and parted.high > 0.7
    # only the longest of sixty lost
    last = length_controlled([1.0] * 59 + [0.0], list(range(60)), seed=0)
    assert last.low is not None and last.low < 0.7, (
        "all but some differences are long: little is known of equal lengths"
    )
    # all some thousand characters longer: what length did cannot be told from the rest
    far = length_controlled([1.0, 1.0, 1.0, 0.0] * 10, [1000.0 + n for n in range(40)], seed=0)
    assert far.low is not None and far.high is not None and far.low < 0.001 and far.high > 0.999
    assert capfd.readouterr() == ("", "")


def test_other_answers_first_turns_the_interval_round() -> None:
    generator = np.random.default_rng(5)
    wins, delta = generator.choice([0.0, 0.5, 1.0], 50, p=[0.1, 0.2, 0.7]), generator.normal(50, 100, 50)
    ours = length_controlled(wins.tolist(), delta.tolist(), seed=0)
    theirs = length_controlled((1 - wins).tolist(), (-delta).tolist(), seed=0)
    assert ours == length_controlled(wins.tolist(), delta.tolist(), seed=0)
    assert ours.low is not None and theirs.high is not None and ours.low == pytest.approx(1 - theirs.high, abs=1e-4)


def test_the_interval_of_a_high_length_controlled_rate_holds_it() -> None:
    generator = np.random.default_rng(11)
    above = below = 0
    for _ in range(100):
        delta = generator.normal(50, 100, 40)
        wins = (generator.random(40) < 1 / (1 + np.exp(-math.log(9) - 0.5 * np.tanh(delta / 100)))).astype(float)
        low, high = (1 / (1 + math.exp(-end)) for end in length_control._interval(wins, length_control._columns(delta)))
        above, below = above + (low > 0.9), below + (high < 0.9)
    # 5 of 100 are to miss, give or take 2; of a percentile bootstrap's, some 27 lie above
    assert above <= 5 and below <= 9 and 1 <= above + below <= 11


def test_too_few_results_are_not_fitted() -> None:
    assert length_controlled([1.0, 0.0] * 4, [1.0] * 8, seed=0).rate is None


def test_a_share_of_the_harness_has_wilsons_interval_and_a_mean_its_own_error() -> None:
    def interval(name: str, error: float, *results: float, share: float | None = None) -> tuple[float, ...]:
        rows = [{"filter": "none", "doc_id": n, name: value} for n, value in enumerate(results)]
        value = float(np.mean(results)) if share is None else share
        part = _interval(HarnessTask({name: value, f"{name}_stderr": error}, rows), name)
        return tuple(part[end] for end in ("low", "high") if end in part)

    assert interval("acc", 0.0, *[1.0] * 8) == wilson(8, 8)[1:]
    assert interval("acc", 0.1, 1.0, *[0.0] * 9)[0] > 0, "a normal interval would go below 0"
    assert interval("f1", 0.1, 0.4, 0.6) == (pytest.approx(0.304), pytest.approx(0.696))
    assert interval("acc", 0.1, share=0.5) == (pytest.approx(0.304), pytest.approx(0.696)), "a group has no documents"
    assert interval("f1", 0.0, 0.5, 0.5) == ()
