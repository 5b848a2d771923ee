"""What a memory is worth, how it fades, and when two say the same or the opposite: pure functions of data and a given time.

Nothing here reads a clock, a database or a model. Each rule is a small frozen object with one method, so that another one can
take its place: `MemoryPolicies` holds the ones in use.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from agentdb.errors import InvalidInputError
from agentdb.memory.plugins import as_extractor, as_judge, as_scorer, as_summariser
from agentdb.memory.ports import ContradictionJudge, FactExtractor, ImportanceScorer, Statement, Summariser
from agentdb.memory.summaries import ExtractiveSummariser
from agentdb.vectors.analysis import analyze

__all__ = [
    "ActrDecay",
    "CompressionRule",
    "ContradictionRule",
    "Decay",
    "DuplicateRule",
    "ExponentialDecay",
    "HeuristicImportance",
    "MemoryPolicies",
    "MemoryType",
    "RetentionRule",
    "Use",
    "WeibullDecay",
]

MemoryType = Literal["episodic", "semantic", "procedural"]

Floats = npt.NDArray[np.float64]

_DAY_S = 86_400.0
_LEAST_AGE_S = 1.0
"""What was used a moment ago: a power of an age of zero would be infinite, and nobody needs a finer clock here."""


# --- activation and decay ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Use:
    """When memories were used. `[N]` each; writing a memory is its first use, so ``count`` is at least 1.

    Attributes:
        last_age_s: seconds since the last use, at least 0.
        first_age_s: seconds since the first, not less than those since the last.
        count: how many uses there were.
    """

    last_age_s: Floats
    first_age_s: Floats
    count: Floats

    @classmethod
    def of(cls, last_age_s: npt.ArrayLike, first_age_s: npt.ArrayLike, count: npt.ArrayLike) -> Use:
        """Return uses from anything numpy reads as numbers; an age below 0, by a clock set back, counts as 0.

        Raises:
            InvalidInputError: lengths differ, or a number is not finite.
        """
        last, first, uses = (np.atleast_1d(np.asarray(one, np.float64)) for one in (last_age_s, first_age_s, count))
        if not len(last) == len(first) == len(uses):
            raise InvalidInputError(f"uses of {len(last)}, {len(first)} and {len(uses)} memories cannot be compared")
        if not (np.isfinite(last).all() and np.isfinite(first).all() and np.isfinite(uses).all()):
            raise InvalidInputError("ages and counts of uses must be finite")
        last = np.maximum(last, 0.0)
        return cls(last, np.maximum(first, last), np.maximum(uses, 1.0))


@runtime_checkable
class Decay(Protocol):
    """How memories fade with time, and what use does about it."""

    def activation(self, use: Use, half_life_s: npt.ArrayLike) -> Floats:
        """Return `[N]` in [0, 1]: 1 for what was used just now, about 0.5 for what was used once, a half-life ago.

        Never lower for a later last use, all else equal.

        Args:
            use: when the memories were used.
            half_life_s: after how long half is left of a memory that was used once; a number, or `[N]`; above 0.
        """


def _checked_half_life(half_life_s: npt.ArrayLike) -> Floats:
    given = np.asarray(half_life_s, np.float64)
    if not (np.isfinite(given).all() and (given > 0).all()):
        raise InvalidInputError("half_life_s must be finite and above 0")
    return given


@dataclass(frozen=True, kw_only=True, slots=True)
class ExponentialDecay:
    """``2 ** (-age / (half_life * strength))``: every use makes the memory last longer.

    ``strength = min(1 + gain * (count - 1), limit)``: with gain 1, that of MemoryBank, where each recall adds one to it.

    Source: H. Ebbinghaus, "Über das Gedächtnis", 1885; Zhong et al., "MemoryBank", AAAI 2024 (arXiv 2305.10250), section 2.3.
    """

    gain: float = 1.0
    limit: float = 50.0

    def __post_init__(self) -> None:
        _require(0 <= self.gain < math.inf, "ExponentialDecay.gain must be finite and at least 0")
        _require(1 <= self.limit < math.inf, "ExponentialDecay.limit must be finite and at least 1")

    def activation(self, use: Use, half_life_s: npt.ArrayLike) -> Floats:
        """Return `[N]` in [0, 1]; see `Decay`."""
        strength = np.minimum(1.0 + self.gain * (use.count - 1.0), self.limit)
        faded: Floats = np.exp2(-use.last_age_s / (_checked_half_life(half_life_s) * strength))
        return faded


@dataclass(frozen=True, kw_only=True, slots=True)
class ActrDecay:
    """The probability of retrieval of ACT-R: a logistic of the base-level activation ``ln(sum of age ** -d)``.

    The threshold is where a memory used once has 0.5 after its half-life. Of the uses, the first, the last and their number are
    known; those in between count as spread evenly.

    Attributes:
        decay: d; 0.5 in nearly every ACT-R model.
        noise: s of the logistic: the smaller, the sharper the fall.

    Source: Anderson and Schooler, "Reflections of the environment in memory", 1991; Anderson et al., "An integrated theory of
    the mind", 2004; the spread: Petrov, "Computationally efficient approximation of the base-level learning equation", 2006.
    """

    decay: float = 0.5
    noise: float = 0.4

    def __post_init__(self) -> None:
        _require(0 < self.decay < 1, "ActrDecay.decay must lie between 0 and 1")
        _require(0 < self.noise < math.inf, "ActrDecay.noise must be finite and above 0")

    def activation(self, use: Use, half_life_s: npt.ArrayLike) -> Floats:
        """Return `[N]` in [0, 1]; see `Decay`."""
        rest = 1.0 - self.decay
        last, first = np.maximum(use.last_age_s, _LEAST_AGE_S), np.maximum(use.first_age_s, _LEAST_AGE_S)
        span = first - last
        # The mean of age ** -d from the last use to the first; at a single moment the value there.
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = (first**rest - last**rest) / (rest * span)
        mean = np.where(span > 1e-6 * first, mean, last**-self.decay)
        base_level = np.log(last**-self.decay + (use.count - 1.0) * mean)
        threshold = -self.decay * np.log(np.maximum(_checked_half_life(half_life_s), _LEAST_AGE_S))
        chance: Floats = 1.0 / (1.0 + np.exp(np.clip((threshold - base_level) / self.noise, -700.0, 700.0)))
        return chance


@dataclass(frozen=True, kw_only=True, slots=True)
class WeibullDecay:
    """``exp(-ln 2 * (age / (half_life * strength)) ** shape)``: with a shape below 1 a fast fall, then a long tail.

    Source: Rubin and Wenzel, "One hundred years of forgetting", Psychological Review 1996, who fit 105 functions to 210 data
    sets; the strength is that of `ExponentialDecay`.
    """

    shape: float = 0.6
    gain: float = 1.0
    limit: float = 50.0

    def __post_init__(self) -> None:
        _require(0 < self.shape <= 2, "WeibullDecay.shape must be above 0 and at most 2")
        _require(0 <= self.gain < math.inf, "WeibullDecay.gain must be finite and at least 0")
        _require(1 <= self.limit < math.inf, "WeibullDecay.limit must be finite and at least 1")

    def activation(self, use: Use, half_life_s: npt.ArrayLike) -> Floats:
        """Return `[N]` in [0, 1]; see `Decay`."""
        strength = np.minimum(1.0 + self.gain * (use.count - 1.0), self.limit)
        faded: Floats = np.exp2(-((use.last_age_s / (_checked_half_life(half_life_s) * strength)) ** self.shape))
        return faded


@dataclass(frozen=True, kw_only=True, slots=True)
class RetentionRule:
    """How much speaks for keeping a memory at hand: ``activation * (1 - weight) + importance * weight``.

    Below ``archive_below`` it is archived; never if its importance reaches ``keep_from``, whatever its age. An archived memory
    is purged after ``purge_after_s``; None: never.

    Source: the sum of recency and importance of Park et al., "Generative Agents", UIST 2023, section 4.1.
    """

    importance_weight: float = 0.5
    archive_below: float = 0.25
    keep_from: float = 0.9
    purge_after_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("importance_weight", "archive_below"):
            _require(0 <= getattr(self, name) <= 1, f"RetentionRule.{name} must lie between 0 and 1")
        _require(self.keep_from >= 0, "RetentionRule.keep_from must be at least 0")
        _require(
            self.purge_after_s is None or self.purge_after_s >= 0, "RetentionRule.purge_after_s must be at least 0"
        )

    def retention(self, activation: npt.ArrayLike, importance: npt.ArrayLike) -> Floats:
        """Return `[N]` in [0, 1]."""
        kept: Floats = (1.0 - self.importance_weight) * np.asarray(activation, np.float64) + (
            self.importance_weight * np.asarray(importance, np.float64)
        )
        return kept

    def archives(self, activation: npt.ArrayLike, importance: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return `[N]`: which memories are to be archived."""
        low = self.retention(activation, importance) < self.archive_below
        chosen: npt.NDArray[np.bool_] = low & (np.asarray(importance, np.float64) < self.keep_from)
        return chosen


