"""Files of a package index, over HTTPS, where there is no pip to ask: the simple API of PyPI (PEP 503 and 691)."""

import base64
import configparser
import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit

from sliders.errors import SliderError
from sliders.files import replacing

PYPI = "https://pypi.org/simple"
_JSON = "application/vnd.pypi.simple.v1+json"
_SECONDS = 60


class _Links(HTMLParser):
    """What the anchors of a page lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for key, value in attrs if tag == "a" and key == "href" and value]


def index_url() -> str:
    """The index that the environment, or pip's configuration, names; else PyPI."""
    for variable in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        if url := os.environ.get(variable):
            return url
    for file in _pip_files():
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue  # what is wrong with it is for pip to say
        for section in ("download", "global"):
            if url := parser.get(section, "index-url", fallback=""):
                return url
    return PYPI


def _pip_files() -> Iterator[Path]:
    """Where pip looks for its configuration, the most particular first."""
    if given := os.environ.get("PIP_CONFIG_FILE"):
        yield Path(given)
    name, home = "pip.ini" if os.name == "nt" else "pip.conf", Path.home()
    config = os.environ.get("APPDATA" if os.name == "nt" else "XDG_CONFIG_HOME") or home / ".config"
    mac = home / "Library" / "Application Support" / "pip"
    folders = (sys.prefix, Path(config) / "pip", mac, home / ".pip", home / "pip", "/etc/xdg/pip", "/etc")
    yield from (Path(folder) / name for folder in folders)


def _open(url: str, accept: str = "*/*"):
    """A response; a user and a password in the address are sent as such."""
    parts = urlsplit(url)
    headers = {"Accept": accept, "User-Agent": "concept-sliders"}
    if parts.username is not None:
        who = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(who.encode()).decode()}"
        url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_SECONDS)


def _links(page: str) -> list[str]:
    """The addresses of all files of a project."""
    with _open(page, f"{_JSON}, text/html;q=0.1") as answer:
        content, kind, where = answer.read(), answer.headers.get_content_type(), answer.url
    if "json" in kind:
        found = [file["url"] for file in json.loads(content)["files"]]
    else:
        parser = _Links()
        parser.feed(content.decode("utf-8", "replace"))
        found = parser.found
    return [_as_user_of(page, urldefrag(urljoin(where, url)).url) for url in found]


def _as_user_of(page: str, link: str) -> str:
    """A link with the user and the password of the page that it stands on, where both are of one host."""
    user, at, host = urlsplit(page).netloc.rpartition("@")
    parts = urlsplit(link)
    return urlunsplit(parts._replace(netloc=user + at + host)) if at and parts.netloc == host else link


def download(requirement: str, folder: Path) -> Path:
    """Put the wheel of a pinned requirement, ``name==version``, into a folder; its content is for the caller to check.

    Raises:
        SliderError: the index cannot be reached, or does not have it.
    """
    name, _, version = requirement.partition("==")
    index = index_url().rstrip("/")
    host = urlsplit(index).hostname
    begins = f"{name.replace('-', '_')}-{version}-"
    try:
        links = _links(f"{index}/{name}/")
        wheels = [link for link in links if (file := _file(link)).startswith(begins) and file.endswith(".whl")]
        if not wheels:
            raise SliderError(f"the package index at {host} has no wheel of {requirement}")
        with _open(wheels[0]) as answer, replacing(folder / _file(wheels[0])) as new, new.open("wb") as file:
            shutil.copyfileobj(answer, file)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SliderError(f"no answer from the package index at {host}: {error}") from error
    return folder / _file(wheels[0])


def _file(link: str) -> str:
    """The name of the file at an address."""
    return unquote(urlsplit(link).path).rpartition("/")[2]
