"""Backbones, adapters, saliency head, the SPD model and its losses (torch)."""
