"""A policy on its owner's arm: what is checked, what is held, and how often it succeeded."""
