"""The learner: holds policy, recordings and GPU between rounds, and serves them over a socket."""
