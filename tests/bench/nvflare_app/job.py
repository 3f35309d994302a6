"""NVFlare's own FedAvg for numpy, in its POC mode; the Python that has nvflare runs it.

``python job.py FOLDER NODES ROUNDS VALUES``
"""

import sys
from pathlib import Path

import numpy as np
from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe
from nvflare.recipe import PocEnv

folder, nodes, rounds, values = Path(sys.argv[1]), *map(int, sys.argv[2:5])
weights = folder / "weights.npy"
np.save(weights, np.random.default_rng(0).standard_normal(values, np.float32))
recipe = NumpyFedAvgRecipe(
    name="exchange",
    initial_ckpt=str(weights),
    min_clients=nodes,
    num_rounds=rounds,
    train_script=str(Path(__file__).with_name("client.py")),
    train_args=str(folder / "times"),
)
# Seconds to log in: the default is 10, and a busy machine needs more.
environment = PocEnv(num_clients=nodes, extra={"login_timeout": 120})
try:
    run = recipe.execute(environment)
    print("status", run.get_status(), "result", run.get_result(timeout=1500.0), flush=True)
finally:
    environment.stop(clean_up=False)
