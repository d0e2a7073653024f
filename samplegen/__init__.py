"""Procedural photo-like samples with exact soft alpha mattes, for demos, tests and benchmarks.

No downloads, no licences; same seed, same bytes.
"""

from samplegen.batch import DropOptions, write_drop
from samplegen.render import GeneratedSample, generate, render

__all__ = ["DropOptions", "GeneratedSample", "generate", "render", "write_drop"]
