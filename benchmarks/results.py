"""Figures that are kept, and their table."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sliders.files import write_text


class Results:
    """What has been measured, in a file that is whole after every figure; several processes may add to it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.values = self._kept()

    def _kept(self) -> dict[str, Any]:
        return json.loads(self.file.read_text()) if self.file.is_file() else {}

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """The figure of that name, measured if it is not there."""
        if key not in self.values:
            found = measure()
            self.values = {**self._kept(), key: found}
            write_text(self.file, json.dumps(self.values, indent=1))
        return self.values[key]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""

    def cell(value: object) -> str:
        return f"{value:.3g}" if isinstance(value, float) and abs(value) < 100 else (
            f"{value:.0f}" if isinstance(value, float) else str(value)
        )  # fmt: skip

    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    return "\n".join(lines + ["| " + " | ".join(cell(row.get(k, "")) for k in rows[0]) + " |" for row in rows])
