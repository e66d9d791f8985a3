"""A scripted language model, and a real HTTP server on loopback that misbehaves when told to."""

import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def scripted(system, user, seed):
    """An answer in the format asked for that is a digest of all that was asked."""
    digest = hashlib.sha256(f"{system}\n{user}\n{seed}".encode()).hexdigest()
    if "CHOICE:" in user:
        return f"CHOICE: {'AB'[int(digest, 16) % 2]}\nREASON: because of {digest[:12]}"
    if "RANKING:" in user:
        letters = re.findall(r"^([A-Z]+)\. ", user, re.MULTILINE)
        return "RANKING: " + ", ".join(
            sorted(letters, key=lambda one: hashlib.sha256((digest + one).encode()).digest())
        )
    if "TAGS:" in user:
        return f"TAGS: taste {digest[0]}, taste {digest[1]}, taste {digest[2]}"
    if "NOTES:" in user:
        return f"NOTES: I like {digest} \N{GREEK SMALL LETTER ALPHA}"
    return f"A: one of {digest[:20]}\nB: one of {digest[20:40]}"


class Loopback:
    """`fault(number, body)` names what goes wrong with request `number`, from 0, or is None.

    A function among its values is handed the request's handler and writes what it likes.
    """

    def __init__(self, answer=scripted, fault=lambda number, body: None, port=0):
        self.scripted, self.bodies, self.keys = answer, [], set()
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_POST(handler):
                body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
                with lock:
                    number = len(self.bodies)
                    self.bodies.append(body)
                    self.keys.add(handler.headers["Authorization"])
                what = fault(number, body)
                if what == "cut":
                    handler.connection.shutdown(2)
                    handler.close_connection = True
                    return
                if callable(what):
                    handler.close_connection = True
                    return what(handler)
                if what == "slow":
                    time.sleep(0.5)
                status, headers = 200, {}
                system, user = (message["content"] for message in body["messages"])
                text = answer(system, user, body["seed"])
                content = {
                    "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
                    "choices": [
                        {
                            "index": 0, "finish_reason": "length" if what == "length" else "stop",
                            "message": {"role": "assistant", "content": text},
                        }
                    ],
                    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
                }  # fmt: skip
                if isinstance(what, tuple):
                    status, headers = what
                    content = {"error": {"message": f"no: {handler.headers['Authorization']}"}}
                payload = json.dumps(content).encode()
                if what == "malformed":
                    payload = payload[:-20]
                if what == "other":
                    payload = b'{"fine": true}'
                if what == "page":
                    headers, payload = {"Content-Type": "text/html"}, b"<html>hello</html>"
                handler.send_response(status)
                for name, value in ({"Content-Type": "application/json"} | headers).items():
                    handler.send_header(name, value)
                handler.send_header("Content-Length", str(len(payload)))
                handler.end_headers()
                handler.wfile.write(payload)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *args):  # a client that gave up waiting
                pass

        self.server = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        serve = self.server.serve_forever  # looks every 0.01 s whether it shall end
        threading.Thread(target=serve, args=(0.01,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
