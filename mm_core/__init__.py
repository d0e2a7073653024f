"""Matting Moments: the continuous-learning engine. The flow is told in `mm_core/stages.py`."""
