"""The release gate: PROMOTE, REJECT or INCONCLUSIVE, from paired per-image differences of the int8 files.

The default rule (`gate.mode: macro`, docs/decisions/0025) has three parts. The primary metric must improve in each of
the six categories. It must improve with confidence on their mean. No metric of a category may be worse by more than its
margin, with confidence, against the champion and against the best model so far. Where the photos of one category are
too few for that confidence, the six categories together may give it (docs/decisions/0045).

A candidate is promoted only if all cells pass. This is an intersection-union test (Berger 1982), which has level alpha
for the whole verdict without a Bonferroni correction. A first model must reach absolute floors and beat the blind
matte. REJECT means that the scores prove a loss. Missing, repeated or non-finite scores, or scores of other files, give
INCONCLUSIVE and block the release.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from mm_core.core.layout import Layout
from mm_core.core.params import GateParams
from mm_core.core.pins import ROLES, PinnedInputs
from mm_core.core.records import CATEGORIES, Cell, Decision, Verdict, digest_of, sha256_file
from mm_core.eval.across import MACRO
from mm_core.eval.cells import judge, seed_noise_words
from mm_core.eval.evaluate import identity
from mm_core.eval.evidence import ANCHOR, INT8, gather, problems_with, read_scores
from mm_core.eval.independence import in_words
from mm_core.eval.questions import questions_for
from mm_core.eval.ratchet import Ratchet, read_best, with_best
from mm_core.eval.shadow import disagreement
from mm_core.eval.words import loss, losses, not_compared, not_settled, promoted, too_few, worse_list
from mm_core.ingest.snapshot import read_pool


@dataclass(frozen=True)
class History:
    """What earlier cycles say about the eval photos and the models."""

    ratchet: Ratchet | None = None
    """The record of the best models so far; None compares with the pinned anchor only."""
    noise: Mapping[str, float] | None = None
    """Category → standard deviation of the primary metric's relative difference between two trainings that differ only
    by their seed. None if it was not measured. It changes the advice, not the decision."""
    uses: float = 0.0
    """Number of other candidates that these eval photos judged before (`mm_core.eval.eval_budget`)."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Eval sample id → description of the judged model that was trained on it (`mm_core.eval.independence`)."""


NO_HISTORY = History()


