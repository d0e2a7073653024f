"""Decide for each arrival which groups are held out of training for evaluation or validation.

Only an arriving group can be held out, because a model may have been trained on an earlier one. This module therefore
replays the arrivals of the catalog in order. Each arriving photo joins its component: its declared group and its
near-duplicates. A photo is never held out if its component was in a training pool before. A decision depends only on
its own arrival and earlier ones, so later photos never change it.

Changed params or a forgotten photo do change the decisions of old arrivals. What cycles have learnt from is therefore
recorded (`mm_core.ingest.learnt`), and no photo whose component contains such a photo by its arrival is held out.

Most components arrive at one time. Their photos are decided in columns, and the replay only counts them and draws from
sorted candidates. The other components are replayed by `mm_core.ingest.holdout_growing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from mm_core.core.params import SnapshotParams
from mm_core.ingest.holdout_growing import NEVER, Arrivals, GrowingComponents, Needs

MOST_SHARE = Fraction(2, 5)
"""Largest share of a category's groups that `eval_least` may use; the other groups train the model."""
MIN_VALIDATION_PHOTOS = 8
"""Least number of validation photos of a category; fewer cannot choose a checkpoint and are used for training."""
LEARNT = "role eval, but it or a photo of its scene arrived earlier for training"


@dataclass
class HeldOut:
    """The decisions, one entry per sample."""

    evaluation: np.ndarray
    """(samples,) bool: used for evaluation when it has a label and a category."""
    validation: np.ndarray
    """(samples,) bool: used to choose checkpoints."""
    refused: np.ndarray
    """(samples,) bool: role `eval`, but not usable for evaluation, for the reason LEARNT."""


def eval_quota(groups: int, params: SnapshotParams) -> int:
    """Return the number of evaluation groups for a category with `groups` labelled groups.

    The number is at least `eval_least`, limited by MOST_SHARE, and at least `eval_share` of all groups.
    """
    # Whole numbers only: a product of floats may fall just below the next group.
    most = groups * MOST_SHARE.numerator // MOST_SHARE.denominator
    return max(int(params.eval_share * groups), min(params.eval_least, most))


def validation_quota(groups: int, params: SnapshotParams) -> int:
    """Return the number of validation groups for a category with `groups` groups outside evaluation.

    The number is 0 if `validation_share` gives fewer than MIN_VALIDATION_PHOTOS.
    """
    quota = int(params.validation_share * groups)
    return quota if quota >= MIN_VALIDATION_PHOTOS else 0


def hold_out(params: SnapshotParams, arrivals: Arrivals, links: tuple[np.ndarray, np.ndarray]) -> HeldOut:
    """Replay the arrivals of a catalog and decide which samples are held out of training.

    Args:
        params: Shares and least numbers.
        arrivals: The samples.
        links: Positions of samples with the same content, as two int arrays of equal length.

    Returns:
        The decisions, in the order of the samples.
    """
    if not len(arrivals.time):
        return HeldOut(*(np.zeros(0, bool) for _ in range(3)))
    return _Replay(params, arrivals, links).run()


class _Candidates:
    """Groups that may be drawn, sorted by step, hash and name. A step is one category at one arrival."""

    def __init__(self, step: np.ndarray, group: np.ndarray, share: np.ndarray, order: np.ndarray) -> None:
        """Sort the candidates.

        Args:
            step: (candidates,) int: arrival × categories + category.
            group: (candidates,) int: number of the group.
            share: (groups,) float: the hash of each group.
            order: (groups,) int: the alphabetical order of the groups.
        """
        # lexsort sorts by its last key first: step, then hash, then name.
        places = np.lexsort((order[group], share[group], step))
        self.group = group[places]
        steps, begins = np.unique(step[places], return_index=True)
        ends = [*begins[1:].tolist(), len(places)]
        # Step → position of its first candidate and of the one after its last.
        self.spans = dict(zip(steps.tolist(), zip(begins.tolist(), ends, strict=False), strict=True))

    def groups(self, step: int) -> np.ndarray:
        """Return the groups of a step."""
        return self.group[slice(*self.spans.get(step, (0, 0)))]


