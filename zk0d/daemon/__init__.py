"""What every service shares: the guarded start of a program, and supervised children."""
