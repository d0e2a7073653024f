"""Guess the category of photos whose manifest states none. A guess is stored separately and never replaces a category.

With pretrained CLIP weights the method is zero-shot over sentences about the seven categories. Without them it is
linear discriminant analysis (scikit-learn, Ledoit-Wolf shrinkage) on the vectors (`Chosen.vectors`) of photos with a
category. Its confidence is calibrated on held-out photos by isotonic regression: the share of correct guesses among
those with the same probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd

from mm_core.core.categories import ALL_CATEGORIES, SENTENCES
from mm_core.core.deferred import Deferred
from mm_core.core.params import StructureParams
from mm_core.core.records import Report
from mm_core.storage.catalog import Catalog
from mm_core.structuring.decode import code_version
from mm_core.structuring.rows import Found, row_of

if TYPE_CHECKING:
    from sklearn import discriminant_analysis, isotonic, model_selection

    from mm_core.structuring.extractors import Chosen
    from mm_core.structuring.tags import ClipTags
else:
    discriminant_analysis = Deferred("sklearn.discriminant_analysis")
    isotonic = Deferred("sklearn.isotonic")
    model_selection = Deferred("sklearn.model_selection")

EXTRACTOR = "guess"
VERSION = code_version(__name__)

FOLDS = 5
LEAST = 2 * FOLDS
"""Minimum number of labelled scenes of a category for guessing it: two per fold."""
CHUNK = 4096
"""Photos per commit."""
MOST = 4000
"""Maximum number of labelled photos to learn from, so that the cost does not grow with the catalog."""


@dataclass(frozen=True)
class Guess:
    """The most probable category of one photo."""

    category: str
    confidence: float
    """Probability in [0, 1]."""


class Guesser(Protocol):
    """Interface of the two methods."""

    def guess(self, vectors: np.ndarray) -> Sequence[Guess | None]:
        """Return guesses for vectors (N, dim) in their order; None if no guess is possible."""
        ...


class ClipGuesser:
    """Zero-shot: the score of a category is the photo's similarity to the mean of its sentences."""

    def __init__(self, tags: ClipTags) -> None:
        clip = tags.clip
        means = np.stack([clip.encode_text(SENTENCES[category]).mean(0) for category in ALL_CATEGORIES])
        self._means = means / np.linalg.norm(means, axis=1, keepdims=True)
        self._scale = clip.logit_scale

    def guess(self, vectors: np.ndarray) -> list[Guess]:
        """Return the most probable category of each vector (N, dim), by a softmax over the categories."""
        logits = self._scale * vectors @ self._means.T
        chances = np.exp(logits - logits.max(1, keepdims=True))
        chances /= chances.sum(1, keepdims=True)
        return [Guess(ALL_CATEGORIES[row.argmax()], float(row.max())) for row in chances]


class LearnedGuesser:
    """Trained on photos with a category. `classes` is empty if there are too few photos for any guess."""

    def __init__(self, vectors: np.ndarray, categories: Sequence[str], groups: Sequence[str]) -> None:
        """Fit the classifier and its calibration.

        Args:
            vectors: float32 (N, dim).
            categories: Category of each vector.
            groups: Scene of each vector; a scene is never on both sides of the held-out test.
        """
        labelled = pd.DataFrame({"category": list(categories), "group": list(groups)})
        # Only categories with enough scenes can be cross-validated.
        scenes = labelled.groupby("category")["group"].nunique()
        self.classes = sorted(scenes[scenes >= LEAST].index)
        if len(self.classes) < 2:
            self.classes = []
            return
        # Calibrate on predictions for photos that the classifier was not trained on.
        used = labelled["category"].isin(self.classes).to_numpy()
        x, y = vectors[used], np.array(list(categories))[used]
        model = discriminant_analysis.LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        held_out = model_selection.cross_val_predict(
            model, x, y, groups=np.array(list(groups))[used], cv=model_selection.StratifiedGroupKFold(FOLDS),
            method="predict_proba",
        )  # fmt: skip
        # Calibrate the largest probability against the share of correct guesses.
        right = np.array(self.classes)[held_out.argmax(1)] == y
        self._calibration = isotonic.IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(
            held_out.max(1), right
        )
        self._model = model.fit(x, y)

    def guess(self, vectors: np.ndarray) -> Sequence[Guess | None]:
        """Return calibrated guesses for vectors (N, dim)."""
        if not self.classes or not len(vectors):
            return [None] * len(vectors)
        chances = self._model.predict_proba(vectors)
        confidences = self._calibration.predict(chances.max(1))
        return [
            Guess(self.classes[best], float(confidence))
            for best, confidence in zip(chances.argmax(1), confidences, strict=True)
        ]


