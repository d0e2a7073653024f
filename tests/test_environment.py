"""infra/make_env.py and the lists of packages: uv looks where pip looks, and production holds no test tool."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parent.parent
EXTRAS = PROJECT / "infra" / "extras"
UV = next(
    (path for tool in ("uv", "labelstudio") if (path := PROJECT / ".tools" / tool / "bin" / "uv").is_file()), None
)


@pytest.fixture(scope="module")
def make_env() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_env", PROJECT / "infra" / "make_env.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_pip_is_told_in_a_file_and_in_the_environment_reaches_uv(make_env: ModuleType, tmp_path: Path) -> None:
    """pip itself prints the settings here, so that its own precedence and quoting are what is read."""
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = http://127.0.0.1:1/simple\nfind-links = /never\ncert = /etc/ca.pem\n"
        "extra-index-url =\n    file:///a/simple\n    file:///b/simple\ntrusted-host = h1 h2\n"
        "[install]\nconstraint = /c.txt\n[list]\nformat = json\n"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment = kept | {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PIP_FIND_LINKS": "/wheels /more wheels"}
    command = [sys.executable, "-m", "pip", "config", "list"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    settings = make_env.parse_pip_config(told)
    assert "format" not in settings
    variables = make_env.uv_variables(settings)
    # This machine's own pip.conf may lie beneath; what is named here wins over it.
    assert variables["UV_DEFAULT_INDEX"] == "http://127.0.0.1:1/simple"
    assert variables["UV_EXTRA_INDEX_URL"] == "file:///a/simple file:///b/simple"
    assert variables["UV_FIND_LINKS"] == "/wheels,/more,wheels"
    assert variables["SSL_CERT_FILE"] == "/etc/ca.pem" and variables["UV_INSECURE_HOST"] == "h1 h2"
    assert variables["UV_CONSTRAINT"] == "/c.txt"
    assert variables["UV_INDEX_STRATEGY"] == "unsafe-best-match"


def test_without_any_setting_uv_keeps_its_own_places(make_env: ModuleType) -> None:
    assert set(make_env.uv_variables({})) == {"UV_INDEX_STRATEGY", "UV_PYTHON_DOWNLOADS"}
    assert make_env.uv_flags({"no-index": "true"}) == ["--no-index"] and make_env.uv_flags({}) == []


def write_wheel(folder: Path, version: str) -> None:
    """A wheel of the package `mmtiny`, written by hand."""
    import zipfile

    folder.mkdir(exist_ok=True)
    info = f"mmtiny-{version}.dist-info"
    with zipfile.ZipFile(folder / f"mmtiny-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("mmtiny.py", f"VERSION = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: mmtiny\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def make_environment(folder: Path, *options: str) -> Path:
    """Make an environment without a pip of its own, whose installation takes seconds."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", *options, folder], check=True)
    return folder


SHARED_PIP = "--system-site-packages"
"""Option for an environment with the pip of its Python. Where that has none, `install_by_pip` installs one."""


