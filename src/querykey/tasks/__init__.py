"""The tasks that designs are compared on."""
