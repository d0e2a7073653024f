"""Moments of a whole gallery: its events, which function suits which photo, and finished pieces."""
