"""`python -m mm_core`: the `mm` command where its script is not installed."""

from mm_core.cli import main

if __name__ == "__main__":
    main()
