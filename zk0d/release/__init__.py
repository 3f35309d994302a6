"""From a run's weights to a model that people load: checkpoint folder, card, gate, hub."""
