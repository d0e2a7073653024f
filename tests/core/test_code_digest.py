"""Changed code has another digest, changed words have not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mm_core.core import code_digest as cd

FILES = {
    "__init__.py": "",
    "top.py": '"""Doc."""\nfrom mm_core_sample import inner\ndef run():\n    """Doc."""\n    return inner.VALUE\n',
    "inner.py": 'VALUE = 1\n"""What it is."""\n',
    "apart.py": "OTHER = 1\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "mm_core_sample"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(cd, "ROOTS", ("mm_core_sample",))
    yield folder
    for name in [n for n in sys.modules if n.startswith("mm_core_sample")]:
        del sys.modules[name]
    _forget()


def _forget() -> None:
    for cached in (cd._read, cd._is_package):
        cached.cache_clear()


def digest() -> str:
    _forget()
    return cd.code_digest("mm_core_sample.top")


def test_the_closure_holds_what_is_imported_and_nothing_else(package: Path) -> None:
    _forget()
    assert cd.first_party_closure("mm_core_sample.top") == [
        "mm_core_sample",
        "mm_core_sample.inner",
        "mm_core_sample.top",
    ]


@pytest.mark.parametrize(
    ("file", "before", "after", "same"),
    [
        ("inner.py", "VALUE = 1", "VALUE = 2", False),
        ("top.py", "return inner.VALUE", "return inner.VALUE + 1", False),
        ("top.py", '    """Doc."""', '    """Other words."""', True),
        ("inner.py", '"""What it is."""', "# a comment", True),
        ("inner.py", "VALUE = 1", "VALUE  =  1", True),
        ("apart.py", "OTHER = 1", "OTHER = 2", True),
    ],
)
def test_code_counts_and_words_do_not(package: Path, file: str, before: str, after: str, same: bool) -> None:
    first = digest()
    path = package / file
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    assert (digest() == first) is same


def test_what_is_kept_next_to_the_byte_code_is_valid_for_its_source_alone(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, kept = digest(), sorted((package / "__pycache__").glob("*.code.json"))
    assert [path.name.partition(".")[0] for path in kept] == ["__init__", "inner", "top"]
    # Nothing is parsed again, and the digest is the same.
    with monkeypatch.context() as patch:
        patch.setattr(cd, "ast", None)
        assert digest() == first
    kept[1].write_text("{")
    assert digest() == first
    (package / "inner.py").write_text("VALUE = 7\n")
    assert digest() != first
    for path in kept:
        path.unlink()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert digest() != first and not [*(package / "__pycache__").glob("*.code.json")]


def test_an_import_inside_a_function_counts(package: Path) -> None:
    path = package / "top.py"
    path.write_text("def run():\n    from mm_core_sample.inner import VALUE\n    return VALUE\n")
    first = digest()
    (package / "inner.py").write_text("VALUE = 3\n")
    assert digest() != first


def test_training_reaches_its_losses_and_its_data() -> None:
    closure = cd.first_party_closure("mm_core.training.stage")
    for module in ("training.losses", "training.trainer", "imaging.augment", "model.network", "training.semi"):
        assert f"mm_core.{module}" in closure


def test_a_module_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"mm_core\.nothing"):
        cd.code_digest("mm_core.nothing")
