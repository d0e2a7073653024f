"""Data Docs: Great Expectations' pages about drops, readable without a network.

The pages of the library take their looks and scripts from half a dozen servers; where those are not reached they stand
bare, and parts that a script would unfold stay hidden. Here a page carries its few rules of style itself and loads
nothing.
"""

from __future__ import annotations

import re
import time
from functools import cached_property
from pathlib import Path
from typing import Any

CLOCK_STEP = 2.0
"""Seconds by which a file system's times may lie behind the clock."""
REMOTE = re.compile(
    r"<script\b[^>]*\bsrc=\"https?://[^>]*>\s*</script>|<link\b[^>]*\bhref=\"https?://[^>]*>|<img\b[^>]*\bsrc=\"https?://[^>]*>",
    re.DOTALL,
)
"""What a page would fetch from elsewhere."""
STYLE = """<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 0 1rem; color: #222; }
h1, h2, h3, h4, h5, h6 { line-height: 1.2; margin: 1.2em 0 .4em; }
a { color: #1a5fb4; }
table { border-collapse: collapse; margin: .5rem 0; width: 100%; }
th, td { border-bottom: 1px solid #ddd; padding: .35rem .6rem; text-align: left; vertical-align: top; }
tr:hover td { background: #f6f6f4; }
ul { padding-left: 1.2rem; }
nav ul, .breadcrumb { display: flex; gap: .8rem; list-style: none; padding: 0; }
pre, code { background: #f4f4f2; padding: .1rem .3rem; overflow-x: auto; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; }
.row > * { flex: 1 1 20rem; min-width: 0; }
.badge { background: #eee; border-radius: .3rem; padding: .1rem .4rem; }
.badge-success, .alert-success, .text-success { color: #1b7f3b; }
.badge-danger, .alert-danger, .text-danger { color: #b3261e; }
.fa-check-circle::before { content: "\\2713"; }
.fa-times::before { content: "\\2717"; }
.fa-exclamation-circle::before, .fa-exclamation-triangle::before { content: "!"; }
button, .btn, .filter-control, .modal, .cooltip .top { display: none; }
@media print { body { max-width: none; } }
</style>
"""


class DataDocs:
    """Great Expectations' pages about drops: what was judged in this process, beside what was judged before."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.pages: list[Any] = []
        """Identifiers of what was judged and has no page yet."""

    @cached_property
    def context(self):
        """Made when the first drop is judged: Great Expectations takes seconds to load."""
        return _context(self.folder)

    def build(self) -> None:
        """Writes the new pages and the index of all."""
        if self.pages:
            began = time.time() - CLOCK_STEP
            self.context.build_data_docs(resource_identifiers=self.pages)
            self.pages = []
            for page in self.folder.rglob("*.html"):
                if page.stat().st_mtime >= began:
                    page.write_text(self_contained(page.read_text()))


def self_contained(page: str) -> str:
    """A page that fetches nothing and looks plain and tidy."""
    local = REMOTE.sub("", page)
    return local if STYLE in local else local.replace("</head>", f"{STYLE}</head>", 1)


def _context(data_docs: Path):
    """A context of this process alone: no analytics, no progress bars, results and pages kept under `data_docs`."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    defaults = InMemoryStoreBackendDefaults()
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
    config = DataContextConfig(
        analytics_enabled=False,
        progress_bars=ProgressBarsConfig(globally=False),
        store_backend_defaults=defaults,
    )
    return gx.get_context(mode="ephemeral", project_config=config)


def _folder(path: Path) -> dict[str, str]:
    return {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(path)}
