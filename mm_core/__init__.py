"""Matting Moments: the continuous-learning engine. The flow is told in `mm_core/stages.py`."""

import os

__version__ = "0.1.0"

# Nothing is sent home. Here, as MLflow asks when it is imported; it does not take DO_NOT_TRACK=1.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")
