"""The algorithm: updates, admission, aggregation, rounds, journal, and the two Flower apps.

Nothing here imports torch: the ServerApp and the ClientApp that Flower starts are light, and ask a
learner over its socket for what needs a policy.
"""
