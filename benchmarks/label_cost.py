"""What does it cost to send photos of 1 megapixel to a real Label Studio and to take the mattes back?

    python benchmarks/label_cost.py --photos 120

Generated photos (1 megapixel, soft mattes with fur and hair) are pushed with a matte each, answered by the simulated
annotator, and pulled; then a pull with nothing new, one where a tenth was edited, and one where a third was edited so
that no Unknown band is left: what the peer does too. Where a pull spends its time, watches around its parts tell.
Decoding and encoding of the mattes that lay on the server are timed beside the SDK's own in the same run. The peer of
push and pull is the plain SDK loop: a task at a time with its picture and prediction, every annotation listed and
decoded by the SDK, on the same server in another project, for a tenth of the photos. Last, some thousand small photos
are pushed at once, and pushed again. Writes benchmarks/label_cost.md. Needs `make labelstudio`.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "labeling"))

from annotator import SimulatedAnnotator, Truth, paint  # noqa: E402  # pyright: ignore[reportMissingImports]
from label_house import LabelHouse, server_of  # noqa: E402  # pyright: ignore[reportMissingImports]

from mm_core.core.settings import Settings  # noqa: E402
from mm_core.imaging.images import load_rgb  # noqa: E402
from mm_core.labeling import apply_annotations as annotations  # noqa: E402
from mm_core.labeling.label_studio_client import Server  # noqa: E402
from mm_core.labeling.label_studio_format import LABEL_CONFIG, UNKNOWN, outbox  # noqa: E402
from mm_core.labeling.label_studio_local import LocalServer, free_port, read_account  # noqa: E402
from mm_core.labeling.rle import decode_rle, encode_rle  # noqa: E402
from mm_core.labeling.trimap_matting import solve_unknown  # noqa: E402
from mm_core.storage.catalog import Catalog  # noqa: E402
from mm_core.storage.store import fetch_blob  # noqa: E402


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


PARTS = {
    "listing": (Server, ("_tasks",)), "annotations from the server": (Server, ("annotations",)),
    "checking and decoding": (annotations, ("read_annotation",)), "reading the photo": (annotations, ("load_rgb",)),
    "solving Unknown bands": (annotations, ("solve_unknown",)), "PNG and store": (annotations, ("_label",)),
    "committing": (Catalog, ("upsert",)), "reading the catalog": (annotations, ("_asked",)),
}  # fmt: skip


@contextmanager
def watched() -> Iterator[dict[str, list[float]]]:
    """Part of a pull → seconds spent in it and seconds of CPU, over all threads."""
    spent = {name: [0.0, 0.0] for name in PARTS}
    lock, before = threading.Lock(), []

    def watch(name: str, real: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            start, cpu = time.perf_counter(), time.thread_time()
            try:
                return real(*args, **more)
            finally:
                with lock:
                    spent[name][0] += time.perf_counter() - start
                    spent[name][1] += time.thread_time() - cpu

        return call

    for name, (owner, functions) in PARTS.items():
        for function in functions:
            before.append((owner, function, getattr(owner, function)))
            setattr(owner, function, watch(name, getattr(owner, function)))
    try:
        yield spent
    finally:
        for owner, function, real in before:
            setattr(owner, function, real)


class WithoutBands(SimulatedAnnotator):
    """Paints no Unknown."""

    def answer(self, key: str, attempt: int = 0) -> list[dict[str, Any]]:
        found = super().answer(key, attempt)
        return [region for region in found if region["value"].get("brushlabels") != [UNKNOWN]]


def codecs(mattes: list[np.ndarray]) -> dict[str, float]:
    """Seconds per matte of encoding and decoding, ours and the SDK's; both must agree bit for bit."""
    from label_studio_sdk.converter.brush import decode_rle as sdk_decode
    from label_studio_sdk.converter.brush import mask2rle

    seconds = dict.fromkeys(("encode", "SDK encode", "decode", "SDK decode"), 0.0)
    for matte in mattes:
        height, width = matte.shape
        rle = encode_rle(matte)
        seconds["encode"] += timed(lambda matte=matte: encode_rle(matte))
        seconds["SDK encode"] += timed(lambda matte=matte: mask2rle(matte))
        seconds["decode"] += timed(lambda rle=rle, w=width, h=height: decode_rle(rle, w, h))
        seconds["SDK decode"] += timed(lambda rle=rle: sdk_decode(rle))
        assert mask2rle(matte)[: len(rle)] == rle
        assert np.array_equal(np.asarray(sdk_decode(rle)).reshape(height, width, 4)[..., 3], matte)
    return {name: total / len(mattes) for name, total in seconds.items()}