class _Replay:
    """One replay. Components that arrive at one time are decided here, in columns."""

    def __init__(self, params: SnapshotParams, arrivals: Arrivals, links: tuple[np.ndarray, np.ndarray]) -> None:
        self.params, self.arrivals = params, arrivals
        components, groups = int(arrivals.component.max()) + 1, len(arrivals.order)
        first, last = np.full(components, NEVER), np.full(components, -1)
        # First and last arrival of each component; `at` takes repeated indices into account.
        np.minimum.at(first, arrivals.component, arrivals.time)
        np.maximum.at(last, arrivals.component, arrivals.time)
        # Moves between groups take effect at their own time, so they are replayed too.
        self.at_once = (first == last)[arrivals.component] & ~arrivals.changed
        self.growing_rows = np.flatnonzero(~self.at_once)
        self.growing = GrowingComponents(params, arrivals, self.growing_rows, links)
        self.categories = int(arrivals.category.max()) + 1
        self.step = arrivals.time * self.categories + arrivals.category
        self.eval_needs = [Needs() for _ in range(self.categories)]
        self.validation_needs = [Needs() for _ in range(self.categories)]
        self.component_of = np.zeros(groups, np.int64)
        self.component_of[arrivals.group] = arrivals.component
        # Groups picked for evaluation in addition to the share of hashes, and the components that are held out.
        self.picked, self.judges, self.validates = (np.zeros(n, bool) for n in (groups, components, components))
        # Components that an earlier cycle has learnt from; a checkpoint's choice excludes from evaluation only.
        self.bars_eval, self.bars_validation = np.zeros(components, bool), np.zeros(components, bool)
        self.bars_eval[arrivals.component[arrivals.trained | arrivals.validated]] = True
        self.bars_validation[arrivals.component[arrivals.trained]] = True
        self._prepare_eval()
        self._prepare_validation()

    def _prepare_eval(self) -> None:
        """Decide by role and hash, and count the groups of each step."""
        arrivals, groups = self.arrivals, len(self.arrivals.order)
        in_share = (arrivals.eval_share < self.params.eval_share)[arrivals.group]
        able = self.at_once & ~self.bars_eval[arrivals.component]
        self.chosen = able & (arrivals.asked | (arrivals.drawable & in_share))
        self.judges[arrivals.component[self.chosen]] = True
        # One number per step and group; `unique` then counts a group once per step.
        pair = self.step * groups + arrivals.group
        counted = self.at_once & arrivals.labelled & (arrivals.asked | arrivals.drawable)
        filled = np.unique(pair[counted & self.chosen])
        steps, counts = np.unique(np.unique(pair[counted]) // groups, return_counts=True)
        self.eval_seen = dict(zip(steps.tolist(), counts.tolist(), strict=True))
        self.eval_filled: dict[int, list[int]] = {}
        for step, lost in zip((filled // groups).tolist(), arrivals.lost[filled % groups].tolist(), strict=True):
            self.eval_filled.setdefault(step, []).append(lost)
        # Candidates for the case that the hash gives too few groups.
        waiting = np.setdiff1d(pair[able & arrivals.drawable & ~self.chosen], filled)
        self.eval_waiting = _Candidates(waiting // groups, waiting % groups, arrivals.eval_share, arrivals.order)

    def _prepare_validation(self) -> None:
        """List the components of each step. The alphabetically first labelled group names a component."""
        arrivals, components = self.arrivals, len(self.judges)
        rows = np.flatnonzero(self.at_once & arrivals.labelled & ~arrivals.asked & ~self.judges[arrivals.component])
        component, order = arrivals.component[rows], arrivals.order[arrivals.group[rows]]
        first = np.full(components, NEVER)
        # First place in the alphabet within each component, and the group at each place.
        np.minimum.at(first, component, order)
        group_of = np.zeros(int(arrivals.order.max()) + 1, np.int64)
        group_of[order] = arrivals.group[rows]
        pair = np.unique(self.step[rows] * components + component)
        names = group_of[first[pair % components]]
        self.validation_waiting = _Candidates(pair // components, names, arrivals.validation_share, arrivals.order)

    def run(self) -> HeldOut:
        """Replay all arrivals in order of time."""
        for time in range(int(self.arrivals.time.max()) + 1):
            # Evaluation is decided first, so that validation cannot use an evaluation component.
            is_picked = self._choose_eval(time)
            self._choose_validation(time, is_picked)
        arrivals, growing, rows = self.arrivals, self.growing, self.growing_rows
        # The photos of a picked group judge, apart from those with a role and edited forms of earlier photos.
        held = HeldOut(
            evaluation=self.chosen | (arrivals.drawable & self.picked[arrivals.group]),
            validation=arrivals.labelled & ~arrivals.asked & self.validates[arrivals.component],
            refused=self.at_once & arrivals.asked & ~self.chosen,
        )
        held.evaluation[rows] = growing.evaluation[growing.event_of]
        held.validation[rows] = growing.validation[growing.event_of]
        held.refused[rows] = growing.refused[growing.event_of]
        return held

    def _choose_eval(self, time: int) -> bool:
        """Count the arriving groups and pick as many as their categories still need; return whether any is picked."""
        arrivals, growing, is_picked = self.arrivals, self.growing, False
        waiting = growing.choose_eval(time, self.eval_needs)
        for category, needs in enumerate(self.eval_needs):
            step = time * self.categories + category
            needs.seen += self.eval_seen.get(step, 0)
            for lost in self.eval_filled.get(step, ()):
                needs.fill_new(lost)
            open_nodes = waiting.get(category, ())
            if not open_nodes and step not in self.eval_waiting.spans:
                continue
            short = eval_quota(needs.seen, self.params) - needs.count(time)
            groups, nodes = self._draw(needs, self.eval_waiting.groups(step), open_nodes, arrivals.eval_share, short)
            self.picked[groups] = True
            self.judges[self.component_of[groups]] = True
            growing.picked.update(nodes)
            is_picked |= bool(groups)
        return is_picked

    def _choose_validation(self, time: int, is_picked: bool) -> None:
        """Draw the arriving components with the smallest hashes up to the share of their categories."""
        arrivals, growing = self.arrivals, self.growing
        waiting = growing.choose_validation(time, self.validation_needs)
        roots: set[int] = set()
        for category, needs in enumerate(self.validation_needs):
            step = time * self.categories + category
            names, open_nodes = self.validation_waiting.groups(step), waiting.get(category, {})
            if is_picked:
                # `_prepare_validation` left out components held out by role or hash; this leaves out picked ones.
                names = names[~self.judges[self.component_of[names]]]
            needs.seen += len(names)
            # Photos that were trained on count, as they did when they arrived, but are not drawn.
            names = names[~self.bars_validation[self.component_of[names]]]
            waits = len(names) + len(open_nodes)
            if not waits:
                continue
            quota, count = validation_quota(needs.seen, self.params), needs.count(time)
            # The first draw must reach the minimum in one step. With small drops it starts at twice that quota.
            if not (count > 0 or waits >= MIN_VALIDATION_PHOTOS or quota >= 2 * MIN_VALIDATION_PHOTOS):
                continue
            groups, nodes = self._draw(needs, names, [*open_nodes], arrivals.validation_share, quota - count)
            self.validates[self.component_of[groups]] = True
            roots |= {open_nodes[node] for node in nodes}
        growing.settle(roots)

    def _draw(
        self, needs: Needs, sorted_groups: np.ndarray, nodes: Sequence[int], share: np.ndarray, most: int
    ) -> tuple[list[int], list[int]]:
        """Hold out the groups and the nodes of growing components with the smallest hashes, `most` in total.

        Smallest hashes first: a larger quota then extends the same set.
        """
        if most <= 0:
            return [], []
        order, growing = self.arrivals.order, self.growing
        entries = [(share[group], order[group], group, False) for group in sorted_groups[:most].tolist()]
        entries += [(share[growing.groups[node]], order[growing.groups[node]], node, True) for node in nodes]
        drawn = sorted(entries)[:most]
        groups, drawn_nodes = ([n for *_, n, grows in drawn if grows is kind] for kind in (False, True))
        for group in groups:
            needs.fill_new(int(self.arrivals.lost[group]))
        for node in drawn_nodes:
            needs.fill(node, growing.lost[node])
        return groups, drawn_nodes
