"""Moments of a gallery: its events, suitable effects for each photo, and finished pieces."""
