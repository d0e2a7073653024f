"""Shared by all rooms: parameters, settings, workspace paths, errors, record types, locks and processes."""
