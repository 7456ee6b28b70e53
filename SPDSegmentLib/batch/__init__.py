"""Many cases from files to files: one implementation for the console and the command line, without Qt and torch."""
