"""What the gate asks: each question is one comparison of the candidate, in one category and metric."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mm_core.core.params import GateParams
from mm_core.core.records import METRICS
from mm_core.eval.evaluate import BLIND
from mm_core.eval.evidence import ANCHOR, CHAMPION, FLOAT, Key

JUDGED = ("mse", "maxf", "biou", "conn")
RELATIVE = frozenset({"mse", "conn", "sad", "grad"})
"""Errors, whose margins are shares of the reference; the others' margins are absolute."""
SLACK = 1e-4
"""Absolute part of a relative margin, so that a nearly perfect reference is not an impossible one."""

Method = Literal["bootstrap", "student", "softened"]


@dataclass(frozen=True)
class Question:
    """One cell before it is answered: is gain > share · reference + slack, with confidence?"""

    metric: str
    against: str
    role: Literal["gain", "superior", "non_inferior", "guard", "floor"]
    reference: Key | float
    """A model of the evidence, or the floor's value."""
    share: float = 0.0
    slack: float = 0.0
    method: Method = "bootstrap"
    """How the bound is made; `softened` is Student's t on softened and winsorised errors."""


def questions_for(params: GateParams, *, champion: bool, anchor: bool) -> list[Question]:
    """Return what is asked in each of the six categories.

    Args:
        params: Mode, margins and floors.
        champion: Whether there is a champion to compare with; else floors and the blind matte decide.
        anchor: Whether there is a best model so far that is not the champion alone.
    """
    fidelity = Question("mse", "float", "non_inferior", FLOAT, -params.quantised_mse, -SLACK)
    if not champion:
        floors = [Question(metric, "floor", "floor", floor) for metric, floor in params.floors.items()]
        blind = [Question(params.primary, "blind", "superior", BLIND)] if params.beat_blind else []
        return [*floors, *blind, fidelity]
    asked = _against_champion(params) if params.mode == "macro" else _superior_everywhere(params)
    if anchor:
        asked += [not_worse(params, metric, "anchor", ANCHOR) for metric in _metrics(params)]
    return [*asked, fidelity]


def scenery_questions(params: GateParams) -> list[Question]:
    """Return what is asked about the seventh category, whose loss alone counts: is a loss of any size certain?"""
    return [replace(not_worse(params, metric, "champion", CHAMPION), share=0.0, slack=0.0) for metric in JUDGED]


def not_worse(params: GateParams, metric: str, against: str, reference: Key) -> Question:
    """Return the question whether the metric is certainly not worse by more than its margin."""
    margins: dict[str, float] = {**GateParams.model_validate({}).margins, **params.margins}
    margin = margins.get(metric, margins["mse"])
    if metric in RELATIVE:
        return Question(metric, against, "non_inferior", reference, -margin, -SLACK, "softened")
    return Question(metric, against, "non_inferior", reference, 0.0, -margin, "student")


def _metrics(params: GateParams) -> list[str]:
    return [metric for metric in METRICS if metric in JUDGED or metric == params.primary]


def _against_champion(params: GateParams) -> list[Question]:
    primary = params.primary
    gain = Question(primary, "champion", "gain", CHAMPION, method="student")
    guard = Question(primary, "champion", "guard", CHAMPION, -params.tail_guard, -SLACK, "student")
    asked = [gain, *(not_worse(params, metric, "champion", CHAMPION) for metric in _metrics(params))]
    return [*asked, guard] if primary in RELATIVE else asked


def _superior_everywhere(params: GateParams) -> list[Question]:
    """The rule of the modes primary and strict: superiority in each cell, by bootstrap of the plain means."""
    primary = params.primary
    asked = [Question(primary, "champion", "superior", CHAMPION, params.delta)]
    if primary in RELATIVE:
        asked.append(Question(primary, "champion", "guard", CHAMPION, -params.guard))
    else:
        asked.append(Question(primary, "champion", "guard", CHAMPION, 0.0, -params.guard))
    for metric in JUDGED:
        if metric != primary:
            strict = Question(metric, "champion", "superior", CHAMPION)
            inferior = replace(not_worse(params, metric, "champion", CHAMPION), method="bootstrap")
            asked.append(strict if params.mode == "strict" else inferior)
    return asked
