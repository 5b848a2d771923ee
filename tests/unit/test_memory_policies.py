"""The rules of memory: importance, decay, retention, duplicates, contradictions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentdb.errors import InvalidInputError
from agentdb.memory.policies import (
    ActrDecay,
    ContradictionRule,
    Decay,
    DuplicateRule,
    ExponentialDecay,
    HeuristicImportance,
    ImportanceScorer,
    MemoryPolicies,
    RetentionRule,
    Statement,
    Use,
    WeibullDecay,
)

DAY = 86_400.0
MODELS: list[Decay] = [ExponentialDecay(), ActrDecay(), WeibullDecay()]
models = pytest.mark.parametrize("model", MODELS, ids=lambda one: type(one).__name__)


@models
def test_half_is_left_of_what_was_used_once_a_half_life_ago(model: Decay) -> None:
    half_lives = [3600.0, DAY, 30 * DAY]
    activation = model.activation(Use.of(half_lives, half_lives, [1, 1, 1]), half_lives)
    np.testing.assert_allclose(activation, 0.5, atol=1e-9)


@models
@given(
    ages=st.lists(st.floats(0, 1e9), min_size=1, max_size=20),
    count=st.integers(1, 1000),
    half_life_s=st.floats(60, 1e9),
    span=st.floats(0, 1e9),
)
def test_activation_falls_with_age_and_stays_within_bounds(
    model: Decay, ages: list[float], count: int, half_life_s: float, span: float
) -> None:
    last = np.sort(ages)
    activation = model.activation(Use.of(last, last + span, np.full(len(last), count)), half_life_s)
    assert ((activation >= 0) & (activation <= 1)).all()
    assert (np.diff(activation) <= 1e-9).all()


@models
@given(age=st.floats(10, 1e8), span=st.floats(1, 1e8), count=st.integers(1, 200))
def test_more_uses_never_weaken(model: Decay, age: float, span: float, count: int) -> None:
    fewer, more = model.activation(Use.of([age, age], [age + span] * 2, [count, count + 1]), 30 * DAY)
    assert more >= fewer - 1e-12


@models
def test_what_is_used_again_and_again_outlives_what_is_not(model: Decay) -> None:
    once, often = model.activation(Use.of([60 * DAY, 60 * DAY], [90 * DAY, 90 * DAY], [1, 12]), 30 * DAY)
    assert once < 0.5
    assert often > once + 0.15


@models
def test_a_clock_set_back_makes_nothing_younger_than_now(model: Decay) -> None:
    now, later = model.activation(Use.of([0.0, -5000.0], [0.0, -5000.0], [1, 1]), DAY)
    assert now == later


@models
@pytest.mark.parametrize("half_life_s", [0, -1, math.inf, math.nan])
def test_a_half_life_must_be_a_time(model: Decay, half_life_s: float) -> None:
    with pytest.raises(InvalidInputError, match="half_life_s"):
        model.activation(Use.of([1.0], [1.0], [1]), half_life_s)


def test_actr_agrees_with_the_full_sum_of_even_uses() -> None:
    # Uses every day for a hundred days: the exact base-level equation against the approximation of three numbers.
    ages = np.arange(1, 101) * DAY
    exact = np.log((ages**-0.5).sum())
    activation = ActrDecay().activation(Use.of([DAY], [100 * DAY], [100]), 30 * DAY)[0]
    threshold = -0.5 * math.log(30 * DAY)
    expected = 1 / (1 + math.exp((threshold - exact) / 0.4))
    assert activation == pytest.approx(expected, abs=0.02)


def test_actr_of_one_moment_is_the_count_times_its_power() -> None:
    five = ActrDecay().activation(Use.of([DAY], [DAY], [5]), DAY)[0]
    # ln 5 above the threshold.
    assert five == pytest.approx(1 / (1 + math.exp(-math.log(5) / 0.4)))


def test_weibull_keeps_a_longer_tail_than_the_exponential() -> None:
    old = Use.of([10 * DAY], [10 * DAY], [1])
    assert WeibullDecay().activation(old, DAY)[0] > 20 * ExponentialDecay().activation(old, DAY)[0]
    young = Use.of([0.1 * DAY], [0.1 * DAY], [1])
    assert WeibullDecay().activation(young, DAY)[0] < ExponentialDecay().activation(young, DAY)[0]


def test_the_gain_of_use_is_bounded() -> None:
    use = Use.of([100 * DAY] * 2, [100 * DAY] * 2, [3, 10_000])
    limited = ExponentialDecay(limit=3.0).activation(use, DAY)
    assert limited[0] == limited[1]


OUT_OF_RANGE: dict[str, Callable[[], object]] = {
    "gain": lambda: ExponentialDecay(gain=-1),
    "limit": lambda: ExponentialDecay(limit=0.5),
    "decay": lambda: ActrDecay(decay=1.0),
    "noise": lambda: ActrDecay(noise=0.0),
    "shape": lambda: WeibullDecay(shape=0.0),
    "archive_below": lambda: RetentionRule(archive_below=1.5),
    "purge_after_s": lambda: RetentionRule(purge_after_s=-1),
    "base": lambda: HeuristicImportance(base=2.0),
    "cosine": lambda: DuplicateRule(cosine=1.1),
    "overlap": lambda: ContradictionRule(overlap=-0.1),
    "half_life_s": lambda: MemoryPolicies(half_life_s={"episodic": 1.0}),
    "short_term_half_life_s": lambda: MemoryPolicies(short_term_half_life_s=0.0),
    "decay without method": lambda: MemoryPolicies(decay=object()),  # type: ignore[arg-type]
    "importance without method": lambda: MemoryPolicies(importance=object()),  # type: ignore[arg-type]
    "lengths": lambda: Use.of([1.0], [1.0, 2.0], [1]),
    "nan": lambda: Use.of([math.nan], [1.0], [1]),
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_rules_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(InvalidInputError):
        OUT_OF_RANGE[name]()


def test_retention_archives_the_faded_and_unimportant_and_nothing_else() -> None:
    rule = RetentionRule()
    activation, importance = [0.01, 0.9, 0.01, 0.01], [0.1, 0.1, 0.95, 0.6]
    assert rule.archives(activation, importance).tolist() == [True, False, False, False]
    np.testing.assert_allclose(rule.retention([1.0, 0.0], [0.0, 1.0]), [0.5, 0.5])


def test_what_reaches_keep_from_is_kept_whatever_the_threshold() -> None:
    assert not RetentionRule(archive_below=1.0, keep_from=0.4).archives([0.0], [0.4])[0]
    assert RetentionRule(archive_below=1.0, keep_from=0.4).archives([0.0], [0.39])[0]


def importance(text: str, **rest: str) -> float:
    return HeuristicImportance().importance(Statement(text, **rest))


def test_importance_orders_what_people_would() -> None:
    fact = importance("My daughter Anna was born on May 3, and I promised to visit her in Lisbon.")
    plain = importance("The weather in the afternoon was somewhat cloudy.")
    greeting = importance("Hi! Thanks, sounds good.")
    assert fact > plain + 0.2 > plain > greeting + 0.1
    assert greeting > 0
    assert importance(" ") == 0


def test_the_assistants_own_words_count_for_less() -> None:
    text = "I prefer trains to planes."
    assert importance(text, role="assistant") < importance(text, role="user") == importance(text)
    assert importance(text, role="Assistant") == importance(text, role="assistant")


@given(st.text(max_size=300), st.sampled_from([None, "user", "assistant"]))
def test_importance_is_a_share_and_always_the_same(text: str, role: str | None) -> None:
    scorer = HeuristicImportance()
    statement = Statement(text, role)
    assert 0 <= scorer.importance(statement) <= 1
    assert scorer.importance(statement) == scorer.importance(statement)


def test_heuristics_are_policies() -> None:
    assert isinstance(HeuristicImportance(), ImportanceScorer)
    assert MemoryPolicies() == MemoryPolicies()


@pytest.mark.parametrize(
    ("one", "other", "cosine", "same"),
    [
        ("I like green tea.", "I love green tea", 0.95, True),
        ("I like green tea.", "I love green tea", 0.90, False),
        ("We meet at 3 pm.", "We meet at 4 pm.", 0.98, False),
        ("I eat meat.", "I don't eat meat.", 0.97, False),
        ("I live in Lisbon.", "I live in Porto.", 0.97, False),
    ],
)
def test_duplicates_agree_in_words_that_vectors_do_not_see(one: str, other: str, cosine: float, *, same: bool) -> None:
    rule = DuplicateRule()
    assert rule.is_duplicate(Statement(one), Statement(other), cosine) is same
    assert rule.is_duplicate(Statement(other), Statement(one), cosine) is same


def test_what_two_people_say_is_no_duplicate() -> None:
    assert not DuplicateRule().is_duplicate(
        Statement("I am tired.", speaker="A"), Statement("I am tired.", speaker="B"), 1
    )


@pytest.mark.parametrize(
    ("newer", "older", "reason"),
    [
        ("I don't eat meat.", "I eat meat.", "negated"),
        ("My flight leaves at 18:40 now.", "My flight leaves at 17:10.", "another number"),
        ("My flight leaves at 18:40.", "My flight leaves at 17:10.", None),
        ("I don't go to the gym.", "I went to the gym yesterday.", None),
        ("I moved, I live in Porto now.", "I live in Lisbon.", "said to have changed"),
        ("I moved, I live in Rome now.", "I moved, I live in Porto now.", "said to have changed"),
        ("I moved to Rome, I live there now.", "I moved to Porto last year.", None),
        ("I live in Porto with my cat.", "I live in Porto with my dog.", None),
        ("The weather is fine.", "I live in Lisbon.", None),
        ("Do I still live in Lisbon now?", "I live in Lisbon.", None),
        ("I live in Lisbon.", "I live in Lisbon.", None),
    ],
)
def test_contradictions(newer: str, older: str, reason: str | None) -> None:
    assert ContradictionRule().supersedes(Statement(newer), Statement(older), 0.8) == reason


def test_contradictions_need_nearness_and_one_source() -> None:
    rule = ContradictionRule()
    newer, older = Statement("I don't eat meat.", "user"), Statement("I eat meat.", "user")
    assert rule.supersedes(newer, older, 0.5) is None
    assert rule.supersedes(newer, Statement("I eat meat.", "assistant"), 0.9) is None
