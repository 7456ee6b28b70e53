"""``python -m SPDSegmentLib`` is the command line ``spdsegment``."""

from SPDSegmentLib.cli.app import main

if __name__ == "__main__":
    main()