def bands(truth: dict[str, Truth], photos: dict[str, np.ndarray]) -> tuple[float, float]:
    """Mean absolute error inside the simulated annotator's Unknown bands: of its hard strokes, and solved."""
    hard, solved = [], []
    for key, rgb in photos.items():
        painted, unknown = paint(truth[key].alpha, np.random.default_rng(0))
        band, exact = unknown > 0, truth[key].alpha
        hard.append(np.abs(painted / 255 - exact)[band].mean())
        solved.append(np.abs(solve_unknown(rgb, painted, band) / 255 - exact)[band].mean())
    return float(np.mean(hard)), float(np.mean(solved))


def plain_loop(url: str, token: str, house: LabelHouse, photos: int) -> dict[str, float]:
    """The SDK's typed client, a task at a time with the picture in its data; then every annotation, decoded by it."""
    from label_studio_sdk.client import LabelStudio
    from label_studio_sdk.converter.brush import decode_rle as sdk_decode

    client = LabelStudio(base_url=url, api_key=token)
    project = client.projects.create(title="Plain loop", label_config=LABEL_CONFIG)
    tasks = house.tasks()[:photos]

    def push() -> None:
        for task in tasks:
            picture = outbox(house.layout) / task["data"]["image"].rsplit("?d=", 1)[-1]
            inline = "data:image/jpeg;base64," + base64.b64encode(picture.read_bytes()).decode()
            made = client.tasks.create(project=project.id, data={**task["data"], "image": inline})
            prediction = task["predictions"][0]
            assert made.id is not None
            client.predictions.create(task=made.id, result=prediction["result"], model_version="1")

    pushed = timed(push)
    annotator = SimulatedAnnotator(server_of_url(url, token, "Plain loop"), house.truth)
    numbers = annotator.work([task["data"]["key"] for task in tasks])

    def pull() -> None:
        for task in client.tasks.list(project=project.id, fields="all"):
            for annotation in client.annotations.list(id=task.id):
                for region in annotation.result or []:
                    if "rle" in region["value"]:
                        sdk_decode(region["value"]["rle"])

    pulled = timed(pull)
    plain = WithoutBands(server_of_url(url, token, "Plain loop"), house.truth)
    for key, number in numbers.items():
        plain.edit(key, number, attempt=2)
    return {"push": pushed / photos, "pull": pulled / photos, "without bands": timed(pull) / photos}


def server_of_url(url: str, token: str, title: str) -> Server:
    return Server(url, token, title)


