"""Further formats of the int8 files, each made by a toolchain in an environment of its own and run as a program.

`convert` calls `to_<format>.py` (makes the file) and `run_<format>.py` (runs it with nothing but its runtime); these
programs import nothing of ours.
"""
