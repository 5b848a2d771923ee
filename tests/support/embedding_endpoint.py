"""A real HTTP server on loopback that speaks OpenAI's embeddings API, and misbehaves on request."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from agentdb_embedders import HashingEmbedder


@dataclass
class Misbehaviour:
    """What the next request gets instead of an answer."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    delay_s: float = 0.0
    hangs_up: bool = False


class EmbeddingEndpoint:
    """Answers with hashed vectors; `next` holds what the coming requests get instead, `requests` what came."""

    def __init__(self, dimension: int = 64) -> None:
        self.model = HashingEmbedder(dimension)
        self.next: deque[Misbehaviour] = deque()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append(request)
                endpoint.headers.append(dict(self.headers))
                if endpoint.next:
                    bad = endpoint.next.popleft()
                    time.sleep(bad.delay_s)
                    if bad.hangs_up:
                        self.close_connection = True
                        return
                    self._answer(bad.status, bad.body, bad.headers)
                elif self.path != "/v1/embeddings":
                    self._answer(404, b"{}", {})
                elif "" in request["input"]:  # as OpenAI does
                    self._answer(400, b"{}", {})
                else:
                    rows = endpoint.model.embed(request["input"]).tolist()
                    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
                    # The order of the answer is not promised, so it is not given.
                    self._answer(200, json.dumps({"object": "list", "data": data[::-1]}).encode(), {})

            def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    self.close_connection = True  # the client gave up, as some tests want it to

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
