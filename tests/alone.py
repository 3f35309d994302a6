"""An early plugin of pytest: without the caller's PYTHONPATH, whose packages may be plugins, too.

pytest loads this before it looks for plugins that are installed.
"""

import os
import sys

FOREIGN = ("PYTHONPATH", "PYTHONHOME")

if any(name in os.environ for name in FOREIGN):
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    os.execve(  # noqa: S606
        sys.executable, [sys.executable, *sys.orig_argv[1:]], {**kept, "PYTHONNOUSERSITE": "1"}
    )
