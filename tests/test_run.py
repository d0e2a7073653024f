"""One `Run` in place of loose arguments: what it opens, and that no function goes back to the loose ones."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from mm_core import operations, stages
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.progress import quiet
from mm_core.core.settings import Settings
from mm_core.pinned_inputs import Run

PROJECT = Path(__file__).resolve().parent.parent
LOOSE = {"params", "layout", "store", "catalog", "inbox", "tracker", "registry", "progress"}
"""What a run carries and gives. A function takes at most two of them beside one another."""
ONE_THING = {"finished_work", "predictor_of"}
"""Operations that need a workspace and no params: a sensor and `Matter.load` call them."""
FILES = [
    path
    for room in ("mm_core", "pipelines", "samplegen", "benchmarks", "tests")
    for path in sorted((PROJECT / room).rglob("*.py"))
    # The lowest room and the command's own functions are the two ends between which a run travels.
    if not path.is_relative_to(PROJECT / "mm_core" / "core") and not path.is_relative_to(PROJECT / "mm_core" / "cli")
]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Params(), Layout(Settings.from_env(tmp_path)))


def functions() -> Iterator[tuple[str, list[str]]]:
    """The name and the arguments of each function of the project."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                yield f"{path.relative_to(PROJECT)}:{node.name}", [argument.arg for argument in every]


def test_what_a_run_gives_is_opened_once(run: Run, tmp_path: Path) -> None:
    for name in ("store", "inbox", "catalog", "tracker", "registry"):
        assert getattr(run, name) is getattr(run, name), name
    assert run.store.url == str(tmp_path / "store") and run.inbox.url == str(tmp_path / "inbox")
    assert run.catalog.url == f"{tmp_path / 'store'}/catalog"
    assert run.progress is quiet and run.registry.pin("champion") is None
    with pytest.raises(FrozenInstanceError):
        run.params = Params()  # type: ignore[misc]


def test_a_run_with_other_params_opens_its_own(run: Run) -> None:
    store, other = run.store, replace(run, params=Params().with_values(seed=5))
    assert type(other) is Run and other.params.seed == 5 and other.layout is run.layout
    assert other.store is not store


def test_a_run_in_another_workspace_shares_the_store_and_nothing_else(run: Run, tmp_path: Path) -> None:
    elsewhere = Layout(replace(run.layout.settings, workspace=tmp_path / "scratch"))
    other = run.with_layout(elsewhere)
    assert type(other) is Run and other.layout is elsewhere and other.params is run.params
    assert other.store is run.store and other.registry is not run.registry
    assert run.with_layout(elsewhere, Params().with_values(seed=7)).params.seed == 7


def test_no_function_takes_three_of_what_a_run_carries() -> None:
    loose = {name: sorted(LOOSE & set(arguments)) for name, arguments in functions()}
    assert {name: taken for name, taken in loose.items() if len(taken) > 2} == {}
    assert len(loose) > 2000, "the count has looked at the project"


@pytest.mark.parametrize("module", [stages, operations])
def test_a_stage_and_an_operation_take_one_run(module: object) -> None:
    assert isinstance(module.__file__, str)  # type: ignore[attr-defined]
    tree = ast.parse(Path(module.__file__).read_text())  # type: ignore[attr-defined]
    public = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    without = set()
    for node in public:
        first = node.args.args[0]
        if (first.arg, ast.unparse(first.annotation) if first.annotation else "") != ("run", "Run"):
            without.add(node.name)
    assert public and without <= ONE_THING, without


def test_stages_reexports_nothing() -> None:
    """What callers take from `stages` is defined there, and `stages` itself uses all that it imports."""
    source = Path(str(stages.__file__)).read_text()
    assert "noqa: F401" not in source and "__all__" not in source
    defined = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign):
            defined |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    foreign = set()
    for path in [*FILES, *sorted((PROJECT / "mm_core" / "cli").glob("*.py"))]:
        tree = ast.parse(path.read_text())
        modules = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        foreign |= {a.name for node in modules if node.module == "mm_core.stages" for a in node.names} - defined
        if any(node.module == "mm_core" and any(a.name == "stages" for a in node.names) for node in modules):
            foreign |= {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "stages"
            } - defined
    assert foreign <= {"__file__"}, foreign


def test_the_type_of_progress_is_spelled_once() -> None:
    spelled = [
        path.relative_to(PROJECT).as_posix()
        for path in {*FILES, *(PROJECT / "mm_core").rglob("*.py")}
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Subscript) and ast.unparse(node) == "Callable[[str, int, int], None]"
    ]
    assert spelled == ["mm_core/core/progress.py"]
