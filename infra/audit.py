"""Known vulnerabilities of every pinned package, by pip-audit: `python infra/audit.py PIP-AUDIT LOCK...`

Exit 0 says that each package was looked up and none has a known vulnerability. A package that could not be looked up
is a failure: behind a proxy that does not serve the database, pip-audit skips all of them and exits with 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence


def audit(program: str, lock: str) -> tuple[int, list[str]]:
    """Return how many packages of a lock were looked up, and a line for each fault.

    Args:
        program: Path of pip-audit.
        lock: Path of a requirements file with exact versions.
    """
    command = [program, "--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json", "-r", lock]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = " ".join(done.stderr.split())[-300:] or f"exit {done.returncode}"
        return 0, [f"{lock}: pip-audit could not look anything up: {reason}"]
    faults = []
    for package in packages:
        if reason := package.get("skip_reason"):
            faults.append(f"{lock}: {package['name']} was not looked up: {reason}")
        for known in package.get("vulns", ()):
            fixed = ", ".join(known.get("fix_versions", ())) or "no version yet"
            faults.append(f"{lock}: {package['name']} {package['version']}: {known['id']}, fixed in {fixed}")
    looked_up = sum("skip_reason" not in package for package in packages)
    if not looked_up:
        faults.append(f"{lock}: no package was looked up: is the vulnerability service reached?")
    return looked_up, faults


def main(program: str, locks: Sequence[str]) -> int:
    """Print a line for each lock and each fault; return the exit status."""
    failed = not locks
    for lock in locks:
        looked_up, faults = audit(program, lock)
        print(f"{lock}: {looked_up} packages looked up, {len(faults)} faults", *faults, sep="\n  ")
        failed |= bool(faults)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
