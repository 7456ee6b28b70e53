"""Saliency-guided prompt distillation: volumetric segmentation from rough centerline clicks."""

__version__ = "0.1.0"
