"""What the module reads from and writes to the scene; only this room touches MRML."""
