"""Small stand-ins of Slicer's own Python packages, used where the real ones are not at hand."""
