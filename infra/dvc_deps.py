"""Write the code that each stage of dvc.yaml depends on: all first-party modules that its entry modules import.

    python infra/dvc_deps.py           # after a change of imports; tests/test_dvc.py compares

It is the same set of modules as in the code digest of a training's key (`mm_core.core.code_digest`). A folder stands
for its files if at least half of its modules are in the set: a stage may then run once too often, never too rarely.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from mm_core.core.code_digest import ROOTS, first_party_closure, source_path  # noqa: E402

ENTRY_MODULES = {
    "snapshot": ("mm_core.ingest.snapshot",),
    "split": ("mm_core.structuring.split",),
    "train-simple": ("mm_core.training.stage",),
    "train-hard": ("mm_core.training.stage",),
    "train-semi": ("mm_core.training.stage",),
    "train-multimodal": ("mm_core.training.stage",),
    "evaluate": ("mm_core.eval.evaluate", "mm_core.eval.shadow", "mm_core.export.quantise"),
    "gate": ("mm_core.eval.gate", "mm_core.eval.independence", "mm_core.eval.ratchet"),
    "label-compare": ("mm_core.experiments.label_ablation",),
    "export": ("mm_core.export.bundle",),
}
"""Stage of dvc.yaml → the modules that `mm_core.stages` calls for it."""
SHARE = 0.5
"""Share of a folder's modules from which on the whole folder is listed."""
_STAGE = re.compile(r"^  (?P<name>[\w-]+):$")
_CODE = re.compile(rf"^      - (?:{'|'.join(ROOTS)})(?:/|$)")


def code_deps(stage: str) -> list[str]:
    """Return the sorted paths of a stage's code, relative to the project."""
    files = {source_path(module).relative_to(PROJECT) for module in first_party_closure(*ENTRY_MODULES[stage])}
    paths: set[Path] = set()
    for folder in {file.parent for file in files}:
        modules = {path.relative_to(PROJECT) for path in (PROJECT / folder).glob("*.py")}
        used = modules & files
        paths |= {folder} if len(used) >= SHARE * len(modules) else used
    # A file in a folder that is listed as a whole needs no line of its own.
    return sorted(path.as_posix() for path in paths if not paths & set(path.parents))


def with_code_deps(text: str) -> str:
    """Return the text of dvc.yaml with the code dependencies of every stage in ENTRY_MODULES."""
    stage, lines = "", []
    for line in text.splitlines():
        if match := _STAGE.match(line):
            stage = match["name"]
        if _CODE.match(line):
            continue
        # The code follows the files of the workspace, directly before the section after `deps`.
        if stage in ENTRY_MODULES and line.startswith("    params:"):
            lines += [f"      - {path}" for path in code_deps(stage)]
        lines.append(line)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Rewrite dvc.yaml."""
    path = PROJECT / "dvc.yaml"
    before = path.read_text()
    after = with_code_deps(before)
    path.write_text(after)
    print("dvc.yaml is up to date" if after == before else "dvc.yaml rewritten")


if __name__ == "__main__":
    main()
