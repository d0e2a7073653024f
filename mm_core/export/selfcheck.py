"""Check a bundle on the machine that uses it: file digests, then golden inputs against golden mattes.

    python selfcheck.py [BUNDLE]        BUNDLE: default is this file's folder

It needs numpy and onnxruntime only. Every bundle contains a copy of this file. Exit code 0 means that this machine's
runtime reproduces the judged mattes.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits of any shape."""
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


def check(folder: Path) -> dict:
    """Compare this machine's mattes with the golden ones.

    Returns:
        Per decoder `mse` and `max` of the mattes' difference and `choice`, the largest difference of the decoders'
        probabilities; and `ok`: all are within the manifest's tolerance.
    """
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, file in manifest["files"].items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != file["sha256"]:
            raise SystemExit(f"{folder / name}: not the file that the manifest names; fetch the bundle again")
    spec, tolerance = manifest["input"], manifest["golden"]["tolerance"]
    golden = np.load(folder / manifest["golden"]["file"])
    result: dict = {"decoders": {}, "onnxruntime": onnxruntime.__version__}
    for decoder, entry in manifest["decoders"].items():
        # Scale and normalise the photo as the manifest describes.
        image = (golden[f"{decoder}_image"].astype(np.float32) / 255 - np.float32(spec["mean"])) / np.float32(
            spec["std"]
        )
        session = onnxruntime.InferenceSession(str(folder / entry["file"]), providers=["CPUExecutionProvider"])
        names = [manifest["output"]["name"], manifest["choice"]["name"]]
        alpha, choice = session.run(names, {spec["name"]: image.transpose(2, 0, 1)[None]})
        difference = np.asarray(alpha)[0, 0] - golden[f"{decoder}_alpha"]
        # Logits are compared as probabilities, because their scale has no meaning.
        shares = softmax(np.asarray(choice)[0]) - softmax(golden[f"{decoder}_choice"])
        costs = {"mse": np.mean(difference**2), "max": np.abs(difference).max(), "choice": np.abs(shares).max()}
        result["decoders"][decoder] = {name: float(value) for name, value in costs.items()}
    result["ok"] = all(
        d["mse"] <= tolerance["mse"] and max(d["max"], d["choice"]) <= tolerance["max"]
        for d in result["decoders"].values()
    )
    result["torch_imported"] = "torch" in sys.modules
    return result


if __name__ == "__main__":
    found = check(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)
    print(json.dumps(found))
    sys.exit(0 if found["ok"] else 1)
