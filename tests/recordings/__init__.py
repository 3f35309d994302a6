"""What people recorded: shapes of datasets that owners published, and what becomes of each."""
