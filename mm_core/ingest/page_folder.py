"""A folder of Great Expectations in which a file is whole or missing, and a page needs no network.

The library writes files in place, so a full disk leaves half of one. Half a result ends every later build of the index,
and half a page is never written again. Importing this module loads Great Expectations, which takes seconds.
"""

from __future__ import annotations

from pathlib import Path

from great_expectations.data_context.store.tuple_store_backend import TupleFilesystemStoreBackend

from mm_core.core.records import write_bytes
from mm_core.ingest.data_docs import index_page, self_contained


class PageFolder(TupleFilesystemStoreBackend):
    """Store of results, pages and styles, which the library creates by its name."""

    def _set(self, key: tuple[str, ...], value: str | bytes, **_: object) -> str:
        """Write one file atomically and return its path; an unchanged file, such as a font, is not written again."""
        path = Path(self.full_base_directory, self._convert_key_to_filepath(key))
        if isinstance(value, str):
            if path.suffix == ".html":
                value = index_page(value) if path.name == "index.html" else self_contained(value)
            value = value.encode()
        if not (path.is_file() and path.read_bytes() == value):
            write_bytes(path, value)
        return str(path)
