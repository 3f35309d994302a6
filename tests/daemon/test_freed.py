from __future__ import annotations

import subprocess
import sys

#: Takes and gives back twenty buffers of 8 MB one after the other, and says how many pages the
#: kernel had to give.
PROGRAM = """
import resource, sys
from zk0d.daemon.freed import keep_freed_memory
if sys.argv[1] == "keeps":
    keep_freed_memory()
filler = bytes(4096) * 2048
del filler
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    buffers = [bytearray(b"x" * 8_000_000) for _ in range(4)]
    del buffers
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout)


def test_a_process_keeps_the_memory_that_it_frees() -> None:
    assert pages("keeps") * 4 < pages("returns")