def decide(params: GateParams, layout: Layout, inputs: PinnedInputs, history: History = NO_HISTORY) -> Verdict:
    """Return the verdict on the candidate in the workspace.

    Args:
        params: Mode, margins, levels and floors.
        layout: The workspace with per_image.parquet, the snapshot and the judged files.
        inputs: Pins of the cycle, from `stages.read_inputs`.
        history: What earlier cycles say about the eval photos and the models.

    Raises:
        InputError: The workspace has no scores. Scores that do not match give INCONCLUSIVE.
    """
    scores, about = read_scores(layout)
    ratchet = history.ratchet
    # Photos that a judged model was trained on are removed before any comparison.
    whole_frame, left_out = read_pool(layout.snapshot, "eval"), dict(history.left_out)
    eval_frame = whole_frame.loc[~whole_frame["sample_id"].isin(list(left_out))]
    scores = scores.loc[~scores["sample_id"].isin(list(left_out))]
    candidate = sha256_file(layout.model(INT8[0]))
    champion, anchor = ((inputs.get(role) or {}).get("digest") for role in ROLES)
    # The first model has no champion, so it is judged by floors and has no best model to compare with.
    best = read_best(ratchet) if ratchet and champion else {}
    other = anchor not in (None, champion)
    questions = questions_for(params, champion=champion is not None, anchor=other or bool(best))
    # Without a separate anchor model, the recorded scores of the best models replace its scores.
    needed = {key for q in questions if isinstance(key := q.reference, tuple) and (key != ANCHOR or other)}
    metrics = sorted({question.metric for question in questions})
    # Problems of the scores and of their identity end the comparison.
    evidence, problems = gather(scores, eval_frame, sorted(needed | {INT8}), metrics)
    problems += problems_with(layout, inputs, about)
    cells: list[Cell] = []
    if evidence and not problems:
        if ratchet:
            evidence = with_best(evidence, eval_frame, ratchet.store, best, champion)
        # A seed from the judged files makes the verdict reproducible.
        seed = int(digest_of([about.get("eval_digest"), candidate, champion, anchor])[:16], 16)
        cells = judge(params, evidence, questions, seed)
    decision, reasons = conclude(params, cells, problems, same=candidate == champion)
    # Large disagreement on unlabelled photos needs a person, even if the eval photos show a gain.
    if decision == "PROMOTE" and (text := _held_by_shadow(params, layout, identity(layout, inputs))):
        decision, reasons = "INCONCLUSIVE", [text, *reasons]
    if not problems:
        if evidence and champion:
            reasons += not_compared(params.primary, evidence, cells)
        if text := in_words(left_out, whole_frame):
            reasons.append(text)
        if not champion and any(too_few(params, category, cells) for category in CATEGORIES):
            reasons.append("advice: `mm gate crossfit` judges a first model with few photos; nothing is released by it")
        reasons += _cautions(params, cells, decision == "PROMOTE" and champion is not None, history)
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
    """Return decision and reasons.

    Args:
        params: Minimum counts and accepted losses.
        cells: The answered comparisons.
        problems: Reasons why the scores cannot be used; any problem gives INCONCLUSIVE.
        same: True if candidate and champion are the same file.
    """
    if problems:
        return "INCONCLUSIVE", problems
    # The six categories and their mean decide. Scenery can only block.
    judged = [cell for cell in cells if cell.category in (*CATEGORIES, MACRO)]
    beside = [cell for cell in cells if cell.category not in (*CATEGORIES, MACRO) and cell.result == "fail"]
    # Too few photos give no verdict for a category, neither a pass nor a failure.
    thin = [text for category in CATEGORIES if (text := too_few(params, category, judged))]
    settled = [cell for cell in judged if not too_few(params, cell.category, judged)]
    failed, unclear = ([cell for cell in settled if cell.result == result] for result in ("fail", "unclear"))
    failed += [cell for cell in beside if cell.category not in params.accept_loss]
    accepted = [f"accepted by gate.accept_loss: {loss(cell)}" for cell in beside if cell.category in params.accept_loss]
    listed = [text] if (text := worse_list(cells)) else []
    if same:
        return "INCONCLUSIVE", ["the candidate is the champion itself: nothing to gain", *accepted]
    # A proven loss has priority over missing evidence.
    if failed:
        return "REJECT", [*losses(failed), *thin, *accepted, *listed]
    if thin or unclear:
        return "INCONCLUSIVE", [*thin, *(not_settled(params, cell) for cell in unclear), *accepted, *listed]
    return "PROMOTE", [promoted(params, judged), *accepted, *listed]


def _held_by_shadow(params: GateParams, layout: Layout, about: Mapping[str, object]) -> str:
    """Return why disagreement on unlabelled photos blocks the candidate; empty if it does not."""
    found = disagreement(layout, about, params.shadow_difference)
    if found is None or found[0] <= params.shadow_share:
        return ""
    return (
        f"on {100 * found[0]:.0f} % of the {found[1]} newest unlabelled photos the mattes differ from the champion's "
        f"by more than {params.shadow_difference:g}, allowed are {100 * params.shadow_share:.0f} %: see the report"
    )


def _cautions(params: GateParams, cells: list[Cell], gained: bool, history: History) -> list[str]:
    """Return advice and warnings that do not change the decision."""
    found = []
    if gained and params.seed_noise:
        if history.noise is None:
            found.append(
                "advice: how much chance in training alone changes the scores of this data and params was not "
                "measured: `mm gate noise`"
            )
        else:
            found += seed_noise_words(params, cells, history.noise)
    # Photos that judge many candidates are learnt by selection; warn before the budget ends.
    if history.uses >= 0.8 * params.eval_budget:
        found.append(
            f"warning: these eval photos have judged {history.uses:.0f} candidates before, gate.eval_budget is "
            f"{params.eval_budget}: drop fresh labelled photos with role eval"
        )
    return found
