"""Metrics, statistics and the evaluation of bundles with simulated clicks."""
