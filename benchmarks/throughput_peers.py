"""One peer of `ingest_throughput.py` over folders of photos; runs in the peers' own environment (infra/peers.lock).

    .tools/peers/bin/python benchmarks/throughput_peers.py PEER HOME FOLDER…

HOME: an empty folder for databases and the like. Prints JSON: for each folder photos, seconds and processor seconds.
"""

# pyright: reportMissingImports=false
# (they lie in the environment that runs this file)
from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def decode(folder: Path) -> None:
    """The floor of whoever decodes whole photos: PIL at full size, in as many threads as there are cores."""
    from PIL import Image

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda path: Image.open(path).load(), folder.iterdir()))


def imagededup(folder: Path) -> None:
    """What FiftyOne's metadata and file hashes give, and imagededup's PHash with its exhaustive search."""
    _torchvision_without_kernels()
    from imagededup.methods import PHash
    from PIL import Image

    def header_and_hash(path: Path) -> tuple[str, tuple[int, int], str]:
        with Image.open(path) as image:
            return str(image.format), image.size, hashlib.file_digest(path.open("rb"), "sha256").hexdigest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(header_and_hash, folder.iterdir()))
    method = PHash(verbose=False)
    encodings = method.encode_images(image_dir=str(folder))
    method.find_duplicates(encoding_map=encodings, max_distance_threshold=3)


def cleanvision(folder: Path) -> None:
    """All issues that it looks for by default: exact and near duplicates, dark, light, blurred, odd sizes, …"""
    from cleanvision import Imagelab

    Imagelab(data_path=str(folder)).find_issues(verbose=False)


def fastdup(folder: Path) -> None:
    """Its run with defaults; in an environment of its own (infra/fastdup.lock), as it pins an old numpy."""
    import fastdup as peer

    peer.create(work_dir=f"{os.environ['FIFTYONE_DATABASE_DIR']}/{folder.name}", input_dir=str(folder)).run(
        overwrite=True
    )


def fiftyone(folder: Path) -> None:
    """compute_metadata, compute_exact_duplicates and compute_near_duplicates with its default model.

    Untrained: the time of a ResNet-18 does not depend on its weights, which have to be downloaded. At 224×224, in its
    favour: by default it would see photos with a long side of up to 2,048.
    """
    _torchvision_without_kernels()
    import fiftyone as fo
    import fiftyone.brain as brain
    from fiftyone.utils.torch import TorchImageModel, TorchImageModelConfig

    photos = fo.Dataset.from_images_dir(str(folder))
    photos.compute_metadata()
    brain.compute_exact_duplicates(photos)
    model = TorchImageModel(
        TorchImageModelConfig(
            {
                "entrypoint_fcn": "torchvision.models.resnet.resnet18",
                "entrypoint_args": {"weights": None},
                "output_processor_cls": "fiftyone.utils.torch.ClassifierOutputProcessor",
                "labels_path": "{{eta-resources}}/imagenet-labels-no-background.txt",
                "image_size": [224, 224],
                "image_mean": [0.485, 0.456, 0.406],
                "image_std": [0.229, 0.224, 0.225],
                "embeddings_layer": "<fc",
            }
        )
    )
    brain.compute_near_duplicates(photos, model=model, batch_size=16, num_workers=os.cpu_count())


def _torchvision_without_kernels() -> None:
    """PyPI's torchvision refuses to load beside the CPU build of torch unless its detection kernels are declared."""
    import torch

    if _kept:
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)


_kept: list[object] = []
PEERS: dict[str, Callable[[Path], None]] = {
    "decode": decode,
    "imagededup": imagededup,
    "cleanvision": cleanvision,
    "fastdup": fastdup,
    "fiftyone": fiftyone,
}


def measured(work: Callable[[Path], None], folder: Path) -> dict[str, float]:
    """Seconds by the clock and of processor, of this process and its children, for so many photos."""

    def spent() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used)

    began, busy = time.perf_counter(), spent()
    work(folder)
    found = {"seconds": time.perf_counter() - began, "processor": spent() - busy}
    return found | {"photos": sum(path.suffix == ".jpg" for path in folder.iterdir())}


def main() -> None:
    name, home, *folders = sys.argv[1:]
    os.environ |= {
        "FIFTYONE_DATABASE_DIR": home,
        "FIFTYONE_DO_NOT_TRACK": "true",
        "FIFTYONE_SHOW_PROGRESS_BARS": "false",
        "SENTRY_OPT_OUT": "1",
    }
    print(json.dumps([measured(PEERS[name], Path(folder)) for folder in folders]))


if __name__ == "__main__":
    main()
