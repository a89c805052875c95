"""The package as a user has it: a wheel in a bare environment, in an empty folder."""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.commands import ROOT

pytestmark = pytest.mark.slow

REPORT = {
    "class_path": "sliders.training.callbacks.FinalReport",
    "init_args": {"judge": "avatars", "scenes": 4, "dials": [-1, 0, 1], "how": {"steps": 4}},
}
QUICK = ("--trainer.max_steps=6", "--model.states.init_args.trajectories=4", "--model.states.init_args.steps=4")
MOST_MEGABYTES = 60


@dataclass(frozen=True)
class Installed:
    """A wheel, an environment with it and nothing else of ours, and an empty folder to use it in."""

    wheel: Path
    bin: Path
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Without what would lead to the repository, or to what this user has in a cache."""
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "XDG_"))
        }
        return kept | {"HOME": str(self.folder.parent), "MPLBACKEND": "Agg"}

    def run(self, *command: object) -> str:
        """What a command of the environment says."""
        done = subprocess.run(
            [str(self.bin / str(command[0])), *map(str, command[1:])],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout


def downloads() -> str:
    """Where pip keeps what it has downloaded, as `make install` just has; nothing where it keeps nothing."""
    command = (sys.executable, "-m", "pip", "cache", "dir")
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


@pytest.fixture(scope="module")
def installed() -> Iterator[Installed]:
    """Build and install; two gigabytes, which go away at once."""
    with tempfile.TemporaryDirectory() as place:
        wheels, folder = Path(place) / "wheels", Path(place) / "empty"
        folder.mkdir()
        build = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(wheels), str(ROOT))
        subprocess.run(build, check=True, cwd=folder)
        (wheel,) = wheels.iterdir()
        subprocess.run([sys.executable, "-m", "venv", f"{place}/venv"], check=True)
        made = Installed(wheel, Path(place) / "venv" / "bin", folder)
        constraints, cache = ROOT / "constraints.txt", downloads()
        kept = ("--cache-dir", cache) if cache else ()
        pip = ("python", "-m", "pip", "install", "--quiet", "--no-compile", *kept)
        made.run(*pip, "-c", constraints, f"{wheel}[demo]")
        yield made


def test_the_wheel_is_one_package(installed: Installed) -> None:
    names = zipfile.ZipFile(installed.wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"sliders"}
    assert "sliders/py.typed" in names
    assert installed.wheel.stat().st_size < MOST_MEGABYTES * 1e6
    code = (
        "import importlib.util as u, sliders\n"
        "print([n for n in ('demo', 'configs', 'data', 'tests', 'benchmarks', 'train') if u.find_spec(n)])\n"
        "print(sliders.__file__)"
    )
    claimed, where = installed.run("python", "-c", code).splitlines()
    assert claimed == "[]"
    assert Path(where).is_relative_to(installed.bin.parent)


def test_the_four_commands_in_an_empty_folder(installed: Installed) -> None:
    assert not list(installed.folder.iterdir())
    callbacks = f"--trainer.callbacks={json.dumps([REPORT])}"
    told = installed.run("sliders", "train", *QUICK, callbacks)
    slider = installed.folder / "runs/smile/smile.safetensors"
    assert slider.is_file()
    assert "expression = happy" in told
    assert {file.name for file in slider.parent.iterdir()} >= {"config.yaml", "strip.png", "metrics.json"}
    installed.run("sliders", "generate", "a person", "--slider", "runs/smile/smile.safetensors", "--sampling.steps=4")
    assert (installed.folder / "grid.png").is_file()
    installed.run("sliders", "explain", "runs/smile/smile.safetensors", "--words=20")
    page = (installed.folder / "runs/explain/explain.html").read_text()
    assert "compared with" in page
    assert not list((installed.folder.parent / "venv").rglob("share/runs")), "nothing is written into the package"
    assert {file.name for file in installed.folder.iterdir()} <= {"runs", "grid.png"}


def test_the_page_in_an_empty_folder(installed: Installed) -> None:
    """It opens with the sliders that are shipped."""
    log = installed.folder / "page.log"
    with log.open("w") as out:
        command = [str(installed.bin / "sliders"), "demo"]
        server = subprocess.Popen(command, cwd=installed.folder, env=installed.environment, stdout=out, stderr=out)
    try:
        began, said = time.monotonic(), ""
        while "page    " not in said:
            assert server.poll() is None, said
            assert time.monotonic() - began < 180, said
            time.sleep(0.2)
            said = log.read_text()
        url = said.partition("page    ")[2].split()[0]
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert "Concept sliders" in answer.read().decode()
        shown = said.partition("sliders ")[2].splitlines()[0]
        assert {"smile", "beard", "glasses"} <= set(shown.split(", "))
    finally:
        server.terminate()
        server.wait(timeout=30)
