"""Stand-ins of ctk, qMRML and qSlicer classes: members from the tables, behaviour from this folder."""
