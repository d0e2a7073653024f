"""Write a lock with the digests of all files: `pip freeze | python infra/lock.py LOCK`

Each package stands there with its exact version and the sha256 of every file that the index has of it, whatever the
platform. uv and pip then refuse any other file. The local build of torch for CPUs (`2.13.0+cpu`) is pinned as `2.13.0`,
so that a machine with a GPU takes its own; the digests of such builds in pip's `find-links` folders are added.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from make_env import find_uv, read_pip_settings, uv_variables

COMPILE = ("pip", "compile", "--quiet", "--no-deps", "--generate-hashes", "--no-annotate", "--no-header", "--universal")
PYTHON = "3.11.7"
LOCAL = re.compile(r"\+cpu$", re.M)


def local_wheels(folders: str, name: str, version: str) -> Iterator[str]:
    """Yield the sha256 of each wheel of a package's local CPU build.

    Args:
        folders: pip's `find-links`, separated by spaces; addresses are left aside.
        name: The package's name.
        version: Its version without `+cpu`.
    """
    for folder in filter(os.path.isdir, folders.split()):
        for wheel in sorted(Path(folder).glob(f"{name}-{version}+cpu-*.whl")):
            yield hashlib.sha256(wheel.read_bytes()).hexdigest()


def add_local_hashes(lock: str, folders: str) -> str:
    """Return a lock's text with the digests of local CPU builds behind those of the index."""
    blocks = re.split(r"(?m)^(?=\S)", lock)
    for number, block in enumerate(blocks):
        if pin := re.match(r"([A-Za-z0-9._-]+)==(\S+)", block):
            extra = [digest for digest in local_wheels(folders, pin[1], pin[2]) if digest not in block]
            blocks[number] = block.rstrip("\n") + "".join(f" \\\n    --hash=sha256:{one}" for one in extra) + "\n"
    return "".join(blocks)


def main(lock: Path, frozen: str) -> int:
    """Write the lock of what `pip freeze` says; return the exit status."""
    pip, uv = read_pip_settings(), find_uv()
    if uv is None:
        print("lock: uv is needed: see infra/make_env.py", file=sys.stderr)
        return 1
    # One index: digests are those of what it serves. A folder's own build is added afterwards.
    environment = uv_variables({name: pip[name] for name in ("index-url", "cert", "proxy") if name in pip})
    command = [uv, *COMPILE, "--python-version", PYTHON, "-"]
    done = subprocess.run(
        command, input=LOCAL.sub("", frozen), capture_output=True, text=True, env=environment | os.environ
    )
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return 1
    lock.write_text(add_local_hashes(done.stdout, pip.get("find-links", "")))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.stdin.read()))
