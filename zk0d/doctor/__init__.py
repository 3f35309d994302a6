"""What is wrong with this machine, with evidence and cure: one small function per rule."""
