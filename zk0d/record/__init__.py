"""What a run did: a typed journal, one fold over it, and what people and programs read of it."""
