"""The benchmark: from one TOML file to tables, figures and a report."""
