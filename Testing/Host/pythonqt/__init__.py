"""PySide6 with the semantics of PythonQt, as the module `qt`."""
