"""What a compiled program says of a plan: memory, collectives, the mesh axes they cross."""
