"""The programs that units run: ``zk0d VERB``."""
