"""A fetched file is whole and right, or the cache holds nothing; a loopback server misbehaves."""

import hashlib
import io
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from jaxrec.data import load, sources
from jaxrec.data.download import fetch
from jaxrec.files import cache_folder
from jaxrec.types import DataError

BODY = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    served = 0

    def do_GET(self):
        type(self).served += 1
        match self.path.removeprefix("/").removesuffix("/file.zip"):
            case "good":
                self.reply(BODY)
            case "unsized":
                self.reply(BODY, sized=False)
            case "wrong":
                self.reply(BODY[::-1])
            case "cut":
                self.reply(BODY[:100_000], length=len(BODY))
            case "chunked-cut":
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"3e8\r\n" + BODY[:500])
            case "page":
                self.reply(b"\n<!DOCTYPE html><html>Please log in</html>")
            case "empty":
                self.reply(b"")
            case _:
                self.send_error(404)

    def reply(self, body, *, length=None, sized=True):
        self.send_response(200)
        if sized:
            self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


@pytest.fixture
def server(monkeypatch):
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    Handler.served = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        Thread(target=running.serve_forever, args=[0.02], daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize("kind", ["good", "unsized"])
@pytest.mark.parametrize("progress", [True, False])
def test_a_file_is_fetched_once(server, kind, progress):
    for _ in range(2):
        path = fetch(f"{server}/{kind}/file.zip", SHA256, progress=progress)
        assert path.read_bytes() == BODY
    assert Handler.served == 1
    assert list(cache_folder().iterdir()) == [path]


@pytest.mark.parametrize(
    "kind, problem",
    [
        ("wrong", "sha256"),
        ("cut", "cut after 100,000 of 256,000 bytes"),
        ("chunked-cut", "connection was cut"),
        ("page", "a web page instead of the file"),
        ("empty", "sha256"),
        ("absent", "answered 404"),
    ],
)
def test_a_bad_answer_is_named_and_leaves_nothing(server, kind, problem):
    with pytest.raises(DataError, match=problem) as error:
        fetch(f"{server}/{kind}/file.zip", SHA256, progress=False)
    assert f"put it at {cache_folder() / 'file.zip'}" in str(error.value)
    assert list(cache_folder().iterdir()) == []


def test_no_network_says_where_to_put_the_file():
    with pytest.raises(DataError, match="no connection") as error:
        fetch("http://127.0.0.1:9/file.zip", SHA256, progress=False)
    assert f"put it at {cache_folder() / 'file.zip'}" in str(error.value)


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path, monkeypatch, server):
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "taken" / "cache"))
    with pytest.raises(DataError, match="could not fetch"):
        fetch(f"{server}/good/file.zip", SHA256, progress=False)


def test_a_file_put_by_hand_is_checked(server):
    cache_folder().mkdir()
    (cache_folder() / "file.zip").write_bytes(BODY)
    assert fetch(f"{server}/good/file.zip", SHA256).read_bytes() == BODY
    (cache_folder() / "file.zip").write_bytes(b"other")
    with pytest.raises(DataError, match="Remove it"):
        fetch(f"{server}/good/file.zip", SHA256)
    assert Handler.served == 0


def test_a_built_in_name_is_fetched_and_read(monkeypatch, tmp_path, server):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("ml-1m/ratings.dat", "1::5::3::100\n2::5::4::200\n")
        file.writestr("ml-1m/movies.dat", "5::Heat (1995)::Crime\n")
    body = archive.getvalue()
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.reply(body))
    monkeypatch.setitem(
        sources.BUILT_IN, "ml-1m", (f"{server}/ml-1m.zip", hashlib.sha256(body).hexdigest())
    )
    monkeypatch.delenv("JAXREC_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    data = load("ml-1m", progress=False)
    assert data.name == "ml-1m"
    assert data.items["title"].tolist() == ["Heat (1995)"]
