"""The section `gate` of params.yaml: conditions for shipping a candidate. `mm_core.core.params` has the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from mm_core.core.categories import GUARDED

if TYPE_CHECKING:
    Guarded = str
else:
    # Pydantic refuses other names.
    Guarded = Literal[*GUARDED]
Metric = Literal["mse", "maxf", "biou", "conn"]


class Section(BaseModel):
    """Base of all sections of params.yaml: unknown keys are refused; each field's docstring is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class GateParams(Section):
    # Comparison with the champion.
    mode: Literal["macro", "primary", "strict"] = "macro"
    """`macro`: the primary metric is better in all six categories, and better with confidence on their mean; no metric
    of any category is worse by more than its margin, with confidence (see `pooled`). `primary`: the primary metric is
    better with confidence in each category. `strict`: all of mse, maxf, biou and conn are (24 cells)."""
    pooled: bool = True
    """Mode macro: where the photos of one category are too few for a bound, the six categories together may give it
    (docs/decisions/0045). False: each category needs its own, and its plain mean must be better. That promotes fewer
    true gains, and fewer models with a small loss in one category."""
    primary: Literal["mse", "sad", "conn", "grad", "maxf", "biou"] = "mse"
    """The metric that must improve in every category."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """One-sided error level of each comparison. All comparisons must pass, so it is also the level of the verdict."""
    delta: float = Field(default=0.0, ge=0)
    """Modes primary and strict: the gain must exceed this share of the champion's value, with confidence."""
    guard: float = Field(default=0.03, ge=0)
    """Modes primary and strict: in every category, a loss of this share of the champion's primary metric must be
    excluded, at the level `guard_alpha`."""
    guard_alpha: float = Field(default=0.005, gt=0, lt=0.5)
    """One-sided error level of `guard`; with few photos a lucky draw passes `alpha` too often."""
    tail_guard: float = Field(default=0.15, ge=0)
    """Mode macro: a loss of this share in the plain mean of the primary metric must be excluded too, because the
    comparisons of mse and conn soften the largest errors and winsorise."""
    seed_noise: float = Field(default=1.0, ge=0)
    """Least gain without a warning, in standard deviations of the difference between two trainings that differ only by
    seed (`mm gate noise` measures it); 0 disables the warning."""
    # Shadow comparison on unlabelled photos.
    shadow_difference: float = Field(default=0.1, ge=0, le=1)
    """Two mattes of a shadow photo disagree above this mean absolute difference, in [0, 1]."""
    shadow_share: float = Field(default=1.0, ge=0, le=1)
    """Largest share of disagreeing shadow photos; above it a promotion waits for people's review. 1 never waits."""
    eval_budget: int = Field(default=104, ge=1)
    """Number of candidates that one set of evaluation photos should judge. The verdict requests fresh photos from four
    fifths on: with many candidates on the same photos, one passes by chance."""
    margins: dict[Metric, float] = {"mse": 0.05, "maxf": 0.01, "biou": 0.015, "conn": 0.05}
    """Tolerated apparent loss of each metric against the champion and against the best model so far: relative for mse
    and conn, absolute for maxf and biou."""
    accept_loss: tuple[Guarded, ...] = ()
    """Categories outside the six with a certain loss that does not block."""
    # Conditions for a first model, without a champion.
    floors: dict[Metric, float] = {"mse": 0.05, "maxf": 0.85, "biou": 0.5}
    """Values that a first model must reach in every category with confidence, in addition to `beat_blind`."""
    beat_blind: bool = True
    """A first model must be better than the blind matte (the mean matte of the category) with confidence."""
    # Quantisation and sample sizes.
    quantised_mse: float = Field(default=0.05, ge=0)
    """Largest increase of the MSE by int8, as a share of the float model's MSE per category (plus 1e-4 absolute)."""
    min_images: int = Field(default=8, ge=2)
    """Evaluation photos that each category needs; fewer gives INCONCLUSIVE."""
    resamples: int = Field(default=4000, ge=200)
    """Bootstrap resamples over groups."""
