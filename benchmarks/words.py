"""A benchmark's page: tables that its runner makes, and below a heading what people wrote."""

from __future__ import annotations

from pathlib import Path


def replace_tables(page: Path, lines: list[str], heading: str) -> None:
    """Writes `lines` in place of what stands above `heading`; a page without it has no words and is replaced whole."""
    _, mark, said = (page.read_text() if page.exists() else "").partition(heading)
    page.write_text("\n".join(lines) + "\n" + mark + said)