def thousands(local: LocalServer, work: Path, photos: int) -> dict[str, float]:
    """Seconds of pushing so many small photos, of pushing them again, and of a pull that finds nothing."""
    house = LabelHouse(work / "thousands", photos, size=64)
    house.inputs["champion"] = None
    house.route(photos)
    house.predict(lambda alpha: np.rint(255 * alpha).astype(np.uint8), "3:truth")
    server = server_of(local, "Thousands")
    _ = server.project
    said: list[int] = []

    def progress(what: str, done: int, total: int) -> None:
        said.append(done)
        print(f"{what}: {done} of {total}", file=sys.stderr)

    found = {"push": timed(lambda: house.push(server, progress)), "progress": len(said)}
    assert said == sorted(said) and said[-1] == photos
    found["again"] = timed(lambda: house.push(server))
    (house.layout.labels / "delivered.json").unlink()
    found["looked up"] = timed(lambda: house.push(server))
    found["tasks"], found["uploads"] = server.summary()["tasks"], sum(map(len, server.uploads().values()))
    found["pull"] = timed(lambda: house.pull(server))
    assert found["tasks"] == found["uploads"] == photos and house.labels().empty
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=120)
    parser.add_argument("--thousands", type=int, default=2000, help="small photos pushed at once")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "mm-label-cost")
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    local = LocalServer(Settings.from_env().labelstudio_python, args.work / "labelstudio", free_port())
    print("generating", file=sys.stderr)
    house = LabelHouse(args.work / "house", args.photos, size=1155)  # 1155 x 866 is 1.0 megapixel
    house.route(args.photos)
    house.predict(lambda alpha: np.rint(255 * alpha).astype(np.uint8), "3:truth")
    found: dict[str, Any] = {}
    load = os.getloadavg()[0]
    local.start()
    try:
        token = read_account(local.folder)["token"]
        server = server_of(local, "Cost")
        _ = server.project
        keys = sorted(house.truth)
        found["push"] = timed(lambda: house.push(server)) / args.photos
        print(found, file=sys.stderr)
        annotator = SimulatedAnnotator(server, house.truth)
        numbers = annotator.work(keys)
        start, cpu = time.perf_counter(), time.process_time()
        with watched() as parts:
            house.pull(server)
        found["pull"] = (time.perf_counter() - start) / args.photos
        found["pull CPU"] = (time.process_time() - cpu) / args.photos
        print(found, parts, file=sys.stderr)
        assert len(house.labels()) == args.photos
        for key in keys[::10]:
            annotator.edit(key, numbers[key], attempt=1)
        found["pull of a tenth"] = timed(lambda: house.pull(server)) / len(keys[::10])
        # Behind the overlap, so that really nothing is looked at again.
        found["pull of nothing"] = timed(lambda: house.pull(server))
        plain_annotator = WithoutBands(server, house.truth)
        for key in keys[::3]:
            plain_annotator.edit(key, numbers[key], attempt=2)
        found["pull without bands"] = timed(lambda: house.pull(server)) / len(keys[::3])
        print(found, file=sys.stderr)
        size = sum(path.stat().st_size for path in (local.folder / "data").rglob("*") if path.is_file())
        found["MB on the server"] = size / 1e6 / args.photos
        plain = plain_loop(local.url, token, house, max(2, args.photos // 10))
        print(plain, file=sys.stderr)
        many = thousands(local, args.work, args.thousands)
    finally:
        local.stop()
    codec = codecs([np.rint(255 * house.truth[key].alpha).astype(np.uint8) for key in keys[:12]])
    hard, solved = bands(house.truth, {key: load_rgb(fetch_blob(house.store, key)) for key in keys[:12]})
    encoded = np.mean([len(json.dumps(encode_rle(np.rint(255 * house.truth[k].alpha).astype(np.uint8)))) for k in keys])
    per = 1000
    busy = sum(spent for spent, _ in parts.values())
    shares = "\n".join(
        f"| {name} | {per * spent / args.photos:.0f} | {per * used / args.photos:.0f} | {spent / busy:.0%} |"
        for name, (spent, used) in parts.items()
    )
    (HERE / "label_cost.md").write_text(f"""# Sending photos to Label Studio and taking mattes back

Runner: `benchmarks/label_cost.py`, {platform.machine()}, {os.cpu_count()} cores (shared: load {load:.0f} and {
        os.getloadavg()[0]:.0f} at beginning and end),
Python {platform.python_version()}, Label Studio 1.23.2 on sqlite on the same machine; {
        args.photos
    } generated photos of 1
megapixel, measured and scaled to 1,000. A matte's code is {encoded / 1e3:.0f} KB of JSON on average.

| seconds per 1,000 photos | ours | plain SDK loop | ratio |
|---|---|---|---|
| push (picture and matte) | {per * found["push"]:.0f} | {per * plain["push"]:.0f} | {
        found["push"] / plain["push"]:.2f} |
| pull, all new (listed, checked, Unknown bands solved, stored, committed; the loop only lists and decodes) | {
        per * found["pull"]:.0f} | {per * plain["pull"]:.0f} | {found["pull"] / plain["pull"]:.2f} |
| pull without Unknown bands (listed, checked, stored, committed; the loop only lists and decodes) | {
        per * found["pull without bands"]:.0f} | {per * plain["without bands"]:.0f} | {
        found["pull without bands"] / plain["without bands"]:.2f} |
| pull, per 1,000 edited ones | {per * found["pull of a tenth"]:.0f} | | |

A pull right after that, where nothing is new, took {found["pull of nothing"]:.1f} s in all. The server keeps {
        found["MB on the server"]:.1f} MB per photo.

Where the first pull spent its time, over all threads ({per * found["pull CPU"]:.0f} seconds of CPU per 1,000 photos):

| part | seconds per 1,000 photos | of CPU | share |
|---|---|---|---|
{shares}

| milliseconds per matte of 1 megapixel | ours | SDK | ratio |
|---|---|---|---|
| encode | {1e3 * codec["encode"]:.0f} | {1e3 * codec["SDK encode"]:.0f} | {codec["encode"] / codec["SDK encode"]:.3f} |
| decode | {1e3 * codec["decode"]:.0f} | {1e3 * codec["SDK decode"]:.0f} | {codec["decode"] / codec["SDK decode"]:.3f} |

Both codecs agree bit for bit on these mattes (checked in the run). Inside the simulated annotator's Unknown bands of 12
photos the mean absolute error of alpha is {hard:.3f} as it painted them and {solved:.3f} solved.

{args.thousands:,} photos of 64 px pushed at once: {many["push"]:.0f} s, with progress {many["progress"]:.0f} times.
Pushed again: {many["again"]:.1f} s; pushed again after what this machine knew of the delivery was lost: {
        many["looked up"]:.0f} s.
The server then has {many["tasks"]:.0f} tasks and {many["uploads"]:.0f} pictures. A pull of them, unanswered, took {
        many["pull"]:.1f} s and
made no label.
""")
    shutil.rmtree(args.work)


if __name__ == "__main__":
    main()
