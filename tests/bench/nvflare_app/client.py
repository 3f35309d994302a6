"""NVFlare's client script: sends back what it got, a little changed, and notes when it came."""

import sys
import time
from pathlib import Path

import nvflare.client as flare

flare.init()
while flare.is_running():
    model = flare.receive()
    if model is None:
        break
    with (Path(sys.argv[1]) / flare.get_site_name()).open("a") as file:
        file.write(f"{time.time()}\n")
    params = {name: array + 1 for name, array in model.params.items()}
    flare.send(flare.FLModel(params=params, meta={"NUM_STEPS_CURRENT_ROUND": 1}))
