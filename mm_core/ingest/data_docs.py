"""Write Great Expectations' Data Docs pages about drops so that they work without a network.

The library's pages load styles and scripts from several servers. Without these servers, a page has no style and hides
the parts that a script would unfold. This module embeds a short style sheet in each page and removes all remote
content.
"""

from __future__ import annotations

import ast
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_core.core.deferred import Deferred

if TYPE_CHECKING:
    import great_expectations as gx
    from great_expectations.data_context.data_context.ephemeral_data_context import EphemeralDataContext
    from great_expectations.data_context.types import base
else:
    gx = Deferred("great_expectations")
    base = Deferred("great_expectations.data_context.types.base")

SCRIPTS = re.compile(r"<script\b.*?</script\s*>", re.DOTALL | re.IGNORECASE)
HANDLERS = re.compile(r"""(<[a-z][^<>]*?)\s+on[a-z]+\s*=\s*("[^"]*"|'[^']*')""", re.IGNORECASE)
"""Event handlers of the library's own buttons; text of producers is escaped before it is written to a page."""
POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; base-uri 'none'\">"
)
"""Policy for pages that are opened as files; `mm_core.services.pages` also sends it as a header."""
REMOTE = re.compile(
    r"<script\b[^>]*\bsrc=\"https?://[^>]*>\s*</script>|<link\b[^>]*\bhref=\"https?://[^>]*>|<img\b[^>]*\bsrc=\"https?://[^>]*>",
    re.DOTALL,
)
"""Scripts, style sheets and images that a page would fetch from a server."""
ROWS = re.compile(r"^\s*data: (\[.*\]),?\s*$", re.MULTILINE)
STYLE = """<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 0 1rem; color: #222; }
h1, h2, h3, h4, h5, h6 { line-height: 1.2; margin: 1.2em 0 .4em; }
a { color: #1a5fb4; }
table { border-collapse: collapse; margin: .5rem 0; width: 100%; }
th, td { border-bottom: 1px solid #ddd; padding: .35rem .6rem; text-align: left; vertical-align: top; }
tr:hover td { background: #f6f6f4; }
ul { padding-left: 1.2rem; }
.breadcrumb { display: flex; gap: .8rem; list-style: none; padding: 0; }
pre, code { background: #f4f4f2; padding: .1rem .3rem; overflow-x: auto; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; }
.row > * { flex: 3 1 30rem; min-width: 0; }
.row > .navbar-collapse, .row > .col-lg-2 { flex: 1 1 12rem; }
.badge { background: #eee; border-radius: .3rem; padding: .1rem .4rem; }
.badge-success, .alert-success, .text-success { color: #1b7f3b; }
.badge-danger, .alert-danger, .text-danger { color: #b3261e; }
.fa-check-circle::before { content: "\\2713"; }
.fa-times::before { content: "\\2717"; }
.fa-exclamation-circle::before, .fa-exclamation-triangle::before { content: "!"; }
button, .btn, .filter-control, footer, .cloud-footer, .modal, .cooltip .top { display: none; }
@media print { body { max-width: none; } }
</style>
"""


class DataDocs:
    """Great Expectations' pages about the validated drops of this process and of earlier ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pages: list[Any] = []
        """Identifiers of validation results without a page."""

    @cached_property
    def context(self) -> EphemeralDataContext:
        """The context, created for the first validated drop because Great Expectations takes seconds to load."""
        return _context(self.folder)

    def build(self) -> None:
        """Write the new pages, those that an earlier run could not write, and the index of all pages.

        Raises:
            OSError: A page could not be written; the next build writes it.
        """
        if not self.pages:
            return
        results: list[Any] = self.context.validation_results_store.list_keys()
        missing = [key for key in results if not self._page(key.to_tuple()).is_file()]
        with _raise_disk_faults():
            self.context.build_data_docs(resource_identifiers=[*self.pages, *missing])
        self.pages = []

    def _page(self, key: tuple[str, ...]) -> Path:
        """Return the file of the page about a validation result."""
        *folders, name = key
        return Path(self.folder, "validations", *folders, f"{name}.html")


@contextmanager
def _raise_disk_faults() -> Iterator[None]:
    """Raise the system's first error about a page afterwards; Great Expectations only logs it, with a traceback."""
    faults: list[OSError] = []

    def keep(record: logging.LogRecord) -> bool:
        # The library logs inside of its `except` block.
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            faults.append(error)
        return not isinstance(error, OSError)

    logger = logging.getLogger("great_expectations.render.renderer.site_builder")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
    if faults:
        raise faults[0]


