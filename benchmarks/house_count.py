"""Count what the code's style page limits: rooms, imports, untyped values, comments and idioms.

Usage: `python -m benchmarks.house_count [REVISION ...]` prints a table with a column for each git revision and one for
the working tree. `--write` puts the table into `house_count.md`. The idioms are also counted by `tests/test_prose.py`.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import tarfile
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.words import replace_tables

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mm_core", "pipelines", "samplegen")
THIN = ("mm_core/cli/", "pipelines/")
"""The thin layers, which load slow modules of our own when they first use them."""
IDIOMS = (
    r"\b(said|says|say|told|tells|tell|hears?|heard|asks|asked|knows|listens|speaks|spoken|minds|heeds?|wants)\b",
    r"\b(nobody|somebody|anybody|whoever|whose|everybody)\b",
    r"\bwhere (there|it|one|nothing|no|a|the|that|they|several|some)\b",
    r"\b(is none|are none|there is none|of none|that are none|is no|are no)\b",
    r"\b(lies|lie|lying|stands|stand|goes|went|comes|came)\b",
    r"\bbeside\b",
    r"(, else|; else|else the|or else)",
    r"\b(as ever|for ever|by itself|at once|anew|alike|likeliest|in vain|nevertheless)\b",
    r"^(Of|What|As|By|Where|Whose|Whether|How|Or|Nobody|That) ",
    r"\b(what is|what was|what has|what it|what they|what a|what the|what this)\b",
)
"""Wordings that a newcomer must decode. They also match some plain sentences, so the count is an estimate."""
IDIOM = re.compile("|".join(f"(?:{pattern})" for pattern in IDIOMS))
DIRECTIVE = re.compile(r"#\s*(noqa|type:|pyright|fmt|!)")

Tree = Mapping[str, str]
"""Path from the project's root → source text."""


def read_working_tree(root: Path = ROOT) -> dict[str, str]:
    """Return the Python sources of the three packages."""
    files = (path for package in PACKAGES for path in sorted((root / package).rglob("*.py")))
    return {path.relative_to(root).as_posix(): path.read_text() for path in files}


def read_revision(revision: str) -> dict[str, str]:
    """Return the Python sources of the three packages at a git revision; raise CalledProcessError if it is unknown."""
    git = ["git", "-C", str(ROOT)]
    listed = subprocess.run([*git, "ls-tree", "--name-only", revision], check=True, capture_output=True, text=True)
    packages = sorted({*PACKAGES} & {*listed.stdout.split()})
    archive = subprocess.run([*git, "archive", revision, *packages], check=True, capture_output=True).stdout
    sources = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        for member in files:
            if member.name.endswith(".py") and (stream := files.extractfile(member)):
                sources[member.name] = stream.read().decode()
    return sources


