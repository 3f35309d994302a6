"""Simulated robots: they make recordings that can be learned and tell success in closed loop."""
