"""A federation of virtual contributors: the same apps, without machines of their own."""
