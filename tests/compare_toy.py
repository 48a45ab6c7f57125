"""A toy study, in a module that other processes can import."""

import os
import signal
from dataclasses import dataclass

from lambdanets.experiments.compare.cell import Cell
from lambdanets.experiments.compare.study import StoppedError, Study, choose_rows


@dataclass
class Toy(Study):
    """Rows a and b; b's cells come after its search, whose result they take; notes in a file what it ran."""

    log: str
    stop: str = ""
    fail: str = ""
    name = "toy"

    def row_names(self, options):
        return ["a", "b"]

    def cells(self, options):
        common = {"study": "toy", "scale": options.scale}
        search = Cell({**common, "kind": "search", "row": "b"})

        def complete(config, before):
            return {**config, "lr": before[0].result["lr"]}

        names = choose_rows(self, options)
        found = [
            Cell({**common, "kind": "train", "row": name, "seed": seed}, *((search,), complete) if name == "b" else ())
            for name in names
            for seed in range(options.seeds)
        ]
        return [*found, Cell({**common, "kind": "speed", "row": "all"}, alone=True)]

    def run(self, config, place):
        if config["row"] == self.stop:
            raise StoppedError(signal.SIGTERM)
        if config["kind"] == self.fail:
            raise KeyError("lr")
        with open(self.log, "a") as file:
            file.write(f"{config['kind']} {config['row']}{config.get('seed', '')}{config.get('lr', '')}\n")
        return {"lr": 0.5} if config["kind"] == "search" else {"seed": config.get("seed")}

    def outcome(self, cells):
        return None

    def ran(self):
        """What ran since the last call."""
        with open(self.log) as file:
            lines = file.read().splitlines()
        os.truncate(self.log, 0)
        return lines
