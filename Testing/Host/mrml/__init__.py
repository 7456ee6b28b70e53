"""The real MRML scene and module logics of slicer-core, set up as the application would."""
