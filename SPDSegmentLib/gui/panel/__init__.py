"""The panel: its sections, and what they draw into the views."""
