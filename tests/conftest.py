"""What tests of several files are made from, once for all processes of a session."""

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from sliders.cli import main as cli
from tests.commands import ROOT, run

LONG = ("test_smollm2.py", "test_avatars.py", "test_explain_real.py")
"""Files that take longest, which a process begins with, so that none is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put them first."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[str], Path]:
    """The file of what `sliders edit` fits by a method's committed config."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "fitted"
    folder.mkdir(exist_ok=True)

    def of(method: str) -> Path:
        file = folder / f"{method}.safetensors"
        with FileLock(folder / f"{method}.lock"):
            if not file.exists():
                config = ROOT / "configs" / "editors" / f"{method}.yaml"
                ended = run(cli.main, "edit", method, "--config", config, "--out", file)
                assert ended.code == 0, ended.err
        return file

    return of
