"""Further formats of the int8 files, each made by a separate program in an environment of its own.

`convert` calls `to_<format>.py` to make a file and `run_<format>.py` to run it with only its runtime. These programs
import none of our packages.
"""
