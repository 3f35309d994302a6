"""Imported once by the process that forks a program's workers: see ``workers.py``."""

from __future__ import annotations

import os
from importlib import import_module

from zk0d.daemon.program import end_quickly
from zk0d.daemon.workers import LOG, write_to

#: What nearly every worker needs: by name, because a daemon knows nothing of learning.
IMPORTED = ("zk0d.learning.policy", "zk0d.learning.recordings", "zk0d.federation.messages")

end_quickly()
write_to(os.environ.pop(LOG))
for name in IMPORTED:
    import_module(name)
