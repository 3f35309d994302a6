"""Typed settings of every zk0d program. Imports neither torch nor flwr."""
