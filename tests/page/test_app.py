"""The page as programs see it: every named endpoint through `gradio_client`, on tiny models, and what is refused."""

import base64
import io
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("gradio")
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from sliders import formats
from sliders.algebra.slider import Interpolated
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.concept import Measure
from sliders.errors import SliderError
from sliders.evaluation.pictures.judge import AttributeJudge
from sliders.formats import diffusers
from sliders.formats import edit as edit_file
from sliders.page.app import launch
from sliders.page.library import Library
from sliders.page.safety import OutputFolder
from sliders.page.session import Session
from tests.page.conftest import HAPPY, MOOD, UNHAPPY, described, edited

QUICK: dict[str, Any] = {"steps": 2}


@dataclass
class Served:
    """A page that is being served."""

    url: str
    session: Session
    folder: Path


@pytest.fixture(scope="module")
def served(
    painter: UNetBackbone, speaker: CausalLMBackbone, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """The page on tiny models."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "prompts.txt").write_text("a person\na dog with a hat\n")
    torch.manual_seed(0)
    AttributeJudge({"mood": ["sad", "happy"], "hat": ["no", "yes"]}, width=8).save(folder / "judge.safetensors")
    concept = replace(HAPPY, measure=Measure("mood", folder / "prompts.txt", "happy"))
    images = [described(concept, painter, "xattn"), described(concept, painter, "selfattn", "other")]
    texts = [described(MOOD, speaker, "attention"), described(MOOD, speaker, "mlp", "tone")]
    session = Session(
        painter,
        speaker,
        Library(images),
        Library(texts, "text"),
        OutputFolder(folder / "outputs"),
        folder / "judge.safetensors",
        2**20,
    )
    found: list[str] = []
    page = launch(session, ready=found.append, block=False)
    yield Served(found[0], session, folder)
    page.close(verbose=False)


@pytest.fixture
def client(served: Served, tmp_path: Path) -> Client:
    return Client(served.url, verbose=False, download_files=str(tmp_path))


def image(uri: str) -> np.ndarray:
    """The pixels in a link."""
    assert uri.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


@pytest.mark.usefixtures("few_prompts")
def test_every_named_endpoint_answers(served: Served, client: Client, tmp_path: Path) -> None:
    """All that there are, so that one that is added is asked here too."""
    theirs = tmp_path / "theirs.safetensors"
    diffusers.save(described(HAPPY, served.session.backbone, "xattn", "theirs"), theirs)
    both = ["happy", "other"]
    asked: dict[str, Any] = {}

    def ask(endpoint: str, /, **arguments: Any) -> Any:
        asked[endpoint] = client.predict(**arguments, api_name=f"/{endpoint}")
        return asked[endpoint]

    assert [one["key"] for one in ask("sliders")["images"]] == both
    drawn = ask("draw", dials={"happy": 1.5}, prompt="a person", **QUICK)
    still: Any = client.predict(dials={"happy": 0}, prompt="a person", **QUICK, api_name="/draw")
    assert (image(drawn["base"]) != image(drawn["turned"])).any()
    assert still["base"] == still["turned"] == drawn["base"]
    columns = ask("grid", dials={}, prompt="a person", across="happy", down="other", count=3, **QUICK)
    assert [len(column) for column in columns] == [3, 3, 3]
    key = ask("upload", file=handle_file(theirs))
    again: Any = client.predict(dials={key: 1.5}, prompt="a person", **QUICK, api_name="/draw")
    assert abs(image(again["turned"]).astype(int) - image(drawn["turned"])).max() <= 1
    assert ask("hinge", left="happy", right="other") == "happy|other"
    assert diffusers.load(Path(ask("composition", positions={"happy": 1.0, "happy|other": 1.0}))).update
    assert diffusers.load(Path(ask("download", name="other"))).name == "other"
    said = client.submit(dials={"mood": 2.0}, message="how was your day", tokens=8, api_name="/write")
    answers: list[Any] = list(said)
    asked["write"] = answers[-1]
    assert len(answers) > 1
    assert answers[-1]["base"].startswith(answers[0]["base"])
    assert "Predicted interference" in ask("relations", keys=both)
    assert "Measured interference" in ask("measure", keys=both, prompt="a person", scenes=1, **QUICK)
    assert "Measured interference" in client.predict(
        keys=["mood", "tone"], prompt="how was your day", scenes=1, api_name="/measure"
    )
    assert "Dose and response: happy" in ask("dose", keys=["happy"], scenes=1, **QUICK)
    explained = ask("explain", key=key)
    assert f"What {key} changes" in explained
    assert "The nearest is &#x27;happy&#x27;, with cosine +1.000" in explained  # which it is a copy of
    compared = ask("compare", key="happy", prompt="a person", steps=5)
    assert len(compared["parts"]) == len(compared["lost_without_part"]) > 1
    assert compared["steps"] == [[k, k + 1] for k in range(5)]
    assert ask("stop") is True
    there: Any = client.view_api(return_format="dict")
    named = {name.strip("/") for name in there["named_endpoints"]}
    assert named == set(asked)


def test_an_edit_goes_in_and_out(served: Served, client: Client, tmp_path: Path, painter: UNetBackbone) -> None:
    made = edited(UNHAPPY, painter, "unhappy")
    edit_file.save("unhappy", made.edit, tmp_path / "unhappy.safetensors", dict(made.metadata))
    key: Any = client.predict(handle_file(tmp_path / "unhappy.safetensors"), api_name="/upload")
    drawn: Any = client.predict(dials={key: 1.0}, prompt="a happy person", **QUICK, api_name="/draw")
    assert drawn["base"] != drawn["turned"]
    assert "Edits multiply weights" in client.predict(keys=["happy", key], api_name="/relations")
    assert isinstance(formats.load_dial(Path(client.predict(key, api_name="/download"))), Interpolated)


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("draw", {"dials": {"nobody": 1}, "prompt": "x"}, "no slider"),
        ("draw", {"dials": {"happy": 1}, "prompt": "x" * 999}, "at most 300"),
        ("draw", {"dials": {"happy": "1"}, "prompt": "x"}, "not a number"),
        ("draw", {"dials": {"happy": 1}, "prompt": "x", "steps": 999}, "steps is 999"),
        ("download", {"name": "../../../etc/passwd"}, "no slider"),
        ("composition", {"positions": {"happy": 0}}, "nothing to download"),
        ("write", {"dials": {}, "message": ""}, "empty"),
    ],
)
def test_errors_are_messages(client: Client, name: str, arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(AppError, match=why):
        client.predict(**arguments, api_name=f"/{name}")


def test_only_safetensors_are_taken(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save({"a": torch.ones(1)}, file)
    with pytest.raises(AppError, match="can run programs"):
        client.predict(handle_file(file), api_name="/upload")
    renamed = shutil.copy(file, tmp_path / "model.safetensors")
    with pytest.raises(AppError, match="cannot be read"):
        client.predict(handle_file(renamed), api_name="/upload")


def test_a_path_of_the_server_is_no_upload(served: Served, client: Client) -> None:
    theirs = {"path": str(served.folder / "judge.safetensors"), "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(AppError):
        client.predict(theirs, api_name="/upload")


def status(url: str) -> int:
    """How the server answers."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_no_file_can_be_read_but_those_of_the_run(served: Served, client: Client) -> None:
    mine = client.predict("other", api_name="/download")
    assert mine  # control: what was made for a user is served
    readme = Path("README.md").resolve()
    secret = served.folder / "prompts.txt"
    for path in ("/etc/passwd", readme, secret, f"{served.session.outputs.folder}/../prompts.txt"):
        assert status(f"{served.url}gradio_api/file={path}") in (403, 404), path
    assert status(f"{served.url}gradio_api/file=http://127.0.0.1:1/") == 403
    assert status(served.url) == 200


def test_clients_at_the_same_time_see_their_own_dials(served: Served) -> None:
    def use(dial: float) -> set[str]:
        own = Client(served.url, verbose=False)
        return {
            own.predict(dials={"happy": dial}, prompt="a person", **QUICK, api_name="/draw")["turned"] for _ in range(3)
        }

    with ThreadPoolExecutor(3) as pool:
        seen = list(pool.map(use, [-1.5, 0.0, 1.5]))
    assert [len(pictures) for pictures in seen] == [1, 1, 1]
    assert len(set().union(*seen)) == 3


def test_with_auth_nobody_gets_in_without_it(served: Served) -> None:
    found: list[str] = []
    page = launch(served.session, auth="me:secret", ready=found.append, block=False)
    try:
        assert status(f"{found[0]}config") == 401
        with pytest.raises((ValueError, AppError), match=r"(?i)cred|login|auth"):
            Client(found[0], verbose=False)
        inside = Client(found[0], auth=("me", "secret"), verbose=False)
        assert inside.predict(api_name="/sliders")["images"]
    finally:
        page.close(verbose=False)


@pytest.mark.parametrize(("flags", "why"), [({"auth": "me"}, "USER:PASSWORD"), ({"queue": 0}, "--queue")])
def test_flags_without_meaning_are_refused(served: Served, flags: dict[str, Any], why: str) -> None:
    with pytest.raises(SliderError, match=why):
        launch(served.session, block=False, **flags)


def test_a_taken_port_is_named(served: Served) -> None:
    port = int(served.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(SliderError, match=rf"cannot listen on 127.0.0.1:{port}"):
        launch(served.session, port=port, block=False)


def test_the_page_asks_nobody_else_for_anything(served: Served) -> None:
    """Neither fonts nor scripts; the tags that only describe the page to others' crawlers are no requests."""
    with urllib.request.urlopen(served.url, timeout=60) as answer:
        text = answer.read().decode()
    config = json.loads(text.partition("window.gradio_config = ")[2].partition(";</script>")[0])
    assert config["analytics_enabled"] is False
    assert not config.get("stylesheets")
