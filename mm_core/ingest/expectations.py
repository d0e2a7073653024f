"""Validate drops with Great Expectations suites over the table of probes.

Row rules have severity `warning`: a failed one moves its row to quarantine and does not stop the drop.
Batch rules validate the whole drop: a failed `critical` rule holds the drop, a failed `warning` is only shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from html import escape
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
import pandas as pd

from mm_core.core.deferred import Deferred
from mm_core.core.errors import MattingError
from mm_core.core.params import IngestParams
from mm_core.core.records import ALL_CATEGORIES, KINDS
from mm_core.imaging.images import FORMATS
from mm_core.ingest.batch_mix import CLASSES, Mix, expected
from mm_core.ingest.data_docs import DataDocs
from mm_core.ingest.matte_quality import MatteQuality
from mm_core.ingest.probe import Probe

if TYPE_CHECKING:
    import great_expectations as gx
    from great_expectations.core import ExpectationValidationResult, run_identifier
    from great_expectations.data_context.types import resource_identifiers as identifiers
    from great_expectations.expectations.expectation import Expectation
else:
    gx = Deferred("great_expectations")
    run_identifier = Deferred("great_expectations.core.run_identifier")
    identifiers = Deferred("great_expectations.data_context.types.resource_identifiers")

UNMEASURED = "not_measured"
"""Column that names the rules that could not be tried on a row, and the name of the expectation that it is null."""
MIX_COLUMNS: Mapping[str, str] = {f"{measure}_class": measure for measure in CLASSES}
LEAST_PEAK = 0.1
"""Least maximum of a matte with foreground, in [0, 1]; JPEG noise is lower."""


SUSPECT = "suspect matte"
"""Prefix of the reasons that hold a row for review by a person."""
MAY_LACK = ("category", "role", "sha256_as_declared", "taken_at_possible")
"""Columns of row rules that are null where the producer states nothing. In any other, null means: not measured."""


@dataclass(frozen=True)
class Rule:
    """One expectation, declared without loading Great Expectations."""

    name: str
    """Snake case; the name of the Dagster asset check."""
    scope: Literal["row", "batch"]
    reason: str
    """Reason for the quarantine of a row or for a held drop; one of a fixed list."""
    column: str
    detail: str = ""
    """Format string for the measured values, filled from the row's fields."""
    kinds: tuple[str, ...] = KINDS
    severity: Literal["critical", "warning"] = "warning"

    @property
    def suspects(self) -> bool:
        """Whether rows that break the rule are held for review by a person."""
        return self.reason.startswith(SUSPECT)

    @property
    def needs_value(self) -> bool:
        """Whether a row without a value fails the rule, because an earlier step could not measure it."""
        return self.scope == "row" and not self.suspects and self.column not in MAY_LACK


