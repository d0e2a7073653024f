"""Scores, the gate and the report."""
