"""Replay the components whose photos arrive at several times; `mm_core.ingest.holdout` describes the rules.

A union-find forest over declared groups is joined arrival by arrival. Photos of one arrival and group that differ in
nothing that the rules use are one event.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np

from mm_core.core.params import SnapshotParams

NEVER = int(np.iinfo(np.int64).max)
"""Arrival number of what does not happen."""


@dataclass(frozen=True)
class Arrivals:
    """The samples of a catalog in columns, and their declared groups."""

    time: np.ndarray
    """(samples,) int: number of the arrival, by time; photos that one run accepted are decided together."""
    group: np.ndarray
    """(samples,) int: number of the declared group."""
    component: np.ndarray
    """(samples,) int: number of the component, from all arrivals."""
    category: np.ndarray
    """(samples,) int: number of the category; unknown categories are one category of their own."""
    labelled: np.ndarray
    """(samples,) bool: arrived with a label."""
    asked: np.ndarray
    """(samples,) bool: has the role `eval`."""
    drawable: np.ndarray
    """(samples,) bool: arrived with a label, without a role, and is no edited form of an earlier photo."""
    changed: np.ndarray
    """(samples,) bool: its component has an entry in `joins` or `freed`."""
    order: np.ndarray
    """(groups,) int: place in the alphabetical order of the groups with a labelled photo; -1 for other groups."""
    trained: np.ndarray
    """(samples,) bool: an earlier cycle has trained on it, or on a forgotten photo of its group."""
    validated: np.ndarray
    """(samples,) bool: it or a forgotten photo of its group has chosen the checkpoint of an earlier cycle."""
    lost: np.ndarray
    """(groups,) int: number of the first arrival for which no photo of the group counts; NEVER if one does."""
    eval_share: np.ndarray
    """(groups,) float: the stable hash of the group for evaluation, in [0, 1)."""
    validation_share: np.ndarray
    """(groups,) float: the stable hash of the group for validation, in [0, 1)."""
    joins: Sequence[tuple[int, int, int]] = ()
    """Arrival before which a photo was moved between two groups, and these: they are one scene from then on."""
    freed: Sequence[tuple[int, int]] = ()
    """Arrival before which a photo of the group was freed for training, and the group."""


@dataclass
class Needs:
    """The groups of one category for one purpose (evaluation or validation).

    Groups of components that arrive at one time are only counted; the other groups are kept by number.
    """

    seen: int = 0
    """Groups that have arrived."""
    filled: int = 0
    """Groups that are held out."""
    seen_groups: set[int] = field(default_factory=set)
    filled_groups: set[int] = field(default_factory=set)
    _lost: list[int] = field(default_factory=list)
    """Heap of the arrivals at which held-out groups lose their last label."""
    _gone: int = 0

    def see(self, group: int) -> None:
        """Count a group once."""
        if group not in self.seen_groups:
            self.seen_groups.add(group)
            self.seen += 1

    def fill(self, group: int, lost: int) -> None:
        """Hold a group out, once; `lost` is the arrival at which it loses its label."""
        if group not in self.filled_groups:
            self.filled_groups.add(group)
            self.fill_new(lost)

    def fill_new(self, lost: int) -> None:
        """Hold out a group that arrives at one time."""
        self.filled += 1
        if lost != NEVER:
            heappush(self._lost, lost)

    def count(self, time: int) -> int:
        """Return the number of held-out groups with a label at an arrival; `time` never decreases."""
        while self._lost and self._lost[0] <= time:
            heappop(self._lost)
            self._gone += 1
        return self.filled - self._gone


class GrowingComponents:
    """The replay of some rows. Its methods are called once per arrival, in the order in which they are defined."""

    def __init__(
        self, params: SnapshotParams, arrivals: Arrivals, rows: np.ndarray, links: tuple[np.ndarray, np.ndarray]
    ) -> None:
        """Prepare the replay.

        Args:
            params: Shares and least numbers.
            arrivals: All samples.
            rows: Positions of the samples to replay, whole components.
            links: Positions of samples with the same content.
        """
        self.least_share = params.eval_share
        labelled = arrivals.labelled[rows]
        columns = (
            arrivals.time[rows],
            arrivals.group[rows],
            labelled,
            arrivals.asked[rows],
            arrivals.drawable[rows],
            arrivals.trained[rows],
            arrivals.validated[rows],
            # Photos without a label are not counted in a category.
            np.where(labelled, arrivals.category[rows], 0),
        )
        key = np.zeros(len(rows), np.int64)
        for column in columns:
            key = key * (int(column.max(initial=0)) + 1) + column
        _, first, self.event_of = np.unique(key, return_index=True, return_inverse=True)
        time, group, labelled, asked, drawable, trained, validated, category = (column[first] for column in columns)
        # Declared groups of these rows, by consecutive numbers: the nodes of the forest.
        # A photo may have been moved to a group that no photo arrived with.
        named = [number for _, *both in arrivals.joins for number in both]
        self.groups, nodes = np.unique(np.concatenate((group, np.array(named, np.int64))), return_inverse=True)
        nodes = nodes[: len(group)]
        self.node, self.labelled, self.asked = nodes.tolist(), labelled.tolist(), asked.tolist()
        self.drawable, self.category = drawable.tolist(), category.tolist()
        self.trained, self.validated = trained.tolist(), validated.tolist()
        self.order, self.lost = arrivals.order[self.groups].tolist(), arrivals.lost[self.groups].tolist()
        self.eval_share = arrivals.eval_share[self.groups].tolist()
        count = len(self.groups)
        self.parent = list(range(count))
        # Flags per component, stored at its root: whether its photos train, evaluate or validate.
        self.learnt, self.judges, self.validates = [False] * count, [False] * count, [False] * count
        # Flags per component: whether an earlier cycle has learnt from it, which excludes a use of arriving photos.
        self.bars_eval, self.bars_validation = [False] * count, [False] * count
        self.picked: set[int] = set()
        self.evaluation, self.validation, self.refused = (np.zeros(len(first), bool) for _ in range(3))
        times, begins = np.unique(time, return_index=True)
        ends = [*begins[1:].tolist(), len(first)]
        self.spans = dict(zip(times.tolist(), zip(begins.tolist(), ends, strict=False), strict=True))
        self.links = self._links(arrivals, rows, links)
        self.freed: dict[int, list[int]] = defaultdict(list)
        for when, freed in arrivals.freed:
            self.freed[when].append(int(np.searchsorted(self.groups, freed)))

    def _links(
        self, arrivals: Arrivals, rows: np.ndarray, links: tuple[np.ndarray, np.ndarray]
    ) -> dict[int, list[tuple[int, int]]]:
        """Return arrival → pairs of nodes that it joins: a link takes effect when the later photo arrives."""
        replayed = np.zeros(len(arrivals.time), bool)
        replayed[rows] = True
        left, right = (side[replayed[links[0]]] for side in links)
        time = np.maximum(arrivals.time[left], arrivals.time[right]).tolist()
        sides = [np.searchsorted(self.groups, arrivals.group[side]).tolist() for side in (left, right)]
        joined: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for when, one, other in zip(time, *sides, strict=True):
            joined[when].append((one, other))
        for when, *both in arrivals.joins:
            one, other = np.searchsorted(self.groups, both).tolist()
            joined[when].append((one, other))
        return joined

    def _root(self, node: int) -> int:
        parent = self.parent
        while parent[node] != node:
            # Path halving keeps the trees flat.
            parent[node] = node = parent[parent[node]]
        return node

    def _join(self, one: int, other: int) -> None:
        one, other = self._root(one), self._root(other)
        if one != other:
            self.parent[other] = one
            # A joined component has the flags of both parts.
            for flags in (self.learnt, self.judges, self.validates, self.bars_eval, self.bars_validation):
                flags[one] |= flags[other]

    def choose_eval(self, time: int, needs: list[Needs]) -> dict[int, list[int]]:
        """Decide the arriving events by their role and their hash.

        Args:
            time: The arrival.
            needs: The needs of each category, which are updated.

        Returns:
            Category → nodes of the groups that may be picked if the category needs more.
        """
        for one, other in self.links.get(time, ()):
            self._join(one, other)
        for node in self.freed.get(time, ()):
            self.learnt[self._root(node)] = True
        self.events = range(*self.spans.get(time, (0, 0)))
        self.roots = [self._root(self.node[event]) for event in self.events]
        # Evaluation is decided first, so that validation cannot use an evaluation component.
        self.fresh = [not (self.learnt[root] or self.validates[root]) for root in self.roots]
        for event, root in zip(self.events, self.roots, strict=True):
            self.bars_eval[root] |= self.trained[event] or self.validated[event]
            self.bars_validation[root] |= self.trained[event]
        waiting: dict[int, set[int]] = defaultdict(set)
        for event, root, fresh in zip(self.events, self.roots, self.fresh, strict=True):
            node = self.node[event]
            if self.asked[event]:
                # The producer asked for evaluation. This fails only if related photos were in training.
                chosen = fresh and not self.bars_eval[root]
                self.refused[event] = not chosen
            elif self.drawable[event] and fresh:
                # The stable hash gives the share without a random state. A chosen group stays chosen.
                # A component that an earlier cycle has learnt from counts as seen, as it did in that cycle.
                able = not self.bars_eval[root]
                chosen = able and (self.eval_share[node] < self.least_share or node in self.picked)
                if able and not chosen and not self.judges[root]:
                    # Candidates for the case that the hash gives too few groups.
                    waiting[self.category[event]].add(node)
            else:
                continue
            self.evaluation[event] = chosen
            if self.labelled[event]:
                needs[self.category[event]].see(node)
                if chosen:
                    needs[self.category[event]].fill(node, self.lost[node])
        return {category: sorted(nodes - needs[category].filled_groups) for category, nodes in waiting.items()}

    def choose_validation(self, time: int, needs: list[Needs]) -> dict[int, dict[int, int]]:
        """Mark the photos of the picked groups, and list the arriving components that may be used for validation.

        Args:
            time: The arrival of the last `choose_eval`.
            needs: The needs of each category, which are updated.

        Returns:
            Category → node of the group that names the component → its root.
        """
        arriving = list(zip(self.events, self.roots, strict=True))
        for (event, root), fresh in zip(arriving, self.fresh, strict=True):
            is_able = fresh and self.drawable[event] and not self.bars_eval[root]
            if is_able and self.node[event] in self.picked:
                self.evaluation[event] = True
        for event, root in arriving:
            self.judges[root] |= bool(self.evaluation[event])
        self.able = [
            (event, root)
            for event, root in arriving
            if self.labelled[event] and not self.asked[event] and not (self.learnt[root] or self.judges[root])
        ]
        # Components are drawn as a unit. The alphabetically first group gives the unit its name and hash.
        unit: dict[int, int] = {}
        for event, root in self.able:
            node = self.node[event]
            if self.order[node] < self.order[unit.setdefault(root, node)]:
                unit[root] = node
        # Photos of a validation component join it.
        self.chosen = {root for _, root in self.able if self.validates[root] and not self.bars_validation[root]}
        waiting: dict[int, dict[int, int]] = defaultdict(dict)
        for event, root in self.able:
            category, name = self.category[event], unit[root]
            needs[category].see(name)
            if root in self.chosen:
                needs[category].fill(name, self.lost[name])
            elif not self.bars_validation[root]:
                waiting[category][name] = root
        return {
            category: {name: root for name, root in names.items() if name not in needs[category].filled_groups}
            for category, names in waiting.items()
        }

    def settle(self, drawn: set[int]) -> None:
        """Hold the drawn roots out for validation; all remaining photos train the model."""
        self.chosen |= drawn
        for event, root in self.able:
            if root in self.chosen:
                self.validation[event] = self.validates[root] = True
        for event, root in zip(self.events, self.roots, strict=True):
            # The component of a training photo can never be held out later.
            if not (self.judges[root] or self.validates[root] or self.refused[event]):
                self.learnt[root] = True
