"""Flower's FedAvg; writes the time of each round's end."""

import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    log = Path(str(config["log"]))

    def mark(round_: int, arrays: ArrayRecord) -> None:
        with log.open("a") as file:
            file.write(f"{round_} {time.time()}\n")

    nodes = int(config["nodes"])
    size, count = 1_000_000, int(config["parameters"])
    # Random: equal arrays would be one object to Flower, sent and stored once.
    random = np.random.default_rng(0)
    arrays = [
        random.standard_normal(min(size, count - at), np.float32) for at in range(0, count, size)
    ]
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(arrays),
        num_rounds=int(config["num-server-rounds"]),
        evaluate_fn=mark,
    )
