"""LeRobot: recordings, frame caches, policies, training, seeded evaluation.

``spec``, ``statistics`` and ``schedule`` are numpy only, so that the server may import them; the
other modules import torch and lerobot.
"""
