"""Reading, comparing, caching and augmenting pictures."""