LABELED = ("pixel_labeled",)
OTHER_CONTENT = f"{{image_bytes}} bytes of something else: send {', '.join(FORMATS)}"
TIMES = "taken_at is {taken_at!r}: write the year first, as 2026-05-01T12:30:00+02:00, and no future time, or nothing"
RULES: tuple[Rule, ...] = (
    # Order matters: the first rule that a row breaks gives its reason.
    Rule("row_is_whole", "row", "malformed manifest row", "extra_fields", "{extra_fields} fields too many: quote it"),
    Rule("image_inside_batch", "row", "path outside the batch", "image_inside", "{note}"),
    Rule("alpha_inside_batch", "row", "path outside the batch", "alpha_inside", "alpha: {note}", LABELED),
    Rule("image_exists", "row", "missing image", "image_found", "{note}"),
    Rule("image_not_empty", "row", "empty file", "image_bytes", "{image_bytes} bytes"),
    Rule("image_not_huge", "row", "file too large", "image_bytes", "{image_bytes} bytes"),
    Rule("image_is_an_image", "row", "not an image", "image_recognised", OTHER_CONTENT),
    Rule("image_pixels", "row", "too many pixels", "pixels", "claims {pixels} pixels"),
    Rule("image_decodes", "row", "truncated or corrupt image", "image_decodes", "{note}"),
    Rule("image_checksum", "row", "checksum mismatch", "sha256_as_declared", "its sha256 is {sha256}"),
    Rule("image_large_enough", "row", "too small", "short_side", "{width}×{height} pixels"),
    Rule("alpha_exists", "row", "missing alpha", "alpha_found", "{note}", LABELED),
    Rule("alpha_not_huge", "row", "file too large", "alpha_bytes", "alpha: {alpha_bytes} bytes", LABELED),
    Rule("alpha_decodes", "row", "corrupt alpha", "alpha_decodes", "{note}", LABELED),
    Rule("alpha_is_grey", "row", "colour picture as alpha", "alpha_grey", "{note}", LABELED),
    Rule("alpha_size", "row", "size mismatch", "alpha_fits", "alpha {alpha_size}, image {width}×{height}", LABELED),
    Rule(
        "alpha_has_foreground",
        "row",
        "empty alpha (no foreground)",
        "alpha_highest",
        "largest value {alpha_highest:.3f} of 1; a mask of 0 and 1 is written as 0 and 255",
        LABELED,
    ),
    Rule(
        "alpha_has_background",
        "row",
        "full alpha (no background)",
        "alpha_lowest",
        "smallest value {alpha_lowest:.3f} of 1",
        LABELED,
    ),
    Rule("category_known", "row", "unknown category", "category", "{category!r}"),
    Rule("role_known", "row", "unknown role", "role", "{role!r}: train, eval or nothing"),
    Rule("time_possible", "row", "impossible time", "taken_at_possible", TIMES),
    Rule("caption_there", "row", "missing caption", "caption_length", kinds=("text_image",)),
    # Suspect mattes: a person reviews them (`mm quarantine accept`). `matte_quality` and `mattes` measure them.
    Rule("matte_is_no_photo", "row", f"{SUSPECT}: the photo itself", "alpha_is_photo", "its brightness", LABELED),
    Rule("matte_way_up", "row", f"{SUSPECT}: which way up", "alpha_way_up", "{way_up}", LABELED),
    *(
        Rule(f"matte_{name}", "row", f"{SUSPECT}: {said}", column, "{matte_numbers}", LABELED)
        for name, said, column in (
            ("not_inverted", "inverted", "matte_inversion"),
            ("reaches_one", "range", "matte_highest"),
            ("reaches_zero", "range", "matte_lowest"),
            ("area", "almost empty or full", "matte_foreground"),
            ("is_no_trimap", "a trimap", "matte_plateau"),
            ("without_holes", "holes", "matte_holes"),
            ("without_specks", "speckles", "matte_specks"),
            ("sharp_somewhere", "blurred", "matte_edge_width"),
            ("edge_in_photo", "edges disagree with the photo", "matte_edge_contrast"),
            ("edge_in_place", "edges disagree with the photo", "matte_edge_match"),
        )
    ),
    # Rules about the whole drop, over the table of decisions.
    Rule("few_bad_rows", "batch", "too many bad rows", "bad", severity="critical"),
    Rule("few_suspects", "batch", "too many suspect mattes", "suspect", kinds=LABELED, severity="critical"),
    Rule("few_duplicates", "batch", "mostly duplicates", "duplicate"),
    Rule("category_given", "batch", "mostly without category", "category"),
    Rule("soft_edges", "batch", "no matte has soft edges", "alpha_binary", kinds=LABELED),
    # Comparison with the latest batches of the kind (`batch_mix`).
    Rule("category_mix", "batch", "other categories than before", "category_class"),
    Rule("size_mix", "batch", "other sizes than before", "size_class"),
    Rule("brightness_mix", "batch", "other brightness than before", "brightness_class"),
)


def rules_of(kind: str, scope: str) -> list[Rule]:
    """Return the rules of a scope (`row` or `batch`) for a kind of drop, in order."""
    return [rule for rule in RULES if rule.scope == scope and kind in rule.kinds]


MATTE_MEASURES = tuple(field.name for field in fields(MatteQuality))


@dataclass(frozen=True)
class Fault:
    """The reason for the quarantine of one row."""

    reason: str
    detail: str

    @property
    def suspect(self) -> bool:
        """Whether the row is held for review instead of refused."""
        return self.reason.startswith(SUSPECT)


class ExpectationResult(TypedDict):
    """The result of one expectation for one drop."""

    batch: str
    """kind/batch"""
    kind: str
    name: str
    scope: str
    """row | batch"""
    severity: str
    success: bool
    unexpected: int
    """Number of failing rows; 0 or 1 for the whole drop."""
    unmeasured: int
    """Number of failing rows for which the rule could not be evaluated."""
    measured: int
    """Number of rows for which the rule was evaluated, or 1 for a number of the whole drop; 0: it was not evaluated.
    Results of earlier versions lack it."""
    observed: float | None
    reason: str


