"""How a machine is set up, and who may join."""
