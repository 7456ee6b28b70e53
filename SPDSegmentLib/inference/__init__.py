"""The predictor: one model on one device, and per volume the slices it has already understood."""