class BatchRecord(TypedDict, total=False):
    """The record of a batch in the store; empty before the first run."""

    expectations: list[ExpectationResult]
    mix: Mix
    arrival: str
    """Id of the arrival that planned `changes`."""
    changes: dict[str, list[tuple[str, str | None, str, int]]]
    """Row → lists of column, old, new, number."""


class Judge:
    """Validates one batch with Great Expectations: first its rows, then the whole drop."""

    def __init__(self, params: IngestParams, kind: str, batch: str, docs: DataDocs) -> None:
        self.params, self.kind, self.batch, self._docs = params, kind, batch, docs
        self.results: list[ExpectationResult] = []
        """One result per expectation, for reports and asset checks."""
        self._mix: dict[str, tuple[list[float], float] | None] = {}
        self._tables: Counter[str] = Counter()
        """Scope → number of validated tables."""

    def rows(self, probes: Sequence[Probe], reviewed: Collection[int] = ()) -> dict[int, Fault]:
        """Validate rows; a large drop is validated in pieces, and `results` then holds the sums.

        Args:
            probes: Measures of the rows.
            reviewed: Rows with a matte that a person has accepted; the suspect rules ignore them.

        Returns:
            Row → the first rule that it breaks.
        """
        by_row = {probe.row: _columns(probe) for probe in probes}
        # These expectations ignore null values, so null switches the suspect rules off.
        unsuspected = {rule.column: None for rule in RULES if rule.suspects}
        table = [{**columns, **(unsuspected if row in reviewed else {})} for row, columns in by_row.items()]
        faults: dict[int, Fault] = {}
        outcome = self._run("row", pd.DataFrame(table, dtype=object))
        for rule, broken, _ in outcome:
            for row in broken:
                said = rule.detail.format_map(by_row[row]).strip()
                # `_run` returns the rules in order: keep the first one per row.
                faults.setdefault(row, Fault(rule.reason, said))
        # A row that could not be measured has broken another rule. If it has not, it is refused all the same.
        for rule, _, unmeasured in outcome:
            for row in unmeasured:
                faults.setdefault(row, Fault(rule.reason, "not measured"))
        return faults

    def whole(self, verdicts: Iterable[Mapping[str, object]], before: Mix) -> str | None:
        """Validate the whole drop.

        Args:
            verdicts: One mapping per row: row, bad, suspect, duplicate (0 or 1), category, alpha_binary and the
                classes of `batch_mix`. A None value is not counted.
            before: Mix of the catalog.

        Returns:
            The reasons for holding the drop, or None.
        """
        columns = ["row", "bad", "suspect", "duplicate", "category", "alpha_binary", *MIX_COLUMNS]
        lines = [tuple(verdict.get(column) for column in columns) for verdict in verdicts]
        table = pd.DataFrame(lines, columns=pd.Index(columns), dtype=object)
        # The list and the table together would double the memory of a large drop.
        del lines
        # The mix is compared only if the drop and the catalog have enough rows.
        for column, measure in MIX_COLUMNS.items():
            self._mix[column] = expected(before.get(measure, {}), measure, len(table[column].dropna()))
        self._run("batch", table)
        broken = [r for r in self.results if r["scope"] == "batch" and r["severity"] == "critical" and not r["success"]]
        return "; ".join(r["reason"] for r in broken) or None

    def _run(self, scope: Literal["row", "batch"], table: pd.DataFrame) -> list[tuple[Rule, list[int], list[int]]]:
        """Validate a table; return each rule with the rows that break it and those that it could not be tried on."""
        context = self._docs.context
        # A mix rule without enough rows to compare is left out.
        rules = [rule for rule in rules_of(self.kind, scope) if self._mix.get(rule.column, rule) is not None]
        expectations = [_expect(rule, self.params, self._mix) for rule in rules]
        # Great Expectations ignores null values. One expectation for all rules costs less than one for each.
        untried = {rule: table[rule.column].isna().to_numpy(bool) for rule in rules if rule.needs_value}
        if untried:
            expectations.append(_expect_nothing_unmeasured())
            table = table.assign(**{UNMEASURED: _names_of_untried(untried)})
        suite = gx.ExpectationSuite(f"{self.kind} {scope} rules", expectations=expectations)
        self._tables[scope] += 1
        # Each table needs a name of its own, or its page would replace the previous one.
        name = f"{self.kind} {self.batch} {scope}" + (f" {n}" if (n := self._tables[scope]) > 1 else "")
        data = (
            context.data_sources.add_or_update_pandas(name)
            .add_dataframe_asset("rows")
            .add_batch_definition_whole_dataframe("whole")
        )
        # `add_or_update` compares each expectation with all those before it, so earlier ones are deleted instead.
        with suppress(gx.exceptions.exceptions.DataContextError):
            context.validation_definitions.delete(name)
        with suppress(gx.exceptions.exceptions.DataContextError):
            context.suites.delete(suite.name)
        definition = gx.ValidationDefinition(name=name, data=data, suite=context.suites.add(suite))
        run = run_identifier.RunIdentifier(run_name=self.batch)
        # Data Docs do not escape values. Escaping cannot change a result: allowed values have no special characters.
        escaped = table.map(lambda value: escape(value) if isinstance(value, str) else value)
        outcome = definition.run(
            batch_parameters={"dataframe": escaped},
            run_id=run,
            result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["row"]},
        )
        suite_page = identifiers.ExpectationSuiteIdentifier(suite.name)
        self._docs.pages += [suite_page, identifiers.ValidationResultIdentifier(suite_page, run, outcome.batch_id)]
        found = []
        results = {r.expectation_config.meta["rule"]: r for r in outcome.results}  # pyright: ignore
        for name, result in results.items():
            # An expectation that fails to run must not count as a passed one.
            if result.exception_info.get("raised_exception"):
                raise MattingError(f"expectation {name}: {result.exception_info.get('exception_message')}")
        for rule in rules:
            result = results[rule.name]
            # Only row rules list the failing rows.
            broken = _rows_of(result)
            unmeasured = table.loc[untried[rule], "row"].astype(int).tolist() if rule in untried else []
            found.append((rule, broken, unmeasured))
            observed = result.result.get("observed_value")
            line: ExpectationResult = {
                "batch": f"{self.kind}/{self.batch}",
                "kind": self.kind,
                "name": rule.name,
                "scope": scope,
                "severity": rule.severity,
                "success": bool(result.success) and not unmeasured,
                "unexpected": len(broken) + len(unmeasured) if scope == "row" else int(not result.success),
                "unmeasured": len(unmeasured),
                "measured": _measured(result),
                "observed": None if observed is None else round(float(observed), 4),
                "reason": rule.reason,
            }
            self._tell(line)
        return found

    def _tell(self, line: ExpectationResult) -> None:
        """Add a result; a row result of a later piece is added to the existing one."""
        for known in self.results:
            if known["scope"] == line["scope"] == "row" and known["name"] == line["name"]:
                known["success"] &= line["success"]
                known["unexpected"] += line["unexpected"]
                known["unmeasured"] += line["unmeasured"]
                known["measured"] += line["measured"]
                return
        self.results.append(line)


