"""Read, compare, cache and augment pictures."""
