"""Features, tags and difficulty of photos."""
