"""Volumes, slices, label maps, markups and clicks (numpy; SimpleITK where files are read or written)."""
