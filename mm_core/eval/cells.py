"""The gate's comparisons: one cell per category, metric and reference, with confidence bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from mm_core.core.categories import GUARDED
from mm_core.core.params import GateParams
from mm_core.core.records import CATEGORIES, HIGHER_IS_BETTER, Cell
from mm_core.eval.across import enough, macro_cell, with_pooled
from mm_core.eval.bootstrap import (
    Groups,
    Interval,
    Quantity,
    RepeatedResamples,
    confidence,
    softened,
    student,
    winsorised,
)
from mm_core.eval.evidence import INT8, Evidence, Key
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


class _Photos:
    """The photos that questions are about, with what several questions need of them."""

    def __init__(self, evidence: Evidence, mask: np.ndarray) -> None:
        self.mask = mask
        self.groups = Groups.of(evidence.group[mask])
        self._evidence = evidence
        self._scores: dict[tuple[Key, str], np.ndarray] = {}
        self._levels: dict[tuple[Key, str], float] = {}

    def scores(self, key: Key, metric: str) -> np.ndarray:
        """Return a model's scores of these photos: (photos, 1), or the F curves of `maxf`."""
        if (key, metric) not in self._scores:
            self._scores[key, metric] = self._evidence.values[key][metric][self.mask]
        return self._scores[key, metric]

    def level(self, key: Key, metric: str) -> float:
        """Return a model's mean score; MaxF for curves, which have several columns."""
        if (key, metric) not in self._levels:
            self._levels[key, metric] = float(self.scores(key, metric).mean(axis=0).max())
        return self._levels[key, metric]


def judge_category(
    params: GateParams,
    evidence: Evidence,
    category: str,
    questions: Sequence[Question],
    rng: np.random.Generator | RepeatedResamples,
) -> list[Cell]:
    """Return one cell per question for one category; empty if the category has fewer than two groups of photos."""
    here = _Photos(evidence, evidence.category == category)
    if len(here.groups) < 2:
        return []
    answers: dict[int, Answer] = {}
    resampled, others = [], []
    for number, question in enumerate(questions):
        mask = here.mask & _known(question, evidence)
        if np.array_equal(mask, here.mask):
            (resampled if question.method == "bootstrap" else others).append(number)
        # Questions on fewer photos are answered one by one.
        elif len((some := _Photos(evidence, mask)).groups) > 1:
            answers[number] = _shown_with(_by_student(params, [question], some)[0], question, some)
    # Questions on the same photos are answered at once, and share one set of resamples.
    for answer, numbers in ((partial(_by_bootstrap, rng=rng), resampled), (_by_student, others)):
        asked = [questions[number] for number in numbers]
        found = answer(params, asked, here) if asked else []
        for number, question, interval in zip(numbers, asked, found, strict=True):
            answers[number] = _shown_with(interval, question, here)
    return [_cell(params, questions[number], answers[number], category) for number in sorted(answers)]


def _alpha(params: GateParams, question: Question) -> float:
    return params.guard_alpha if question.role == "guard" and question.method == "bootstrap" else params.alpha


def _known(question: Question, evidence: Evidence) -> np.ndarray:
    """Return a mask of the photos with scores of the reference; the best model so far may lack the newest photos."""
    if not isinstance(question.reference, tuple):
        # A floor is a number and applies to every photo.
        return np.ones(len(evidence.category), bool)
    return np.asarray(np.isfinite(evidence.values[question.reference][question.metric]).all(axis=1))


def _by_bootstrap(
    params: GateParams, questions: Sequence[Question], photos: _Photos, rng: np.random.Generator | RepeatedResamples
) -> list[Interval]:
    """Return the intervals of gain minus margin by resampling the groups."""
    quantities = [_quantity(question, photos) for question in questions]
    alphas = [_alpha(params, question) for question in questions]
    return confidence(quantities, photos.groups, alpha=alphas, resamples=params.resamples, rng=rng)


def _by_student(params: GateParams, questions: Sequence[Question], photos: _Photos) -> list[Interval]:
    """Return the intervals of gain minus margin by Student's t, on softened errors where the question's method says so.

    A bootstrap question on fewer photos than the others is answered by this too.
    """
    soft = [number for number, question in enumerate(questions) if question.method == "softened"]
    gains = iter(_soften([questions[number] for number in soft], photos) if soft else ())
    quantities = [
        Quantity(((1.0, next(gains)[:, None]),)) if question.method == "softened" else _quantity(question, photos)
        for question in questions
    ]
    found = student(quantities, photos.groups, alpha=params.alpha)
    # Softened intervals are logarithmic. Convert them back to the unit of the metric and subtract the margin.
    for number in soft:
        question = questions[number]
        level = photos.level(_model(question), question.metric)
        margin = question.share * level + question.slack
        ends = (found[number].estimate, found[number].lower, found[number].upper)
        found[number] = Interval(*(-level * math.expm1(-gain) - margin for gain in ends))
    return found


def _soften(questions: Sequence[Question], photos: _Photos) -> np.ndarray:
    """Return the softened and winsorised gains of each question, (questions, photos)."""
    candidates = np.stack([photos.scores(INT8, question.metric)[:, 0] for question in questions])
    references = np.stack([photos.scores(_model(question), question.metric)[:, 0] for question in questions])
    return winsorised(softened(candidates, references, SLACK))


def _model(question: Question) -> Key:
    """Return the model that a question compares with."""
    assert isinstance(question.reference, tuple)
    return question.reference


def _shown_with(interval: Interval, question: Question, photos: _Photos) -> Answer:
    candidate = photos.level(INT8, question.metric)
    if isinstance(question.reference, tuple):
        reference = photos.level(question.reference, question.metric)
        margin = question.share * reference + question.slack
    else:
        reference, margin = question.reference, question.slack
    return Answer(interval, margin, reference, candidate, len(photos.groups.order), len(photos.groups))


def _quantity(question: Question, photos: _Photos) -> Quantity:
    """Return the statistic gain minus margin, which is positive if the gain exceeds the margin."""
    sign = 1.0 if question.metric in HIGHER_IS_BETTER else -1.0
    candidate = photos.scores(INT8, question.metric)
    if not isinstance(question.reference, tuple):
        return Quantity(((sign, candidate),), -sign * question.reference - question.slack)
    reference = photos.scores(question.reference, question.metric)
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