def _rows_of(result: ExpectationValidationResult) -> list[int]:
    """Return the rows that an expectation lists as failing."""
    return [int(index["row"]) for index in result.result.get("unexpected_index_list") or []]


def _measured(result: ExpectationValidationResult) -> int:
    """Return the number of rows for which an expectation was evaluated; of one number for all rows, 1 or 0."""
    found = result.result
    if "element_count" not in found:
        # Without any value, for example without any measured matte, there is no mean.
        observed = found.get("observed_value")
        return int(observed is not None and observed == observed)
    return int(found["element_count"]) - int(found.get("missing_count", 0))


def _columns(probe: Probe) -> Mapping[str, object]:
    """Return a probe as columns: one per measure of the matte, and one text with all measures."""
    columns = asdict(probe)
    measures = columns.pop("matte") or dict.fromkeys(MATTE_MEASURES)
    said = (f"{name.replace('_', ' ')} {value:.3f}" for name, value in measures.items() if value is not None)
    way = f"the photo is turned by its EXIF tag; the two ways of its matte differ by {probe.alpha_way_up or 0:.2f}"
    if probe.alpha_way_up is not None:
        said = [*said, way]
    named = {f"matte_{name}": value for name, value in measures.items()}
    return columns | named | {"matte_numbers": ", ".join(said), "way_up": f"{way}: send it upright"}


