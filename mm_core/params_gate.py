"""The section `gate` of params.yaml: when a candidate may ship. `mm_core.params` has the other sections."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Metric = Literal["mse", "maxf", "biou", "conn"]


class Section(BaseModel):
    """A section of params.yaml: unknown keys are refused, every field's docstring is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class GateParams(Section):
    mode: Literal["macro", "primary", "strict"] = "macro"
    """`macro`: the primary metric is better in all six categories, better with confidence on their mean, and no metric
    of any category is worse by more than its margin, with confidence. `primary`: the primary metric is better with
    confidence in each category. `strict`: so are all of mse, maxf, biou and conn (24 cells)."""
    primary: Literal["mse", "sad", "conn", "grad", "maxf", "biou"] = "mse"
    """The metric that must improve in every category."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """One-sided error level of each comparison; as all must pass, it is the level of the whole verdict too."""
    delta: float = Field(default=0.0, ge=0)
    """Modes primary and strict: the gain must exceed this share of the champion's value, with confidence."""
    guard: float = Field(default=0.03, ge=0)
    """Modes primary and strict: a true loss of this share of the champion's primary metric must be excluded in every
    category…"""
    guard_alpha: float = Field(default=0.005, gt=0, lt=0.5)
    """…with this one-sided error level: with few photos a lucky draw passes `alpha` too often."""
    tail_guard: float = Field(default=0.15, ge=0)
    """Mode macro: comparisons of mse and conn soften the largest errors and winsorise. Of the plain mean of the primary
    metric a loss of this share must therefore be excluded too."""
    seed_noise: float = Field(default=1.0, ge=0)
    """Where `mm gate noise` measured how much two trainings differ by their seeds alone: a gain of fewer than so many
    standard deviations of that difference is warned of; 0 leaves it aside."""
    shadow_difference: float = Field(default=0.1, ge=0, le=1)
    """Mattes of a shadow photo disagree where they differ by more than this on average (absolute, of 1)."""
    shadow_share: float = Field(default=1.0, ge=0, le=1)
    """More disagreeing shadow photos than this share hold a promotion back for people to look; 1 never does."""
    eval_budget: int = Field(default=104, ge=1)
    """Candidates that one set of eval photos should judge: the verdict asks for fresh eval photos from four fifths on.
    Whoever asks the same photos often enough is told yes by chance."""
    margins: dict[Metric, float] = {"mse": 0.05, "maxf": 0.01, "biou": 0.015, "conn": 0.05}
    """By how much a metric may seem worse than the champion's, and than the best model's so far: relative for mse and
    conn, absolute for maxf and biou."""
    accept_loss: tuple[Literal["scenery"], ...] = ()
    """Categories beside the six whose certain loss does not block."""
    floors: dict[Metric, float] = {"mse": 0.05, "maxf": 0.85, "biou": 0.5}
    """What a first model must reach in every category with confidence, beside beating the blind matte."""
    beat_blind: bool = True
    """A first model must be better than the blind matte (the mean matte of the category) with confidence."""
    quantised_mse: float = Field(default=0.05, ge=0)
    """int8 may cost at most this share of the float model's MSE in each category (plus 1e-4 absolute)."""
    min_images: int = Field(default=8, ge=2)
    """Evaluation photos that each category needs; fewer is INCONCLUSIVE."""
    resamples: int = Field(default=4000, ge=200)
    """Bootstrap resamples over groups."""