@pytest.mark.skipif(UV is None, reason="no uv in .tools: `make labelstudio` brings it")
def test_uv_takes_the_local_build_that_pip_would_take(
    make_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mmtiny==1.0` in a lock, `1.0+cpu` in pip's find-links: as torch is pinned and offered."""
    for name in [name for name in os.environ if name.startswith("UV_")]:
        monkeypatch.delenv(name)
    write_wheel(tmp_path / "wheels", "1.0+cpu")
    environment = make_environment(tmp_path / "env")
    (tmp_path / "lock").write_text("mmtiny==1.0\n")
    pip = {"find-links": str(tmp_path / "wheels"), "no-index": "true"}
    assert make_env.install_by_uv(UV, environment, ["-c", str(tmp_path / "lock"), "mmtiny"], pip)
    code = "import mmtiny; print(mmtiny.VERSION)"
    found = subprocess.run([environment / "bin" / "python", "-c", code], capture_output=True, text=True).stdout
    assert found.strip() == "1.0+cpu"


def test_where_uv_fails_pip_does_it_and_says_so(
    make_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wheel(tmp_path / "wheels", "2.0")
    broken = tmp_path / "bin" / "uv"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(make_env, "TOOL", tmp_path / "tool")
    arguments = ["--no-index", "--find-links", str(tmp_path / "wheels"), "mmtiny==2.0"]
    assert make_env.main(tmp_path / "env", arguments) == 0
    said = capsys.readouterr().err
    assert "pip does the same now" in said and "ready" in said
    code = "import mmtiny; print(mmtiny.VERSION)"
    done = subprocess.run([tmp_path / "env" / "bin" / "python", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "2.0"
    assert make_env.main(tmp_path / "env", [*arguments[:-1], "mmtiny==9.9"]) == 1
    assert "FAILED" in capsys.readouterr().err


@pytest.mark.skipif(UV is None, reason="no uv in .tools: `make labelstudio` brings it")
def test_a_file_of_another_digest_is_installed_by_neither_program(
    make_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock with digests as a constraint, as the Makefile gives it; `1.0+cpu` is pinned as `1.0`."""
    for name in [name for name in os.environ if name.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)
    write_wheel(tmp_path / "wheels", "1.0+cpu")
    spec = importlib.util.spec_from_file_location("lock", PROJECT / "infra" / "lock.py")
    assert spec and spec.loader
    lock_module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_env", make_env)
    spec.loader.exec_module(lock_module)
    (tmp_path / "wheels" / "other.whl").touch()
    good = lock_module.add_local_hashes(f"mmtiny==1.0 \\\n    --hash=sha256:{'0' * 64}\n", str(tmp_path / "wheels"))
    assert good.count("--hash=sha256:") == 2
    pip = {"find-links": str(tmp_path / "wheels"), "no-index": "true"}
    for name, text in (("good", good), ("bad", f"mmtiny==1.0 --hash=sha256:{'0' * 64}\n")):
        (tmp_path / name).write_text(text)
        arguments = ["-c", str(tmp_path / name), "mmtiny"]
        environment = make_environment(tmp_path / f"{name}-uv")
        assert make_env.install_by_uv(UV, environment, arguments, pip) is (name == "good")
        own = ["--no-index", "--find-links", str(tmp_path / "wheels")]
        # Without digests pip compares none.
        environment = make_environment(tmp_path / f"{name}-pip-alone", SHARED_PIP)
        assert make_env.install_by_pip(environment, [*own, *make_env.without_digests(arguments, tmp_path)])
    environment = make_environment(tmp_path / "bad-pip", SHARED_PIP)
    assert not make_env.install_by_pip(environment, [*own, *arguments])


def test_pip_alone_compares_the_digests_of_a_lock_without_torch(make_env: ModuleType, tmp_path: Path) -> None:
    """It asks for a digest of everything then, so a file of another digest, or of none, is not installed."""
    write_wheel(tmp_path / "wheels", "1.0")
    (wheel,) = (tmp_path / "wheels").iterdir()
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    own = ["--no-index", "--find-links", str(tmp_path / "wheels")]
    for name, named in (("good", digest), ("bad", "0" * 64)):
        lock = tmp_path / name
        lock.write_text(f"mmtiny==1.0 \\\n    --hash=sha256:{named}\n")
        arguments = make_env.without_digests(["-r", str(lock)], tmp_path)
        environment = make_environment(tmp_path / f"{name}-env", SHARED_PIP)
        assert make_env.install_by_pip(environment, [*own, *arguments]) is (name == "good")
    lock.write_text(f"{lock.read_text()}torch==2.0 --hash=sha256:{'1' * 64}\n")
    ((_, copy),) = [make_env.without_digests(["-r", str(lock)], tmp_path)]
    assert Path(copy).read_text() == "mmtiny==1.0\ntorch==2.0\n"


def closure(*lists: Path) -> set[str]:
    """Every package that the lists bring with them here, by the metadata of what is installed."""
    wanted = [Requirement(line) for path in lists for line in path.read_text().splitlines() if line[:1].isalpha()]
    found: set[tuple[str, str]] = set()
    while wanted:
        requirement = wanted.pop()
        for extra in ("", *requirement.extras):
            name = canonicalize_name(requirement.name)
            if (name, extra) not in found:
                found.add((name, extra))
                needs = [Requirement(text) for text in metadata.requires(name) or ()]
                wanted += [need for need in needs if not need.marker or need.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


def test_the_lock_pins_what_each_list_brings_and_nothing_else() -> None:
    lines = (PROJECT / "requirements.lock").read_text().splitlines()
    locked = {canonicalize_name(line.split("==")[0]) for line in lines if "==" in line}
    needed = closure(PROJECT / "requirements.in", *EXTRAS.glob("*.in"))
    assert needed - locked == set()
    # setuptools installs the project; what else is pinned must be needed.
    assert locked - needed <= {"setuptools"}


@pytest.mark.parametrize("tool", ["dvc", "executorch"])
def test_what_has_an_environment_of_its_own_for_antlr_would_still_change_dagsters(tool: str) -> None:
    """Dagster's selections are parsed by antlr 4.13; where a tool no longer pins another one, it can move."""

    def antlr(lock: str) -> list[str]:
        return re.findall(r"^antlr4-python3-runtime==(\d+\.\d+)", (PROJECT / lock).read_text(), re.M)

    assert antlr("requirements.lock") == ["4.13"] and antlr(f"infra/{tool}.lock") == ["4.9"]


def test_production_holds_no_test_tool() -> None:
    copied = re.findall(r"infra/extras/(\w+)\.in", (PROJECT / "infra" / "Dockerfile").read_text())
    assert copied and "dev" not in copied
    production = closure(PROJECT / "requirements.in", *(EXTRAS / f"{name}.in" for name in copied))
    tools = {
        canonicalize_name(re.split(r"[\[=<>]", line)[0])
        for line in (EXTRAS / "dev.in").read_text().splitlines()
        if line[:1].isalpha()
    }
    assert tools >= {"pytest", "ruff", "moto", "pyright"}
    assert production & tools == set()


def test_make_tells_every_extra_and_the_demo_leaves_what_readme_needs() -> None:
    def planned(*goals: str) -> str:
        # A folder without an environment: nothing is there yet.
        command = [
            "make",
            "--dry-run",
            "VENV=/nonexistent/venv",
            "DVC=/nonexistent/dvc",
            *goals,
        ]
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout

    demo = planned("demo")
    for step in ("requirements.in", "infra/dvc.lock", "bin/mm demo"):
        assert step in demo
    assert "dev.in" not in demo and "ray.in" not in demo
    for path in EXTRAS.glob("*.in"):
        assert f"infra/extras/{path.name}" in planned("test")
        assert f"infra/extras/{path.name}" in planned(path.stem)
