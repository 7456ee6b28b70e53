"""Training of SPD's two stages, of SAM-Tuning and of every ablation, from one configuration file."""