def comments(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each comment that is no directive, with whether it has a line of its own."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not DIRECTIVE.match(token.string):
            yield token.string.lstrip("# "), token.line.lstrip().startswith("#")


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of three or more words in a module's docstrings and comments."""
    blocks = [words for words, _ in comments(text)]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            blocks.append(node.value.value)
    for block in blocks:
        for sentence in re.split(r"(?<=[.;:!?])\s+|\n\s*\n", block):
            if len(sentence.split()) >= 3:
                yield " ".join(sentence.split())


def count_idioms(sources: Tree) -> tuple[int, int]:
    """Return the number of sentences that match an idiom, and the number of all sentences."""
    everything = [sentence for text in sources.values() for sentence in sentences(text)]
    return sum(IDIOM.search(sentence) is not None for sentence in everything), len(everything)


def room_of(path: str) -> str:
    """Return the room of a file: a direct child of `mm_core`, or one of the two packages beside it."""
    parts = Path(path).with_suffix("").parts
    return ".".join(parts[:2]) if parts[0] == "mm_core" else parts[0]


def first_party_imports(path: str, tree: ast.Module, modules: Tree) -> Iterator[str]:
    """Yield the room of every imported module of ours; `from mm_core import stages` counts as `mm_core.stages`."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            is_top = node.module == "mm_core"
            names = [f"mm_core.{alias.name}" for alias in node.names] if is_top else [node.module]
        for name in names:
            if name.split(".")[0] in PACKAGES:
                room = room_of(name.replace(".", "/"))
                if room != room_of(path):
                    yield room


def imports_in_functions(tree: ast.Module) -> tuple[int, int]:
    """Return the number of import statements in functions: of our own modules, and of third parties."""
    own, third_party, seen = 0, 0, set()
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom) and node not in seen:
                    seen.add(node)
                    module = node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
                    is_own = module.split(".")[0] in PACKAGES
                    own, third_party = own + is_own, third_party + (not is_own)
    return own, third_party


def is_untyped_dict(node: ast.AST) -> bool:
    """Return whether a node is the annotation `dict[str, Any]`."""
    return isinstance(node, ast.Subscript) and ast.unparse(node) == "dict[str, Any]"


def measure(sources: Tree) -> dict[str, str]:
    """Return each measure of the sources as text."""
    trees = {path: ast.parse(text) for path, text in sources.items()}
    # Without `__init__` and `__main__`, which are no rooms.
    rooms = {room_of(path) for path in sources} - {"mm_core.__init__", "mm_core.__main__"}
    arrows = {(room_of(path), to) for path in sources for to in first_party_imports(path, trees[path], sources)}
    arrows = {(start, to) for start, to in arrows if start in rooms and to in rooms}
    loose = [p for p in sources if re.fullmatch(r"mm_core/(?!__)\w+\.py", p)]
    core = {path: text for path, text in sources.items() if path.startswith("mm_core/")}
    lines = {path: len(text.splitlines()) for path, text in sources.items()}
    own_lines = sum(alone for text in core.values() for _, alone in comments(text))
    inner = {path: imports_in_functions(tree) for path, tree in trees.items()}
    thick = [counts for path, counts in inner.items() if not path.startswith(THIN)]
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    idioms, everything = count_idioms(sources)
    core_lines = sum(lines[path] for path in core)
    return {
        "rooms (children of `mm_core`, `pipelines`, `samplegen`)": str(len(rooms)),
        "arrows between rooms": str(len(arrows)),
        "modules loose on top of `mm_core`": str(len(loose)),
        "lines of `mm_core`": f"{core_lines:,}",
        "comment lines of `mm_core`": f"{100 * own_lines / max(1, core_lines):.1f} %",
        "idiom sentences": f"{100 * idioms / max(1, everything):.1f} % ({idioms} of {everything})",
        "`Any` in annotations": str(sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)),
        "`Any`, every mention": str(sum(len(re.findall(r"\bAny\b", text)) for text in sources.values())),
        "`dict[str, Any]`": str(sum(map(is_untyped_dict, nodes))),
        "imports in functions": str(sum(map(sum, inner.values()))),
        "outside `cli` and `pipelines`: of our own modules": str(sum(own for own, _ in thick)),
        "outside `cli` and `pipelines`: of third parties": str(sum(third_party for _, third_party in thick)),
    }


def table(columns: Mapping[str, Tree]) -> list[str]:
    """Return a Markdown table with a column of measures for each tree."""
    measured = {name: measure(sources) for name, sources in columns.items()}
    lines = [f"| | {' | '.join(measured)} |", f"|---|{'---|' * len(measured)}"]
    for name in next(iter(measured.values())):
        lines.append(f"| {name} | {' | '.join(row[name] for row in measured.values())} |")
    return lines


def main() -> None:
    """Print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs="*", help="git revisions to compare with the working tree")
    parser.add_argument("--write", action="store_true", help="replace the table in house_count.md")
    arguments = parser.parse_args()
    lines = table({f"`{name}`": read_revision(name) for name in arguments.revisions} | {"now": read_working_tree()})
    if arguments.write:
        head = ["# Rooms, imports, types and words of the code", "", "Runner: `benchmarks/house_count.py`.", ""]
        replace_tables(ROOT / "benchmarks/house_count.md", [*head, *lines, ""], "## What the measures are")
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
