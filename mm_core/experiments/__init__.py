"""Measurements outside the cycle that train models of their own: label ablation and seed noise."""
