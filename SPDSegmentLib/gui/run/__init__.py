"""Segmentations under way: tasks, jobs, the worker; for the panel and for scripts alike."""
