"""Import the packages that every training step needs.

Dagster's fork server imports this module once for all steps of a run (`pipelines/defs/jobs.py`).
"""

from mm_core.model.torchvision_shim import ensure_torchvision

ensure_torchvision()

# Torch's optimizers import it when the first one is made.
import torch._dynamo  # noqa: E402, F401
