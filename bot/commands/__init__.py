"""The commands of ``quantcard``, one module per family."""
