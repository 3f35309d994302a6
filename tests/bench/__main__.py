"""``make bench [ARGS='codec step round']``: those that are named, or all."""

from __future__ import annotations

import importlib
import os
import sys

BENCHES = (
    "codec",
    "step",
    "cache",
    "round",
    "exchange",
    "memory",
    "learning",
    "idle",
    "waiting",
    "scrape",
    "report",
    "site",
    "install",
)


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    chosen = sys.argv[1:] or list(BENCHES)
    unknown = sorted(set(chosen) - set(BENCHES))
    if unknown:
        sys.exit(f"bench: there is no bench {unknown[0]!r}; there are {', '.join(BENCHES)}.")
    for name in chosen:
        importlib.import_module(f"tests.bench.bench_{name}").main()


if __name__ == "__main__":
    main()
