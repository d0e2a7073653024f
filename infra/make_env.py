"""Make a Python environment and install packages into it: by uv in seconds, by pip where uv cannot be had.

    python3 infra/make_env.py FOLDER ARGUMENT…        the arguments are those of `pip install` that uv takes too

This script needs nothing but Python 3.11: it runs before any package is installed. uv does not read pip's
configuration, so what pip is told (`pip config list` and PIP_* variables) is handed to uv as UV_* variables. Both
programs then take the same files, for example the CPU build of torch from a folder of wheels.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
TOOL = PROJECT / ".tools" / "uv"
"""A small environment that holds pip and, where uv is not installed on this machine, uv."""
UV_PIN = PROJECT / "infra" / "labelstudio.lock"
"""The audited lock that names the version of uv."""
SECTIONS = ("global", "install", ":env:")
"""The sections of pip's configuration that count for `pip install`; a later one wins."""


def parse_pip_config(text: str) -> dict[str, str]:
    """Return the settings of `pip install` from the output of `pip config list`.

    Args:
        text: lines like `global.index-url='https://…'`.

    Returns:
        Setting name without its section (`index-url`) → value. Where two sections name a setting, pip's
        precedence decides: `global`, then `install`, then the environment.
    """
    found: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in text.splitlines():
        match = re.fullmatch(r"(global|install|:env:)\.([a-z-]+)=(['\"].*['\"])", line.strip())
        if match:
            found[match[1]][match[2]] = str(ast.literal_eval(match[3]))
    return {name: value for section in SECTIONS for name, value in found[section].items()}


def uv_variables(pip: Mapping[str, str]) -> dict[str, str]:
    """Return the UV_* variables that make uv look where pip looks.

    Args:
        pip: settings as `parse_pip_config` returns them.

    Returns:
        Variable → value. `UV_INDEX_STRATEGY` is always there: pip compares all indexes, uv by default stops at the
        first one that has the package.
    """
    lists = {
        "extra-index-url": ("UV_EXTRA_INDEX_URL", " "),
        "find-links": ("UV_FIND_LINKS", ","),
        "constraint": ("UV_CONSTRAINT", " "),
        "trusted-host": ("UV_INSECURE_HOST", " "),
    }
    single = {
        "index-url": "UV_DEFAULT_INDEX",
        "cert": "SSL_CERT_FILE",
        "client-cert": "SSL_CLIENT_CERT",
        "proxy": "ALL_PROXY",
        "default-timeout": "UV_HTTP_TIMEOUT",
        "timeout": "UV_HTTP_TIMEOUT",
        "retries": "UV_HTTP_RETRIES",
    }
    variables = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_PYTHON_DOWNLOADS": "never"}
    for name, (variable, separator) in lists.items():
        if pip.get(name, "").split():
            variables[variable] = separator.join(pip[name].split())
    for name, variable in single.items():
        if pip.get(name):
            variables[variable] = pip[name]
    return variables


def uv_flags(pip: Mapping[str, str]) -> list[str]:
    """Return the settings that uv takes as arguments only: `--no-index`, where pip is told to ask no index."""
    return ["--no-index"] if pip.get("no-index", "").lower() in ("1", "true", "yes", "on") else []


def install_by_uv(uv: Path, folder: Path, arguments: Sequence[str], pip: Mapping[str, str]) -> bool:
    """Make the environment where it is missing and install by uv; return whether both succeeded.

    Variables that are set already stay as they are: who configures uv itself wins over pip's configuration.
    """
    environment = uv_variables(pip) | os.environ
    if not (folder / "bin" / "python").exists():
        # `--seed` brings pip, for who later types `pip install` in the activated environment.
        command = [uv, "venv", "--quiet", "--seed", "--allow-existing", "--python", sys.executable, *uv_flags(pip)]
        if subprocess.run([*command, folder], env=environment).returncode:
            return False
    command = [uv, "pip", "install", "--python", folder / "bin" / "python", *uv_flags(pip)]
    return subprocess.run([*command, *arguments], env=environment).returncode == 0


def without_digests(arguments: Sequence[str], folder: Path) -> list[str]:
    """Return pip's arguments with copies in `folder` of those locks whose digests pip cannot compare.

    One digest in a lock makes pip ask for a digest of everything (`--require-hashes`), and it takes no local build
    (`torch 2.13.0+cpu`) for the version that is pinned. So it gets constraints, and locks with torch, without digests;
    uv compares what there is. Any other lock that is installed as a whole keeps its digests for pip too.
    """
    changed = list(arguments)
    for place, (option, name) in enumerate(zip(arguments, arguments[1:], strict=False), start=1):
        if option not in ("-c", "-r") or " --hash=" not in (text := Path(name).read_text()):
            continue
        if option == "-c" or re.search(r"^torch==", text, re.M):
            copy = folder / f"{place}-{Path(name).name}"
            copy.write_text(re.sub(r"(?: \\\n)? +--hash=\S+", "", text))
            changed[place] = str(copy)
    return changed


def install_by_pip(folder: Path, arguments: Sequence[str]) -> bool:
    """Make the environment where its pip is missing and install by pip; return whether both succeeded."""
    python = folder / "bin" / "python"
    if subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode if python.exists() else True:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    return subprocess.run(command).returncode == 0


def find_uv() -> Path | None:
    """Return uv's path: this machine's own, or the one in `.tools/uv`, which pip fetches once; None without either."""
    if own := shutil.which("uv"):
        return Path(own)
    fetched = TOOL / "bin" / "uv"
    if not fetched.is_file():
        # uv has no dependencies, so its lines of the lock, with their digests, are a lock of their own.
        (pin,) = re.findall(r"^uv==\S+(?: \\\n +--hash=\S+)*", UV_PIN.read_text(), re.M)
        say(f"fetching {pin.split()[0]}")
        with tempfile.TemporaryDirectory() as lock:
            (Path(lock) / "uv.lock").write_text(f"{pin}\n")
            install_by_pip(TOOL, ["--quiet", "-r", str(Path(lock) / "uv.lock")])
    return fetched if fetched.is_file() else None


def read_pip_settings() -> dict[str, str]:
    """Return what pip is configured with on this machine, files and PIP_* variables alike."""
    python = TOOL / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", TOOL], check=True)
    command = [python, "-m", "pip", "config", "list"]
    return parse_pip_config(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def say(text: str) -> None:
    """Tell the person who waits what happens now."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


def main(folder: Path, arguments: Sequence[str]) -> int:
    """Make `folder` an environment with what `arguments` name; return the exit status."""
    if sys.version_info[:2] != (3, 11):
        say("Python 3.11 is needed; say where it is: make PYTHON=/path/to/python3.11")
        return 2
    start = time.monotonic()
    pip, uv = read_pip_settings(), find_uv()
    say(f"{folder}: {' '.join(arguments)}")
    done = uv is not None and install_by_uv(uv, folder, arguments, pip)
    if uv is None:
        with tempfile.TemporaryDirectory() as copies:
            for_pip = without_digests(arguments, Path(copies))
            compared = "" if for_pip == list(arguments) else ", and does not compare the files' digests"
            say(f"uv cannot be had here: pip does the same now, in minutes{compared}")
            done = install_by_pip(folder, for_pip)
    elif not done:
        # With the digests: a file that uv refused is not installed after all.
        say("uv did not succeed (see above)")
        say("pip does the same now, in minutes instead of seconds")
        done = install_by_pip(folder, arguments)
    say(f"{folder}: {'ready' if done else 'FAILED'} after {time.monotonic() - start:.0f} s")
    return 0 if done else 1


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