def _names_of_untried(untried: Mapping[Rule, np.ndarray]) -> list[str | None]:
    """Return for each row the names of the rules that it has no value for, joined by commas; None if it has all.

    Args:
        untried: Rule → whether each row lacks its value, bool (rows,).
    """
    lines = np.stack([*untried.values()], axis=1)
    return [", ".join(rule.name for rule, lacks in zip(untried, line, strict=True) if lacks) or None for line in lines]


def _expect_nothing_unmeasured() -> Expectation:
    """Return the Great Expectations object that fails for rows on which a rule could not be tried."""
    gxe: Any = gx.expectations
    meta, notes = {"rule": UNMEASURED}, "every rule could be tried; the values name those that could not"
    return gxe.ExpectColumnValuesToBeNull(column=UNMEASURED, severity="warning", meta=meta, notes=notes)


def _expect(rule: Rule, params: IngestParams, mix: Mapping[str, tuple[list[float], float] | None]) -> Expectation:
    """Return the Great Expectations object for a rule.

    Args:
        rule: The rule.
        params: Thresholds.
        mix: Column → expected class shares and largest divergence.
    """
    gxe: Any = gx.expectations
    common: dict[str, object] = {"severity": rule.severity, "meta": {"rule": rule.name}, "notes": rule.reason}
    column, suspect = rule.column, params.suspect
    if known := mix.get(column):
        shares, allowed = known
        partition = {"values": list(CLASSES[MIX_COLUMNS[column]]), "weights": shares}
        return gxe.ExpectColumnKLDivergenceToBeLessThan(
            column=column, partition_object=partition, threshold=allowed, **common
        )
    # Every value must be in the range.
    ranges: Mapping[str, dict[str, float]] = {
        "row_is_whole": {"max_value": 0},
        "image_not_empty": {"min_value": 1},
        "image_not_huge": {"max_value": params.max_bytes},
        "alpha_not_huge": {"max_value": params.max_bytes},
        "image_pixels": {"max_value": params.max_pixels},
        "image_large_enough": {"min_value": params.min_side},
        "alpha_has_foreground": {"min_value": LEAST_PEAK},
        "alpha_has_background": {"max_value": 1 - LEAST_PEAK},
        "caption_there": {"min_value": 1},
        "matte_not_inverted": {"max_value": suspect.inversion},
        "matte_reaches_one": {"min_value": 1 - suspect.range},
        "matte_reaches_zero": {"max_value": suspect.range},
        "matte_way_up": {"min_value": suspect.way_up},
        "matte_area": {"min_value": suspect.least_foreground, "max_value": suspect.most_foreground},
        "matte_is_no_trimap": {"max_value": suspect.plateau},
        "matte_without_holes": {"max_value": suspect.holes},
        "matte_without_specks": {"max_value": suspect.specks},
        "matte_sharp_somewhere": {"max_value": suspect.edge_width},
        "matte_edge_in_photo": {"min_value": suspect.edge_contrast},
        "matte_edge_in_place": {"min_value": suspect.edge_match},
    }
    # The mean over the drop, which is the share for a column of 0 and 1.
    means: Mapping[str, dict[str, float]] = {
        "few_bad_rows": {"max_value": params.max_reject_share},
        "few_suspects": {"max_value": params.suspect.max_share},
        "few_duplicates": {"max_value": 0.5},
        "soft_edges": {"max_value": 0.999},
    }
    # Every value must be in the set.
    sets: Mapping[str, Iterable[str]] = {"category_known": ALL_CATEGORIES, "role_known": ("train", "eval")}
    if rule.name in ranges:
        return gxe.ExpectColumnValuesToBeBetween(column=column, **ranges[rule.name], **common)
    if rule.name in means:
        return gxe.ExpectColumnMeanToBeBetween(column=column, **means[rule.name], **common)
    if rule.name in sets:
        return gxe.ExpectColumnValuesToBeInSet(column=column, value_set=list(sets[rule.name]), **common)
    if rule.name == "matte_is_no_photo":
        return gxe.ExpectColumnValuesToBeInSet(column=column, value_set=[False], **common)
    if rule.name == "category_given":
        return gxe.ExpectColumnValuesToNotBeNull(column=column, mostly=0.5, **common)
    # All other rules test a boolean column.
    return gxe.ExpectColumnValuesToBeInSet(column=column, value_set=[True], **common)
