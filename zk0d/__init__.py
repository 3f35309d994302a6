"""zk0d: train a shared robot policy on recordings that stay at home.

The packages and who may import whom are in ``docs/architecture.md``.
"""

from zk0d.imports import be_lazy

be_lazy()