def guess_new(params: StructureParams, catalog: Catalog, tools: Chosen, report: Report) -> None:
    """Add a row `guess` for each sample that has neither a category nor a guess.

    A row has the text `category` and the number `confidence`. Below `structure.guess_confidence`, or if no guess is
    possible, the text is `withheld` with the reason instead. `report.metrics` gets the counts structure/guesses and
    structure/guesses_withheld.
    """
    source, clip = tools.vectors, tools.clip
    version = f"{VERSION}/{source[0]}/{source[1]}" + ("" if clip else f"/{_doublings(_known(catalog))}")
    todo = _unguessed(catalog, version)
    if not todo:
        return
    guesser = ClipGuesser(clip) if clip else _learned(catalog, source)
    given = withheld = 0
    # Commit in chunks, so that a killed run loses little.
    for start in range(0, len(todo), CHUNK):
        ids, vectors = vectors_of(catalog, source, todo[start : start + CHUNK])
        rows = []
        for sample_id, guess in zip(ids, guesser.guess(vectors), strict=True):
            # A guess below the limit is stored as withheld, so it is not computed again.
            sure = guess is not None and guess.confidence >= params.guess_confidence
            rows.append(row_of(sample_id, EXTRACTOR, version, _found(guess, sure)))
            given, withheld = given + sure, withheld + (not sure)
        catalog.upsert("features", rows)
    report.metrics |= {"structure/guesses": given, "structure/guesses_withheld": withheld}


def guesser_of(catalog: Catalog, tools: Chosen) -> tuple[Guesser, str]:
    """Return the guesser for photos outside the catalog, and the version of its guesses.

    The guesser takes vectors of `tools.vectors`.
    """
    if tools.clip:
        return ClipGuesser(tools.clip), f"{VERSION}/{tools.clip.version}"
    source = tools.vectors
    return _learned(catalog, source), f"{VERSION}/{source[0]}/{source[1]}/{_doublings(_known(catalog))}"


def _known(catalog: Catalog) -> int:
    """Return the number of samples with a category."""
    return int(catalog.query("SELECT count(*) AS photos FROM samples WHERE category IS NOT NULL").iloc[0, 0])


def _unguessed(catalog: Catalog, version: str) -> list[str]:
    """Return the sorted ids of samples without a category and without a guess of this version."""
    done = f"SELECT sample_id FROM features WHERE extractor = '{EXTRACTOR}' AND version = '{version}'"
    rows = catalog.query(
        f"SELECT s.id FROM samples s LEFT ANTI JOIN ({done}) f ON f.sample_id = s.id WHERE s.category IS NULL"
    )
    return sorted(rows["id"]) if len(rows) else []


def vectors_of(catalog: Catalog, source: tuple[str, str], ids: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the ids that have a vector by extractor and version `source`, and the vectors float32 (N, dim)."""
    rows = catalog.read(
        "features",
        columns=["sample_id", "vector"],
        filters=[("extractor", "=", source[0]), ("version", "=", source[1]), ("sample_id", "in", list(ids))],
    )
    return list(rows["sample_id"]), np.stack(rows["vector"].to_list()) if len(rows) else np.zeros((0, 0), np.float32)


def _found(guess: Guess | None, sure: bool) -> Found:
    """Return the texts and numbers of a guess's row."""
    if guess is None:
        return Found(texts={"withheld": "too few photos with a category to learn from"})
    numbers = {"confidence": guess.confidence}
    if sure:
        return Found(numbers, {"category": guess.category})
    return Found(numbers, {"withheld": f"{guess.category} is the most probable, but not sure enough"})


def _learned(catalog: Catalog, source: tuple[str, str]) -> LearnedGuesser:
    """Return a guesser trained on photos with a category."""
    # Ids are digests, so the smallest ones are a random sample that is the same in every run.
    known = catalog.query(
        f'SELECT id, category, "group" FROM samples WHERE category IS NOT NULL ORDER BY id LIMIT {MOST}'
    )
    chosen = (known if len(known) else pd.DataFrame(columns=["id", "category", "group"])).set_index("id")
    ids, vectors = vectors_of(catalog, source, list(chosen.index))
    chosen = chosen.loc[ids]
    # A photo without a group is a scene of its own.
    groups = chosen["group"].where(chosen["group"].astype(bool), pd.Series(chosen.index, chosen.index))
    return LearnedGuesser(vectors, list(chosen["category"]), list(groups))


def _doublings(count: int) -> int:
    """Return the number of doublings of `count`, which is part of the version.

    Guesses are repeated each time the number of photos to learn from has doubled, at a cost in proportion to new
    photos.
    """
    return int(math.log2(count)) if count else -1
