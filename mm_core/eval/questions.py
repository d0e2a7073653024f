"""The gate's questions: each question compares the candidate with one reference in one metric."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from mm_core.core.params import GateParams
from mm_core.core.records import METRICS
from mm_core.eval.evidence import ANCHOR, CHAMPION, FLOAT, Key
from mm_core.eval.scoring import BLIND

JUDGED = ("mse", "maxf", "biou", "conn")
RELATIVE = frozenset({"mse", "conn", "sad", "grad"})
"""Error metrics. Their margins are shares of the reference; the margins of other metrics are absolute."""
SLACK = 1e-4
"""Absolute part of a relative margin. Without it, a nearly perfect reference would allow no difference."""

PLAIN_MARGINS = 2
"""Loss of a category's plain mean that a softened gain may come with, in margins, without confidence. With heavy tails
and 60 photos the standard error of the plain mean is 11 %, so a stricter limit refuses true gains by chance."""

Method = Literal["bootstrap", "student", "softened"]


@dataclass(frozen=True)
class Question:
    """A test whether gain > share · reference + slack, with confidence."""

    metric: str
    against: str
    role: Literal["gain", "superior", "non_inferior", "guard", "floor"]
    reference: Key | float
    """Key of a model in the evidence, or the value of a floor."""
    share: float = 0.0
    slack: float = 0.0
    method: Method = "bootstrap"
    """Method of the bound; `softened` is Student's t on softened and winsorised errors."""


def questions_for(params: GateParams, *, champion: bool, anchor: bool) -> list[Question]:
    """Return the questions for each of the six categories.

    Args:
        params: Mode, margins and floors.
        champion: True to compare with a champion. False uses the floors and the blind matte.
        anchor: True if a best model other than the champion exists.
    """
    # Quantisation must not cost more than its margin, with or without a champion.
    fidelity = Question("mse", "float", "non_inferior", FLOAT, -params.quantised_mse, -SLACK)
    if not champion:
        floors = [Question(metric, "floor", "floor", floor) for metric, floor in params.floors.items()]
        blind = [Question(params.primary, "blind", "superior", BLIND)] if params.beat_blind else []
        return [*floors, *blind, fidelity]
    asked = _against_champion(params) if params.mode == "macro" else _superior_everywhere(params)
    if anchor:
        asked += [not_worse(params, metric, "anchor", ANCHOR) for metric in _metrics(params)]
    return [*asked, fidelity]


def guard_questions(params: GateParams, *, anchor: bool) -> list[Question]:
    """Return the questions for a guarded category, such as scenery. Only a certain loss counts there.

    Against the champion, a loss of any size counts. Against the best model so far, it must exceed the margin. Otherwise
    small losses, none of them certain, would add up from champion to champion.

    Args:
        params: Margins.
        anchor: True if a best model other than the champion exists.
    """
    asked = [replace(not_worse(params, metric, "champion", CHAMPION), share=0.0, slack=0.0) for metric in JUDGED]
    return asked + [not_worse(params, metric, "anchor", ANCHOR) for metric in JUDGED if anchor]


def not_worse(params: GateParams, metric: str, against: str, reference: Key) -> Question:
    """Return a non-inferiority question: the metric is not worse by more than its margin, with confidence."""
    # Metrics that params.yaml does not name keep their default margin.
    margins: dict[str, float] = {**_default_margins(), **params.margins}
    margin = margins.get(metric, margins["mse"])
    if metric in RELATIVE:
        return Question(metric, against, "non_inferior", reference, -margin, -SLACK, "softened")
    return Question(metric, against, "non_inferior", reference, 0.0, -margin, "student")


@cache
def _default_margins() -> dict[str, float]:
    """Return the margins of a params.yaml without a word about them."""
    return {**GateParams.model_validate({}).margins}


def _metrics(params: GateParams) -> list[str]:
    return [metric for metric in METRICS if metric in JUDGED or metric == params.primary]


def _against_champion(params: GateParams) -> list[Question]:
    primary = params.primary
    # The gain needs no confidence per category; the mean over the six does (macro_cell).
    gain = Question(primary, "champion", "gain", CHAMPION, method="student")
    others = [not_worse(params, metric, "champion", CHAMPION) for metric in _metrics(params)]
    if primary not in RELATIVE:
        return [gain, *others]
    # The softened test discounts very large errors. The guard limits the plain mean, so that they count too.
    guard = Question(primary, "champion", "guard", CHAMPION, -params.tail_guard, -SLACK, "student")
    if not params.pooled:
        return [gain, *others, guard]
    # On few photos the sign of the plain mean is that of a few large errors. The softened mean decides whether the
    # category gained, and the plain mean must not be much worse.
    softened = replace(gain, method="softened")
    margin = PLAIN_MARGINS * not_worse(params, primary, "champion", CHAMPION).share
    plain = Question(primary, "champion", "gain", CHAMPION, margin, -SLACK, "student")
    return [softened, plain, *others, guard]


def _superior_everywhere(params: GateParams) -> list[Question]:
    """Return the questions of the modes primary and strict: superiority in each cell, by bootstrap of the means."""
    primary = params.primary
    asked = [Question(primary, "champion", "superior", CHAMPION, params.delta)]
    if primary in RELATIVE:
        asked.append(Question(primary, "champion", "guard", CHAMPION, -params.guard))
    else:
        asked.append(Question(primary, "champion", "guard", CHAMPION, 0.0, -params.guard))
    for metric in JUDGED:
        if metric != primary:
            # Mode strict requires a gain in every metric, mode primary only non-inferiority.
            strict = Question(metric, "champion", "superior", CHAMPION)
            inferior = replace(not_worse(params, metric, "champion", CHAMPION), method="bootstrap")
            asked.append(strict if params.mode == "strict" else inferior)
    return asked
