"""Is a catalog on S3 the same when a fifth of all requests fail as when none does?

Inbox, store and Delta tables lie on moto's S3 server, reached over HTTP through a proxy (`faulty_proxy.py`) that spoils
20 % of the requests: 500, 503 SlowDown, connections reset before and after the server acted, silence, answers cut in
half. Each trial ingests five small drops (`arrivals.py`) into an empty store, in a process that is started again as
long as it ends with an error of ours; tables (without times), blobs, records and kept files must equal those of a run
without faults.

    python -m benchmarks.ingest_s3_faults --trials 10

Writes benchmarks/ingest_s3_faults.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.arrivals import FORK, differences, ingest, start, state, warm_up, write_arrivals
from benchmarks.faulty_proxy import FAULTS, FaultyProxy
from mm_core.core.errors import MattingError
from mm_core.storage.store import open_store

HERE = Path(__file__).parent
KEYS = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "test")
REGION = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_REGION": "us-east-1"}
TIMEOUT = 1.0
"""Seconds until a silent request is tried again in these trials."""


def serve(pipe: Connection, share: float, seed: int) -> None:
    """moto's server and the proxy before it, in a process of their own until something is sent."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    direct = "http://{}:{}".format(*server.get_host_and_port())
    with FaultyProxy(direct, share, seed=seed, silence=TIMEOUT * 2) as proxy:
        pipe.send((direct, proxy.address))
        pipe.recv()
        pipe.send((proxy.requests, dict(proxy.faults)))
    server.stop()


def attempt(root: Path, store: str) -> str:
    """One run: empty where it ended well, the error where it was one of ours."""
    try:
        ingest(root, "s3://bench/drops", store)
    except MattingError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def in_child(address: str, work: Any, out: Path) -> str:
    """The text that `work` returned in a process that finds S3 at `address`."""
    os.environ["AWS_ENDPOINT_URL"] = address
    child = start(work, out)
    child.join()
    if child.exitcode:
        raise RuntimeError(f"ended with {child.exitcode}: {out.read_text()}")
    return out.read_text()


def upload(folder: Path) -> None:
    import boto3

    boto3.session.Session().client("s3").create_bucket(Bucket="bench")
    inbox = open_store("s3://bench/drops", folder / "upload")
    files = sorted((folder / "inbox").rglob("*"), key=lambda path: (path.name.startswith("manifest"), path))
    for path in files:
        if path.is_file():
            inbox.put(path.relative_to(folder / "inbox").as_posix(), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ.update(KEYS | REGION | {"MM_S3_TIMEOUT": str(TIMEOUT)})
    with tempfile.TemporaryDirectory(prefix="mm-s3-") as name:
        folder, rows = Path(name), []
        pipe, theirs = FORK.Pipe()
        server = FORK.Process(target=serve, args=(theirs, args.share, args.seed))
        server.start()
        direct, faulty = pipe.recv()
        warm_up(folder)
        photos = write_arrivals(folder / "inbox")
        in_child(direct, lambda: upload(folder), folder / "out")

        def seen(store: str, root: Path) -> dict[str, Any]:
            return json.loads(in_child(direct, lambda: json.dumps(state(root, store)), folder / "out"))

        began = time.perf_counter()
        in_child(direct, lambda: attempt(folder / "calm", "s3://bench/calm"), folder / "out")
        calm = time.perf_counter() - began
        expected = seen("s3://bench/calm", folder / "calm")
        for number in range(args.trials):
            root, store, errors = folder / f"trial-{number}", f"s3://bench/trial-{number}", []
            began = time.perf_counter()
            while said := in_child(faulty, lambda root=root, store=store: attempt(root, store), folder / "out"):
                errors.append(said)
            seconds = time.perf_counter() - began
            lines = differences(expected, seen(store, folder / f"look-{number}"))
            rows.append({"errors": errors, "seconds": seconds, "lines": lines})
            print(
                f"trial {number}: {len(errors)} errors reported, {seconds:.0f} s, {len(lines)} differences", flush=True
            )
            for line in (*errors, *lines):
                print("   ", line[:300], flush=True)
        pipe.send("stop")
        requests, faults = pipe.recv()
        server.join()
        write(rows, photos, calm, requests, Counter(faults))
    print(HERE / "ingest_s3_faults.md")


def write(rows: list[dict[str, Any]], photos: int, calm: float, requests: int, faults: Counter[str]) -> None:
    errors = [error for row in rows for error in row["errors"]]
    kinds = "".join(f", {count} {kind}" for kind, count in sorted(Counter(e.split(":")[0] for e in errors).items()))
    differ = sum(bool(row["lines"]) for row in rows)
    slow = sorted(row["seconds"] for row in rows)
    lines = [
        "# Ingest from S3 to S3 with a fifth of the requests spoiled",
        "",
        f"Runner: `benchmarks/ingest_s3_faults.py`. {photos} rows in five drops; moto's server behind a TCP proxy;"
        f" a silent request is given up after {TIMEOUT:g} s. {platform.machine()}, {os.cpu_count()} cores.",
        "",
        "| what | value |",
        "|---|---|",
        f"| trials | {len(rows)} |",
        f"| whose tables, blobs, records or kept files differ from the run without faults | {differ} |",
        f"| requests | {requests} |",
        f"| of them spoiled | {faults.total()} ({100 * faults.total() / requests:.1f} %) |",
        *(f"| … {fault} | {faults[fault]} |" for fault in FAULTS),
        f"| runs that ended with an error and were started again, in all trials | {len(errors)}{kinds} |",
        f"| most of them in one trial | {max(len(row['errors']) for row in rows)} |",
        f"| seconds without faults | {calm:.1f} |",
        f"| seconds with faults, median and most | {slow[len(slow) // 2]:.1f}, {slow[-1]:.1f} |",
        "",
        *(f"```\n{chr(10).join(row['lines'])}\n```" for row in rows if row["lines"]),
    ]  # fmt: skip
    (HERE / "ingest_s3_faults.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
