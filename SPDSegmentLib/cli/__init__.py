"""The command line ``spdsegment``. Importing it loads neither torch nor SimpleITK."""
