"""What a run's journal tells: figures, what was odd in it, charts, comparisons."""
