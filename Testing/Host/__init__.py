"""Loads real Slicer scripted modules without the Slicer application, strictly.

Importing the package only sets the environment variables that Qt and VTK read when they are imported;
`Testing.Host.host.start_host()` starts Qt, VTK and the scene.
"""

from . import environment

environment.prepare()