def index_page(page: str) -> str:
    """Return the library's index with plain tables instead of tables that a remote script draws.

    Args:
        page: HTML of the index as the library writes it.
    """
    # The page holds its rows as literals that are valid in both Python and JavaScript.
    tables = [ast.literal_eval(found) for found in ROWS.findall(page)]
    # Validation results have a run time, suites do not.
    results = [row for table in tables for row in table if "run_time" in row]
    suites = [row for table in tables for row in table if "run_time" not in row]
    lines = [
        f"<tr><td>{escape(row['_validation_success_text'])}</td><td>{escape(row['run_time'])}</td>"
        f"<td>{escape(row['run_name'])}</td><td>{_link(row, row['_expectation_suite_name_sort'])}</td></tr>"
        for row in sorted(results, key=lambda row: -row["_run_time_sort"])
    ]
    rules = [f"<li>{_link(row, row['expectation_suite_name'])}</li>" for row in suites]
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">{POLICY}<title>Data Docs</title>{STYLE}</head>'
        "<body><h1>What was judged of each drop</h1>"
        "<table><tr><th>Result</th><th>When</th><th>Batch</th><th>Rules</th></tr>"
        f"{''.join(lines)}</table><h2>Rules</h2><ul>{''.join(rules)}</ul></body></html>\n"
    )


def _link(row: dict[str, str], words: str) -> str:
    return f'<a href="{escape(row["_table_row_link_path"])}">{escape(words)}</a>'


def self_contained(page: str) -> str:
    """Return a page without remote content and scripts, with the embedded style.

    Args:
        page: HTML of a page as the library writes it, or a page that was already converted.
    """
    local = SCRIPTS.sub("", REMOTE.sub("", page))
    # One substitution removes one handler per tag. Repeat until none is left.
    while (without := HANDLERS.sub(r"\1", local)) != local:
        local = without
    # A page that was converted before already has the policy and the style.
    if POLICY not in local:
        local = local.replace("<head>", f"<head>{POLICY}", 1)
    return local if STYLE in local else local.replace("</head>", f"{STYLE}</head>", 1)


def _context(data_docs: Path) -> EphemeralDataContext:
    """Return a context for this process, without analytics and progress bars.

    Results and pages are kept under `data_docs`.
    """
    # Suites live in memory. Results are kept on disk, because the index lists those of earlier runs.
    defaults = base.InMemoryStoreBackendDefaults()
    defaults.stores[defaults.validation_results_store_name] = {
        "class_name": "ValidationResultsStore",
        "store_backend": _folder(data_docs / ".results"),
    }
    defaults.data_docs_sites = {
        "drops": {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "store_backend": _folder(data_docs),
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        }
    }
    # Analytics would be sent over the network, and progress bars would fill the log.
    config = base.DataContextConfig(
        analytics_enabled=False,
        progress_bars=base.ProgressBarsConfig(globally=False),
        store_backend_defaults=defaults,
    )
    return gx.get_context(mode="ephemeral", project_config=config)


def _folder(path: Path) -> dict[str, str]:
    module = "mm_core.ingest.page_folder"
    return {"module_name": module, "class_name": "PageFolder", "base_directory": str(path)}
