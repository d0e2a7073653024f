"""PROMOTE, REJECT or INCONCLUSIVE, on paired per-image differences of the files that would ship.

Every cell (category × metric) is a one-sided test at level alpha by bootstrap over groups
(`mm_core.eval.statistics`). A candidate is promoted only if all cells pass: the intersection-union test
(Berger 1982), which holds level alpha for the whole verdict without Bonferroni. Against the champion the
primary metric must be superior and the others non-inferior (`strict`: all four superior); against the anchor
the primary must be non-inferior, so that many small steps down do not add up; and int8 must be close to float.
Anything missing, doubled, not finite or about other files ends as INCONCLUSIVE: nothing leaves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from scipy.special import ndtri

from mm_core.data.snapshot import read_pool
from mm_core.eval.evaluate import identity
from mm_core.eval.evidence import CANDIDATE, Evidence, gather, problems_with, read_scores
from mm_core.eval.independence import in_words
from mm_core.eval.shadow import disagreement
from mm_core.eval.statistics import Interval, Quantity, confidence, fewest_groups
from mm_core.layout import Layout
from mm_core.params import GateParams
from mm_core.records import CATEGORIES, HIGHER_IS_BETTER, Cell, Decision, Verdict, digest_of, sha256_file

JUDGED = ("mse", "maxf", "biou", "conn")
RELATIVE = frozenset({"mse", "conn", "sad", "grad"})
"""Metrics whose margins are shares of the reference; the others' are absolute."""
SLACK = 1e-4
"""Absolute part of a relative margin, so that a nearly perfect reference is not an impossible one."""
SETTLED = 0.8
"""Share of cases in which the photos that an INCONCLUSIVE verdict asks for shall be enough."""
FLOAT, INT8, CHAMPION, ANCHOR = (CANDIDATE, "float"), (CANDIDATE, "int8"), ("champion", "int8"), ("anchor", "int8")


@dataclass(frozen=True)
class Question:
    """One cell before it is answered: is gain > share · reference + slack, with confidence?"""

    metric: str
    against: str
    role: Literal["superior", "non_inferior", "guard", "floor"]
    reference: tuple[str, str] | float
    """A model of the evidence, or the floor's value."""
    share: float = 0.0
    slack: float = 0.0