# --- importance -------------------------------------------------------------------------------------------------------

_FIRST_PERSON = re.compile(r"\b(?:i|my|mine|me|we|our|us|myself)\b", re.IGNORECASE)
_PREFERENCE = re.compile(
    r"\b(?:prefer\w*|favou?rite|love[ds]?|like[ds]?|hate[ds]?|enjoy\w*|dislike[ds]?|allerg\w+|always|never|want\w*|need\w*|"
    r"must|wish\w*|hope\w*|plan\w*|goal\w*|dream\w*|decid\w+|promis\w+|remember\w*|deadline\w*|important|birthday\w*|"
    r"married|moved?|born|works?|lives?|name)\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?<![\w.])\d[\d.,:/%-]*")
_NAME = re.compile(r"(?<![.!?]\s)(?<!^)\b[A-Z][\w'-]+")
_PHATIC = re.compile(
    r"^\W*(?:(?:hi|hey|hello|thanks?|thank you|ok(?:ay)?|sure|bye|goodbye|see you|great|cool|nice|wow|yes|yeah|no|nope|"
    r"good (?:morning|evening|night)|sounds good|take care|you'?re welcome|no problem|got it|i see|lol|haha)\b\W*)+",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class HeuristicImportance:
    """What can be told from the words alone: who speaks of himself, wishes, names, numbers; greetings are worth little.

    A weighted sum of marks between 0 and 1, each saturating: saying something twice does not make it twice as important. The
    features are those that raters of "poignancy" go by (Generative Agents asks a model for them); the weights are not fitted.

    Attributes:
        base: of a plain statement.
        first_person, preference, names, numbers, substance: what each mark adds at most.
        assistant: what a statement of the assistant's own is multiplied by: what it says was said for the user, who can ask
            again; what the user says is lost if it is forgotten.

    Source: Park et al., "Generative Agents", UIST 2023, section 4.1, for importance as a rating given at write.
    """

    base: float = 0.3
    first_person: float = 0.15
    preference: float = 0.2
    names: float = 0.15
    numbers: float = 0.1
    substance: float = 0.1
    assistant: float = 0.7

    def __post_init__(self) -> None:
        for name in ("base", "first_person", "preference", "names", "numbers", "substance", "assistant"):
            _require(0 <= getattr(self, name) <= 1, f"HeuristicImportance.{name} must lie between 0 and 1")

    def importance(self, statement: Statement) -> float:
        """Return a number in [0, 1]."""
        text = statement.text.strip()
        words = len(text.split())
        if not words:
            return 0.0
        rest = _PHATIC.sub("", text)
        if not rest.strip(" \t\n.,!?"):
            return round(self.base * 0.2, 4)
        marks = (
            (self.first_person, min(len(_FIRST_PERSON.findall(text)), 2) / 2),
            (self.preference, min(len(_PREFERENCE.findall(text)), 2) / 2),
            (self.names, min(len(_NAME.findall(text)), 3) / 3),
            (self.numbers, min(len(_NUMBER.findall(text)), 2) / 2),
            (self.substance, min(words, 30) / 30),
        )
        worth = self.base + sum(weight * mark for weight, mark in marks)
        if text.endswith("?") and words < 12:
            worth *= 0.7  # a bare question tells little about the one who asks
        if statement.role is not None and statement.role.casefold() == "assistant":
            worth *= self.assistant
        return round(min(max(worth, 0.0), 1.0), 4)


# --- sameness and contradiction ---------------------------------------------------------------------------------------

_NEGATION = re.compile(
    r"\b(?:no|not|never|none|nothing|nobody|neither|nor|cannot|without|hardly)\b|n't\b", re.IGNORECASE
)
_CHANGE = re.compile(
    r"\b(?:no longer|any ?more|instead|now|changed?|switch(?:ed)?|moved?|quit|left|stopp?(?:ed)?|became|used to|"
    r"from now on|updated?|new|replaced?|cancel+ed|correct(?:ed|ion)|actually|since then)\b",
    re.IGNORECASE,
)


_PAST = re.compile(
    r"\b(?:was|were|did|had|went|got|came|saw|made|took|gave|said|told|bought|met|\w{3,}ed|yesterday|ago|last (?:night|week|"
    r"month|year|summer|winter|spring|autumn|fall))\b|\bdidn't\b",
    re.IGNORECASE,
)


_PRESENT = re.compile(r"\b(?:now|nowadays|currently|these days|from now on)\b", re.IGNORECASE)


def _is_of_the_past(text: str) -> bool:
    """Whether a text only tells what was: "I moved, I live in Porto now" tells what is, too."""
    return bool(_PAST.search(text)) and not _PRESENT.search(text)


def _names(text: str) -> frozenset[str]:
    return frozenset(one.casefold() for one in _NAME.findall(text))


def _terms(text: str) -> frozenset[str]:
    return frozenset(analyze([text])[0])


def _numbers(text: str) -> frozenset[str]:
    return frozenset(one.rstrip(".,:/-") for one in _NUMBER.findall(text))


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the share of the smaller set that both have."""
    least = min(len(one), len(other))
    return len(one & other) / least if least else 0.0


def _same_source(one: Statement, other: Statement) -> bool:
    return one.speaker == other.speaker and one.role == other.role


@dataclass(frozen=True, kw_only=True, slots=True)
class DuplicateRule:
    """When two memories say the same: one speaker, vectors at least ``cosine`` near, the same numbers, names and polarity.

    Vectors alone cannot tell "at 3 pm" from "at 4 pm", Porto from Lisbon, or "I do" from "I don't": the words must agree there.
    """

    cosine: float = 0.92

    def __post_init__(self) -> None:
        _require(-1 <= self.cosine <= 1, "DuplicateRule.cosine must lie between -1 and 1")

    def is_duplicate(self, one: Statement, other: Statement, cosine: float) -> bool:
        """Return whether both say the same; symmetric."""
        return (
            cosine >= self.cosine
            and _same_source(one, other)
            and _numbers(one.text) == _numbers(other.text)
            and _names(one.text) == _names(other.text)
            and bool(_NEGATION.search(one.text)) == bool(_NEGATION.search(other.text))
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ContradictionRule:
    """When a newer statement ends the validity of an older one; without a language model, so rather too seldom than too often.

    Both come from one speaker, are near in meaning (``cosine``) and share most words (``overlap`` of the shorter one's terms); and
    they differ in what matters: one denies (negation on one side only), or the newer one says that something changed and gives
    another number or other words. What is told of the past stays true: nothing supersedes it.
    """

    cosine: float = 0.6
    overlap: float = 0.5

    def __post_init__(self) -> None:
        _require(-1 <= self.cosine <= 1, "ContradictionRule.cosine must lie between -1 and 1")
        _require(0 <= self.overlap <= 1, "ContradictionRule.overlap must lie between 0 and 1")

    def supersedes(self, newer: Statement, older: Statement, cosine: float) -> str | None:
        """Return why the newer statement takes the older one's place, in a word or two; None: it does not."""
        if cosine < self.cosine or not _same_source(newer, older):
            return None
        if newer.text.rstrip().endswith("?") or older.text.rstrip().endswith("?") or _is_of_the_past(older.text):
            return None
        mine, theirs = _terms(newer.text), _terms(older.text)
        if _overlap(mine, theirs) < self.overlap:
            return None
        if bool(_NEGATION.search(newer.text)) != bool(_NEGATION.search(older.text)):
            return "negated"
        if not _CHANGE.search(newer.text):
            return None
        numbers, old_numbers = _numbers(newer.text), _numbers(older.text)
        if numbers and old_numbers and not numbers & old_numbers:
            return "another number"
        return "said to have changed" if mine - theirs and theirs - mine else None


# --- compression ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressionRule:
    """Which episodes become one summary: old, rarely used, unimportant, and about the same thing.

    Attributes:
        after_s: so long after its last use a memory is old.
        most_uses: one that was used more often is needed as it is; writing it is its first use.
        importance_below: one that is worth more is kept word for word.
        cosine: how near in meaning the others must be to the oldest of a cluster.
        least, most: memories of a cluster.

    Source: the consolidation of similar episodes into a gist, as in Tulving, "Episodic and semantic memory", 1972, and the
    summaries of older dialogue in Packer et al., "MemGPT", 2023; the numbers are not fitted.
    """

    after_s: float = 45 * _DAY_S
    most_uses: int = 2
    importance_below: float = 0.7
    cosine: float = 0.45
    least: int = 4
    most: int = 24

    def __post_init__(self) -> None:
        _require(0 <= self.after_s < math.inf, "CompressionRule.after_s must be finite and at least 0")
        _require(type(self.most_uses) is int and self.most_uses >= 1, "CompressionRule.most_uses must be at least 1")
        _require(self.importance_below >= 0, "CompressionRule.importance_below must be at least 0")
        _require(-1 <= self.cosine <= 1, "CompressionRule.cosine must lie between -1 and 1")
        _require(
            type(self.least) is int and type(self.most) is int and 2 <= self.least <= self.most <= 100,
            "CompressionRule.least and most must be whole numbers with 2 <= least <= most <= 100",
        )


# --- all together -----------------------------------------------------------------------------------------------------

_HALF_LIVES: Mapping[MemoryType, float] = {
    "episodic": 30 * _DAY_S,
    "semantic": 180 * _DAY_S,
    "procedural": 365 * _DAY_S,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPolicies:
    """The rules by which memories are valued, fade and are compared. Each can be replaced by an object with the same methods.

    For ``importance``, ``contradiction``, ``summariser`` and ``extractor`` a language model will do as well: whatever
    `agentdb.as_language_model` takes.

    Attributes:
        decay: how memories fade.
        half_life_s: by type, how long half of an unused memory lasts: what happened fades first, skills last.
        short_term_half_life_s: of every memory before it was consolidated.
        importance: values memories that were given no importance.
        archive_importance_below: what is worth less when it is remembered is archived at once: kept, and left out of recall.
        retention: what is archived and purged later.
        duplicate: what says the same.
        contradiction: what ends another's validity.
        compression: which episodes become one summary; None: none do.
        summariser: writes summaries.
        extractor: tells what is known for good from memories that settle; what it says becomes semantic memories. None: nothing does.
        plugin_timeout_s: how long a plug-in may take for one memory or summary before the library's own rule takes its place.
        upkeep_every_s: how often upkeep looks at each agent in the background, by the database's clock; None: on demand only.
        consolidate_after_s: how old a short-term memory must be to be settled.
        working_items, working_tokens: how much working memory a session has; the oldest leave for short-term memory. A token
            is taken for four characters.
        working_idle_s: how old a working memory gets before upkeep takes its session for ended.
    """

    decay: Decay = field(default_factory=ExponentialDecay)
    half_life_s: Mapping[MemoryType, float] = field(default_factory=lambda: dict(_HALF_LIVES))
    short_term_half_life_s: float = 7 * _DAY_S
    importance: ImportanceScorer | Any = field(default_factory=HeuristicImportance)
    archive_importance_below: float = 0.0
    retention: RetentionRule = field(default_factory=RetentionRule)
    duplicate: DuplicateRule = field(default_factory=DuplicateRule)
    contradiction: ContradictionJudge | Any = field(default_factory=ContradictionRule)
    compression: CompressionRule | None = field(default_factory=CompressionRule)
    summariser: Summariser | Any = field(default_factory=ExtractiveSummariser)
    extractor: FactExtractor | Any | None = None
    plugin_timeout_s: float = 20.0
    upkeep_every_s: float | None = 6 * 3_600.0
    consolidate_after_s: float = _DAY_S
    working_items: int = 40
    working_tokens: int = 4_000
    working_idle_s: float = _DAY_S

    def __post_init__(self) -> None:
        _require(isinstance(self.decay, Decay), "MemoryPolicies.decay must have activation()")
        object.__setattr__(self, "importance", as_scorer(self.importance))
        object.__setattr__(self, "contradiction", as_judge(self.contradiction))
        cosine = self.contradiction.cosine
        _require(
            isinstance(cosine, int | float) and -1 <= cosine <= 1,
            "MemoryPolicies.contradiction must have a cosine between -1 and 1",
        )
        object.__setattr__(self, "summariser", as_summariser(self.summariser))
        if self.extractor is not None:
            object.__setattr__(self, "extractor", as_extractor(self.extractor))
        _require(
            self.compression is None or isinstance(self.compression, CompressionRule),
            "MemoryPolicies.compression must be a CompressionRule or None",
        )
        _require(_is_duration(self.plugin_timeout_s), "MemoryPolicies.plugin_timeout_s must be above 0")
        _require(
            self.upkeep_every_s is None or _is_duration(self.upkeep_every_s),
            "MemoryPolicies.upkeep_every_s must be above 0, or None",
        )
        _require(
            set(self.half_life_s) == set(_HALF_LIVES) and all(_is_duration(one) for one in self.half_life_s.values()),
            "MemoryPolicies.half_life_s must give each of episodic, semantic and procedural a time above 0",
        )
        _require(
            isinstance(self.consolidate_after_s, int | float) and 0 <= self.consolidate_after_s < math.inf,
            "MemoryPolicies.consolidate_after_s must be at least 0",
        )
        _require(_is_duration(self.working_idle_s), "MemoryPolicies.working_idle_s must be above 0")
        _require(_is_duration(self.short_term_half_life_s), "MemoryPolicies.short_term_half_life_s must be above 0")
        _require(
            type(self.working_items) is int and self.working_items >= 1,
            "MemoryPolicies.working_items must be at least 1",
        )
        _require(
            type(self.working_tokens) is int and self.working_tokens >= 1,
            "MemoryPolicies.working_tokens must be at least 1",
        )
        _require(
            0 <= self.archive_importance_below <= 1, "MemoryPolicies.archive_importance_below must lie between 0 and 1"
        )

    def half_life(self, tier: str, memory_type: MemoryType | None) -> float:
        """Return the half-life of a memory in seconds; one of an open type fades as an episode does."""
        return self.half_life_s[memory_type or "episodic"] if tier == "long_term" else self.short_term_half_life_s


def _is_duration(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _require(condition: bool, message: str) -> None:  # noqa: FBT001
    if not condition:
        raise InvalidInputError(message)
