"""Speed and memory as ratios against a peer in the same run.

``make bench`` prints tables. Nothing here asserts a time: machines differ and are noisy.
"""
