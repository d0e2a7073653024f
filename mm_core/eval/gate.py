"""PROMOTE, REJECT or INCONCLUSIVE, on paired per-image differences of the files that would ship.

The default rule (`gate.mode: macro`, docs/decisions/0025): the primary metric is better in each of the six categories,
better with confidence on their mean, and each metric of each category is certainly not worse by more than its margin,
against the champion and against the best model so far. A candidate is promoted only if all cells pass: the
intersection-union test (Berger 1982), which holds level alpha for the whole verdict without Bonferroni.
A first model must reach absolute floors and beat the blind matte. REJECT means that a loss is shown; anything missing,
doubled, not finite or about other files ends as INCONCLUSIVE, and nothing leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mm_core.core.layout import Layout
from mm_core.core.params import GateParams
from mm_core.core.pins import ROLES, PinnedInputs
from mm_core.core.records import CATEGORIES, Cell, Decision, Verdict, digest_of, sha256_file
from mm_core.eval.cells import MACRO, judge, seed_noise_words
from mm_core.eval.evaluate import identity
from mm_core.eval.evidence import ANCHOR, INT8, gather, problems_with, read_scores
from mm_core.eval.independence import in_words
from mm_core.eval.questions import questions_for
from mm_core.eval.ratchet import Ratchet, read_best, with_best
from mm_core.eval.shadow import disagreement
from mm_core.eval.words import loss, not_settled, promoted, too_few, worse_list
from mm_core.ingest.snapshot import read_pool


def decide(
    params: GateParams,
    layout: Layout,
    inputs: PinnedInputs,
    *,
    ratchet: Ratchet | None = None,
    noise: Mapping[str, float] | None = None,
    uses: float = 0.0,
    left_out: Mapping[str, str] | None = None,
) -> Verdict:
    """Return the verdict on the candidate that lies in the workspace.

    Args:
        params: The rule.
        layout: Holds per_image.parquet, the snapshot and the files judged.
        inputs: As from `stages.read_inputs`.
        ratchet: The record of the best models so far; None: the pinned anchor alone is compared with.
        noise: Category → standard deviation of the primary metric's relative difference between two trainings of this
            very data and params that differ by their seed, where it was measured; for advice alone.
        uses: Other candidates that these eval photos have judged before (`mm_core.eval.eval_budget`).
        left_out: Eval photos that a judged model has learnt from, with words for that model
            (`mm_core.eval.independence`).

    Raises:
        InputError: Where there are no scores at all; scores that do not fit are INCONCLUSIVE.
    """
    scores, about = read_scores(layout)
    whole_frame, left_out = read_pool(layout.snapshot, "eval"), dict(left_out or {})
    eval_frame = whole_frame.loc[~whole_frame["sample_id"].isin(list(left_out))]
    scores = scores.loc[~scores["sample_id"].isin(list(left_out))]
    candidate = sha256_file(layout.model(INT8[0]))
    champion, anchor = ((inputs.get(role) or {}).get("digest") for role in ROLES)
    best = read_best(ratchet) if ratchet and champion else {}
    other = anchor not in (None, champion)
    questions = questions_for(params, champion=champion is not None, anchor=other or bool(best))
    needed = {key for q in questions if isinstance(key := q.reference, tuple) and (key != ANCHOR or other)}
    metrics = sorted({question.metric for question in questions})
    evidence, problems = gather(scores, eval_frame, sorted(needed | {INT8}), metrics)
    problems += problems_with(layout, inputs, about)
    cells: list[Cell] = []
    if evidence and not problems:
        if ratchet:
            evidence = with_best(evidence, eval_frame, ratchet.store, best, champion)
        seed = int(digest_of([about.get("eval_digest"), candidate, champion, anchor])[:16], 16)
        cells = judge(params, evidence, questions, seed)
    decision, reasons = conclude(params, cells, problems, same=candidate == champion)
    if decision == "PROMOTE" and (text := _held_by_shadow(params, layout, identity(layout, inputs))):
        decision, reasons = "INCONCLUSIVE", [text, *reasons]
    if not problems:
        if text := in_words(left_out, whole_frame):
            reasons.append(text)
        reasons += _cautions(params, cells, decision == "PROMOTE" and champion is not None, noise, uses)
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


def conclude(params: GateParams, cells: list[Cell], problems: list[str], *, same: bool) -> tuple[Decision, list[str]]:
    """Return decision and reasons from the cells; `same`: candidate and champion are one file, which is no gain."""
    if problems:
        return "INCONCLUSIVE", problems
    judged = [cell for cell in cells if cell.category in (*CATEGORIES, MACRO)]
    beside = [cell for cell in cells if cell.category not in (*CATEGORIES, MACRO) and cell.result == "fail"]
    thin = [text for category in CATEGORIES if (text := too_few(params, category, judged))]
    settled = [cell for cell in judged if not too_few(params, cell.category, judged)]
    failed, unclear = ([cell for cell in settled if cell.result == result] for result in ("fail", "unclear"))
    failed += [cell for cell in beside if cell.category not in params.accept_loss]
    accepted = [f"accepted by gate.accept_loss: {loss(cell)}" for cell in beside if cell.category in params.accept_loss]
    listed = [text] if (text := worse_list(cells)) else []
    if same:
        return "INCONCLUSIVE", ["the candidate is the champion itself: nothing to gain", *accepted]
    if failed:
        return "REJECT", [*(loss(cell) for cell in failed), *thin, *accepted, *listed]
    if thin or unclear:
        return "INCONCLUSIVE", [*thin, *(not_settled(params, cell) for cell in unclear), *accepted, *listed]
    return "PROMOTE", [promoted(params, judged), *accepted, *listed]


def _held_by_shadow(params: GateParams, layout: Layout, about: Mapping[str, Any]) -> str:
    """Why disagreement on unlabelled photos holds the candidate back; empty where it does not."""
    found = disagreement(layout, about, params.shadow_difference)
    if found is None or found[0] <= params.shadow_share:
        return ""
    return (
        f"on {100 * found[0]:.0f} % of the {found[1]} newest unlabelled photos the mattes differ from the champion's "
        f"by more than {params.shadow_difference:g}, allowed are {100 * params.shadow_share:.0f} %: see the report"
    )


def _cautions(
    params: GateParams, cells: list[Cell], gained: bool, noise: Mapping[str, float] | None, uses: float
) -> list[str]:
    """What a reader of the verdict should know and the decision does not depend on."""
    found = []
    if gained and params.seed_noise:
        if noise is None:
            found.append(
                "advice: how much chance in training alone changes the scores of this data and params was not "
                "measured: `mm gate noise`"
            )
        else:
            found += seed_noise_words(params, cells, noise)
    if uses >= 0.8 * params.eval_budget:
        found.append(
            f"warning: these eval photos have judged {uses:.0f} candidates before, gate.eval_budget is "
            f"{params.eval_budget}: drop fresh labelled photos with role eval"
        )
    return found
