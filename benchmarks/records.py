"""Numbers of a benchmark: printed as they come, then written for `collect.py`."""

import json
from pathlib import Path


class Report:
    """Records with `name`, `value`, `unit`, `n`, `expected` and the command that gives them."""

    def __init__(self, command: str) -> None:
        self.command, self.rows = command, []

    def say(self, name, value, unit="1", n=1, expected="") -> None:
        """One number."""
        row = dict(name=name, value=float(value), unit=unit, n=int(n))
        self.rows.append(row | dict(expected=expected, command=self.command))
        print(f"{name}: {value:.4g} {unit} (n = {n})", flush=True)

    def write(self, path: Path) -> None:
        """All of them, as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.rows, indent=1) + "\n")
