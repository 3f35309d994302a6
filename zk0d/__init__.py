"""zk0d: train a shared robot policy on recordings that stay at home.

The packages and who may import whom are in ``docs/architecture.md``.
"""