def decide(
    params: GateParams,
    layout: Layout,
    inputs: Mapping[str, Any],
    *,
    noise: Mapping[str, float] | None = None,
    uses: float = 0.0,
    left_out: Mapping[str, str] | None = None,
) -> Verdict:
    """The verdict on the candidate that lies in the workspace; `inputs` as from `stages.read_inputs`.

    `noise`: category → standard deviation of the primary metric's relative difference between two trainings that
    differ by their seed, where it was measured; `uses`: other candidates that these eval photos have judged before
    (`mm_core.eval.uses`); `left_out`: eval photos that a judged model has learnt from, with words for that model
    (`mm_core.eval.independence`). Reads per_image.parquet, the snapshot and the files judged. Raises InputError where
    there are no scores at all; scores that do not fit are INCONCLUSIVE.
    """
    scores, about = read_scores(layout)
    whole_frame, left_out = read_pool(layout.snapshot, "eval"), dict(left_out or {})
    eval_frame = whole_frame.loc[~whole_frame["sample_id"].isin(list(left_out))]
    scores = scores.loc[~scores["sample_id"].isin(list(left_out))]
    candidate = sha256_file(layout.model(CANDIDATE))
    champion, anchor = ((inputs.get(role) or {}).get("digest") for role in ("champion", "anchor"))
    questions = questions_for(params, champion is not None, anchor not in (None, champion))
    needed = {FLOAT, INT8} | {q.reference for q in questions if isinstance(q.reference, tuple)}
    metrics = sorted({question.metric for question in questions})
    evidence, problems = gather(scores, eval_frame, sorted(needed), metrics)
    problems += problems_with(layout, inputs, about)
    if uses >= params.eval_budget:
        problems.append(
            f"these eval photos have judged {uses:.0f} candidates, gate.eval_budget is {params.eval_budget}: "
            "drop fresh labelled photos with role eval"
        )
    seed = int(digest_of([about.get("eval_digest"), candidate, champion, anchor])[:16], 16)
    cells = judge(params, evidence, questions, seed, noise) if evidence and not problems else []
    decision, reasons = conclude(params, cells, problems, same=candidate == champion)
    if decision == "PROMOTE" and (text := _held_by_shadow(params, layout, identity(layout, inputs))):
        decision, reasons = "INCONCLUSIVE", [text, *reasons]
    if not problems:
        if text := in_words(left_out, whole_frame):
            reasons.append(text)
        reasons += _cautions(params, decision == "PROMOTE" and champion is not None, noise, uses)
    return Verdict(
        decision=decision,
        basis="paired" if champion else "bootstrap",
        reasons=reasons,
        candidate=candidate,
        champion=champion,
        anchor=anchor,
        snapshot=str(about.get("snapshot")),
        eval_digest=str(about.get("eval_digest")),
        left_out=left_out,
        cells=cells,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def questions_for(params: GateParams, champion: bool, anchor: bool) -> list[Question]:
    """What is asked in every category."""
    fidelity = Question("mse", "float", "non_inferior", FLOAT, -params.quantised_mse, -SLACK)
    if not champion:
        return [Question(metric, "floor", "floor", floor) for metric, floor in params.floors.items()] + [fidelity]
    primary = params.primary
    asked = [Question(primary, "champion", "superior", CHAMPION, params.delta)]
    guard = _non_inferior(params, primary, "champion", CHAMPION, params.guard)
    asked.append(replace(guard, role="guard", slack=0.0 if primary in RELATIVE else guard.slack))
    for metric in JUDGED:
        if metric != primary:
            strict = Question(metric, "champion", "superior", CHAMPION)
            asked.append(strict if params.mode == "strict" else _non_inferior(params, metric, "champion", CHAMPION))
    if anchor:
        asked.append(_non_inferior(params, primary, "anchor", ANCHOR))
    return [*asked, fidelity]


def judge(
    params: GateParams,
    evidence: Evidence,
    questions: list[Question],
    seed: int,
    noise: Mapping[str, float] | None = None,
) -> list[Cell]:
    """The cells of the six categories, then, with a champion, scenery's primary metric (shown, not judged)."""
    rng = np.random.default_rng(seed)
    cells = []
    for category in CATEGORIES:
        floor = params.seed_noise * (noise or {}).get(category, 0.0)
        asked = [
            replace(q, share=max(q.share, floor)) if q.role == "superior" and q.metric == params.primary else q
            for q in questions
        ]
        cells += judge_category(params, evidence, category, asked, rng)
    if any(question.against == "champion" for question in questions):
        cells += judge_category(
            params, evidence, "scenery", [_non_inferior(params, params.primary, "champion", CHAMPION)], rng
        )
    return cells


def conclude(params: GateParams, cells: list[Cell], problems: list[str], *, same: bool) -> tuple[Decision, list[str]]:
    """Decision and reasons from the cells. `same`: candidate and champion are one file, which is never a gain."""
    if problems:
        return "INCONCLUSIVE", problems
    judged = [cell for cell in cells if cell.category in CATEGORIES]
    thin = [text for category in CATEGORIES if (text := _too_few(params, category, judged))]
    settled = [cell for cell in judged if not _too_few(params, cell.category, judged)]
    failed, unclear = ([cell for cell in settled if cell.result == result] for result in ("fail", "unclear"))
    warnings = [
        f"warning, not judged: {_shown(c)}" for c in cells if c.category not in CATEGORIES and c.result == "fail"
    ]
    if same:
        return "INCONCLUSIVE", ["the candidate is the champion itself: nothing to gain", *warnings]
    if failed:
        return "REJECT", [*(_shown(cell) for cell in failed), *thin, *warnings]
    if thin or unclear:
        return "INCONCLUSIVE", [*thin, *(_open(params, cell) for cell in unclear), *warnings]
    return "PROMOTE", [_summary(params, judged), *warnings]


def _held_by_shadow(params: GateParams, layout: Layout, about: Mapping[str, Any]) -> str:
    """Why disagreement on unlabelled photos holds the candidate back; empty where it does not."""
    found = disagreement(layout, about, params.shadow_difference)
    if found is None or found[0] <= params.shadow_share:
        return ""
    return (
        f"on {100 * found[0]:.0f} % of the {found[1]} newest unlabelled photos the mattes differ from the champion's "
        f"by more than {params.shadow_difference:g}, allowed are {100 * params.shadow_share:.0f} %: see the report"
    )


def _cautions(params: GateParams, gained: bool, noise: Mapping[str, float] | None, uses: float) -> list[str]:
    """What a reader of the verdict should know and the cells do not show."""
    found = []
    if gained and params.seed_noise and noise is None:
        found.append("warning: how much chance in training alone changes the scores was not measured: `mm gate noise`")
    if uses >= 0.8 * params.eval_budget:
        found.append(
            f"warning: these eval photos have judged {uses:.0f} candidates before, gate.eval_budget is "
            f"{params.eval_budget}: drop fresh labelled photos with role eval soon"
        )
    return found


def _non_inferior(
    params: GateParams, metric: str, against: str, reference: tuple[str, str], margin: float | None = None
) -> Question:
    if margin is None:
        margins: dict[str, float] = {**GateParams.model_validate({}).margins, **params.margins}
        margin = margins.get(metric, margins["mse"])
    if metric in RELATIVE:
        return Question(metric, against, "non_inferior", reference, -margin, -SLACK)
    return Question(metric, against, "non_inferior", reference, 0.0, -margin)


def judge_category(
    params: GateParams, evidence: Evidence, category: str, questions: list[Question], rng: np.random.Generator
) -> list[Cell]:
    """One cell per question about one category; none where it has fewer than two groups of photos."""
    here = evidence.category == category
    groups = evidence.group[here]
    count = len(np.unique(groups))
    if count < 2:
        return []
    quantities = [_quantity(question, evidence, here) for question in questions]
    alphas = [params.guard_alpha if question.role == "guard" else params.alpha for question in questions]
    intervals = confidence(quantities, groups, alpha=alphas, resamples=params.resamples, rng=rng)
    enough = int(here.sum()) >= params.min_images
    return [
        _cell(question, interval, evidence, here, category, count, enough and count >= fewest_groups(alpha))
        for question, interval, alpha in zip(questions, intervals, alphas, strict=True)
    ]


def _quantity(question: Question, evidence: Evidence, here: np.ndarray) -> Quantity:
    """Gain minus margin: above zero is above the margin, also where the margin is a share of the reference."""
    sign = 1.0 if question.metric in HIGHER_IS_BETTER else -1.0
    candidate = evidence.values[INT8][question.metric][here]
    if not isinstance(question.reference, tuple):
        return Quantity(((sign, candidate),), -sign * question.reference - question.slack)
    reference = evidence.values[question.reference][question.metric][here]
    weight = -sign - question.share
    if candidate.shape[1] > 1:
        return Quantity(((sign, candidate), (weight, reference)), -question.slack)
    return Quantity(((1.0, sign * candidate + weight * reference),), -question.slack)


def _cell(
    question: Question,
    interval: Interval,
    evidence: Evidence,
    here: np.ndarray,
    category: str,
    groups: int,
    decidable: bool,
) -> Cell:
    candidate = float(evidence.values[INT8][question.metric][here].mean(axis=0).max())
    if not isinstance(question.reference, tuple):
        reference, margin = question.reference, question.slack
    else:
        reference = float(evidence.values[question.reference][question.metric][here].mean(axis=0).max())
        margin = question.share * reference + question.slack
    result: Literal["pass", "fail", "unclear"] = "unclear"
    if decidable:
        result = "pass" if interval.lower > 0 else "fail" if interval.upper < 0 else "unclear"
    return Cell(
        category=category,
        metric=question.metric,
        against=question.against,
        role=question.role,
        reference=reference,
        candidate=candidate,
        gain=interval.estimate + margin,
        bound=interval.lower + margin,
        margin=margin,
        images=int(here.sum()),
        groups=groups,
        result=result,
    )


def _too_few(params: GateParams, category: str, cells: list[Cell]) -> str:
    found = next(((cell.images, cell.groups) for cell in cells if cell.category == category), None)
    if found is None:
        return f"{category}: fewer than two groups of eval photos; drop labelled {category} photos"
    images, groups = found
    if images < params.min_images:
        return f"{category}: {images} eval photos, {params.min_images} are needed; drop labelled {category} photos"
    guarded = any(cell.role == "guard" for cell in cells)
    needed = fewest_groups(min(params.alpha, params.guard_alpha) if guarded else params.alpha)
    if groups < needed:
        return f"{category}: its {images} eval photos show {groups} scenes, {needed} are needed; drop photos of others"
    return ""


def _shown(cell: Cell) -> str:
    names = {"champion": "the champion's", "anchor": "the anchor's", "floor": "the required", "float": "its own float"}
    return (
        f"{cell.category}: {cell.metric} {cell.candidate:.4g} is worse than {names[cell.against]} {cell.reference:.4g} "
        f"(gain {cell.gain:+.2g}, needed above {cell.margin:+.2g})"
    )


def more_photos(params: GateParams, cell: Cell) -> int | None:
    """How many more photos like these settle an unclear cell in SETTLED of cases, were the gain seen the true one.

    None where the gain seen lies below the margin: more photos would show no more. The standard error is read off the
    bound and shrinks with the root of the number of photos (Lehr 1992, as any sample size formula).
    """
    if cell.gain <= cell.margin:
        return None
    alpha = params.guard_alpha if cell.role == "guard" else params.alpha
    needed = (cell.gain - cell.bound) * (1 + ndtri(SETTLED) / -ndtri(alpha))
    return max(1, math.ceil(cell.images * ((needed / (cell.gain - cell.margin)) ** 2 - 1)))


def _open(params: GateParams, cell: Cell) -> str:
    text = (
        f"{cell.category}: {cell.metric} against {cell.against} is not settled: gain {cell.gain:+.2g}, "
        f"certain only above {cell.bound:+.2g}, needed above {cell.margin:+.2g}"
    )
    more = more_photos(params, cell)
    if more is None:
        return f"{text}; at this gain more photos would not settle it"
    return f"{text}; about {more} more photo{'s' * (more > 1)} like these would settle it"


def _summary(params: GateParams, cells: list[Cell]) -> str:
    against = "champion" if any(cell.against == "champion" for cell in cells) else "floor"
    if against == "floor":
        floors = ", ".join(f"{metric} {value:g}" for metric, value in params.floors.items())
        return f"first model: all {len(CATEGORIES)} categories reach the floors ({floors})"
    gains = [
        f"{cell.category} {100 * cell.gain / cell.reference:.1f} %"
        for cell in cells
        if cell.role == "superior" and cell.metric == params.primary and cell.reference
    ]
    rest = "all of mse, maxf, biou and conn are" if params.mode == "strict" else "nothing else is worse"
    return f"{params.primary} is better in all {len(CATEGORIES)} categories: {', '.join(gains)}; {rest}"
