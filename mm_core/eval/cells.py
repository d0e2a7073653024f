"""The gate's comparisons: one cell per category, metric and reference, with confidence bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mm_core.core.categories import GUARDED
from mm_core.core.params import GateParams
from mm_core.core.records import CATEGORIES, HIGHER_IS_BETTER, Cell
from mm_core.eval.across import enough, macro_cell, with_pooled
from mm_core.eval.bootstrap import Interval, Quantity, confidence, softened, student, winsorised
from mm_core.eval.evidence import INT8, Evidence
from mm_core.eval.questions import JUDGED, SLACK, Question, guard_questions


@dataclass(frozen=True)
class Answer:
    """An interval of gain minus margin, with the other numbers of its cell."""

    interval: Interval
    margin: float
    reference: float
    candidate: float
    images: int
    groups: int


def judge(params: GateParams, evidence: Evidence, questions: list[Question], seed: int) -> list[Cell]:
    """Return the cells of the six categories and of their mean; with a champion also those of the guarded ones.

    Args:
        params: Levels, margins and minimum counts.
        evidence: Scores of all models on the same photos.
        questions: The comparisons for each of the six categories.
        seed: Seed of the bootstrap.
    """
    # The seed depends on the judged files, so repeating the gate gives the same bounds.
    rng = np.random.default_rng(seed)
    cells: list[Cell] = []
    for category in CATEGORIES:
        cells += judge_category(params, evidence, category, questions, rng)
    # Only the mode `macro` has questions of role `gain`; it needs a certain gain of the mean.
    if any(question.role == "gain" for question in questions):
        cells = [*with_pooled(params, cells), *macro_cell(params, cells)]
    if any(question.against == "champion" for question in questions):
        asked = guard_questions(params, anchor=any(question.against == "anchor" for question in questions))
        # One certain loss in any metric blocks the release, so each metric gets its share of the level (Bonferroni).
        each = params.model_copy(update={"alpha": params.alpha / len(JUDGED)})
        for category in GUARDED:
            cells += judge_category(each, evidence, category, asked, rng)
    return cells


def judge_category(
    params: GateParams, evidence: Evidence, category: str, questions: list[Question], rng: np.random.Generator
) -> list[Cell]:
    """Return one cell per question for one category; empty if the category has fewer than two groups of photos."""
    here = evidence.category == category
    if len(np.unique(evidence.group[here])) < 2:
        return []
    answers: dict[int, Answer] = {}
    pending: list[int] = []
    for number, question in enumerate(questions):
        mask = here & _known(question, evidence)
        if len(np.unique(evidence.group[mask])) < 2:
            continue
        # Questions on the same photos share one set of resamples. The others are answered one by one.
        if question.method == "bootstrap" and np.array_equal(mask, here):
            pending.append(number)
        else:
            answers[number] = _answer(params, question, evidence, mask)
    if pending:
        asked = [questions[number] for number in pending]
        quantities = [_quantity(question, evidence, here) for question in asked]
        alphas = [_alpha(params, question) for question in asked]
        groups = evidence.group[here]
        found = confidence(quantities, groups, alpha=alphas, resamples=params.resamples, rng=rng)
        for number, interval in zip(pending, found, strict=True):
            answers[number] = _shown_with(interval, questions[number], evidence, here)
    return [_cell(params, questions[number], answers[number], category) for number in sorted(answers)]


def _alpha(params: GateParams, question: Question) -> float:
    return params.guard_alpha if question.role == "guard" and question.method == "bootstrap" else params.alpha


def _known(question: Question, evidence: Evidence) -> np.ndarray:
    """Return a mask of the photos with scores of the reference; the best model so far may lack the newest photos."""
    if not isinstance(question.reference, tuple):
        # A floor is a number and applies to every photo.
        return np.ones(len(evidence.category), bool)
    return np.asarray(np.isfinite(evidence.values[question.reference][question.metric]).all(axis=1))


def _answer(params: GateParams, question: Question, evidence: Evidence, mask: np.ndarray) -> Answer:
    """Return the answer by Student's t, on softened and winsorised errors if the question's method is `softened`."""
    groups, alpha = evidence.group[mask], _alpha(params, question)
    if question.method != "softened":
        interval = student([_quantity(question, evidence, mask)], groups, alpha=alpha)[0]
        return _shown_with(interval, question, evidence, mask)
    assert isinstance(question.reference, tuple)
    candidate, reference = (evidence.values[key][question.metric][mask][:, 0] for key in (INT8, question.reference))
    mean = float(reference.mean())
    gains = winsorised(softened(candidate, reference, SLACK))
    logarithmic = student([Quantity(((1.0, gains[:, None]),))], groups, alpha=alpha)[0]
    margin = question.share * mean + question.slack
    # The interval is logarithmic. Convert it back to the unit of the metric and subtract the margin.
    ends = (logarithmic.estimate, logarithmic.lower, logarithmic.upper)
    return _shown_with(Interval(*(-mean * math.expm1(-gain) - margin for gain in ends)), question, evidence, mask)


def _shown_with(interval: Interval, question: Question, evidence: Evidence, mask: np.ndarray) -> Answer:
    # The maximum over columns is MaxF for curves; scalar metrics have one column.
    candidate = float(evidence.values[INT8][question.metric][mask].mean(axis=0).max())
    if isinstance(question.reference, tuple):
        reference = float(evidence.values[question.reference][question.metric][mask].mean(axis=0).max())
        margin = question.share * reference + question.slack
    else:
        reference, margin = question.reference, question.slack
    groups = len(np.unique(evidence.group[mask]))
    return Answer(interval, margin, reference, candidate, int(mask.sum()), groups)


def _quantity(question: Question, evidence: Evidence, mask: np.ndarray) -> Quantity:
    """Return the statistic gain minus margin, which is positive if the gain exceeds the margin."""
    sign = 1.0 if question.metric in HIGHER_IS_BETTER else -1.0
    candidate = evidence.values[INT8][question.metric][mask]
    if not isinstance(question.reference, tuple):
        return Quantity(((sign, candidate),), -sign * question.reference - question.slack)
    reference = evidence.values[question.reference][question.metric][mask]
    # The margin is a share of the reference, so it enters through the weight of the reference.
    weight = -sign - question.share
    # The maxima of two F curves are at different thresholds, so MaxF needs two terms.
    if candidate.shape[1] > 1:
        return Quantity(((sign, candidate), (weight, reference)), -question.slack)
    return Quantity(((1.0, sign * candidate + weight * reference),), -question.slack)


def _cell(params: GateParams, question: Question, answer: Answer, category: str) -> Cell:
    interval, margin = answer.interval, answer.margin
    result: Literal["pass", "fail", "unclear"] = "unclear"
    if enough(params, answer.images, answer.groups, _alpha(params, question)):
        # A gain below its margin is not a failure. Only a certain loss beyond the allowed margin fails.
        loss = interval.upper + margin < min(margin, 0.0)
        passes = interval.estimate > 0 if question.role == "gain" else interval.lower > 0
        result = "pass" if passes else "fail" if loss else "unclear"
    return Cell(
        category=category,
        metric=question.metric,
        against=question.against,
        role=question.role,
        reference=answer.reference,
        candidate=answer.candidate,
        gain=interval.estimate + margin,
        bound=interval.lower + margin,
        upper=interval.upper + margin,
        margin=margin,
        images=answer.images,
        groups=answer.groups,
        result=result,
    )


def is_gain(cell: Cell) -> bool:
    """Return whether the cell answers if the metric improved; a `gain` with a margin only limits a loss."""
    return cell.role == "superior" or (cell.role == "gain" and cell.margin == 0)


def seed_noise_words(params: GateParams, cells: list[Cell], noise: Mapping[str, float]) -> list[str]:
    """Return one line of advice that lists the gains within the spread of training seeds; or an empty list."""
    within = []
    for cell in cells:
        spread = params.seed_noise * noise.get(cell.category, 0.0)
        # Only the gain of the primary metric over the champion can be explained by seed noise.
        shown = cell.metric == params.primary and cell.against == "champion" and is_gain(cell)
        if shown and cell.reference and 0 < cell.gain / cell.reference < spread:
            within.append(f"{cell.category} {100 * cell.gain / cell.reference:.1f} % of {100 * spread:.1f} %")
    if not within:
        return []
    return [f"advice: gains within what another seed alone changes (`mm gate noise`): {', '.join(within)}"]
