import sys
from pathlib import Path

# The tests of this room share shapes.py; pytest's importlib mode adds no folder of its own to the path.
sys.path.insert(0, str(Path(__file__).parent))
