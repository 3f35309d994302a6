"""A whole federation on one machine, with data that can be learned."""
