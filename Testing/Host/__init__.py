"""Loads real Slicer scripted modules without the Slicer application, strictly.

Importing the package does nothing; `Testing.Host.host.start_host()` starts Qt, VTK and the scene.
"""
