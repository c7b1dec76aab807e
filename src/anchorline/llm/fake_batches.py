"""The fake server's files and batches, kept in memory. A batch has ended when it has been looked at `POLLS` times.

>>> FakeBatches(lambda body: (200, {})).route("GET", "/v1/batches", {}, b"")
b'{"object": "list", "data": [], "has_more": false}'
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from typing import Any

POLLS = 2
EXPIRED = {"code": "batch_expired", "message": "the completion window expired before this request's turn"}
ONE = re.compile(r"/v1/(files|batches)/([\w-]+)(/content)?")


class FakeBatches:
    """`answer` gives status and body for the body of one line. With more lines than `lines` a batch expires after them."""

    def __init__(self, answer: Callable[[dict[str, Any]], tuple[int, Any]], *, lines: int | None = None) -> None:
        self._answer, self._lines = answer, lines
        self._files: dict[str, bytes] = {}
        self._batches: dict[str, dict[str, Any]] = {}
        self._looks: dict[str, int] = {}

    def route(self, method: str, path: str, headers: dict[str, str], content: bytes) -> bytes | None:
        """The JSON or file that is at a path, or None."""
        found: Any = None
        match = ONE.fullmatch(path) if method == "GET" else None
        if (method, path) == ("POST", "/v1/files"):
            found = self._upload(headers, content)
        elif (method, path) == ("POST", "/v1/batches"):
            found = self._create(json.loads(content))
        elif (method, path) == ("GET", "/v1/batches"):
            found = {"object": "list", "data": list(reversed(self._batches.values())), "has_more": False}
        elif match and match[1] == "batches" and match[2] in self._batches:
            found = self._look(match[2])
        elif match and match[1] == "files" and match[3]:
            return self._files.get(match[2])
        return None if found is None else json.dumps(found).encode()

    def _upload(self, headers: dict[str, str], content: bytes) -> dict[str, Any]:
        mark = b"--" + headers["content-type"].partition("boundary=")[2].strip('"').encode()
        parts = [part.partition(b"\r\n\r\n") for part in content.split(mark)]
        data = next(body for head, _, body in parts if b'name="file"' in head).removesuffix(b"\r\n")
        name = f"file-{uuid.uuid4().hex}"
        self._files[name] = data
        return {"id": name, "object": "file", "bytes": len(data), "purpose": "batch", "filename": "requests.jsonl"}

    def _create(self, body: dict[str, Any]) -> dict[str, Any] | None:
        if body["input_file_id"] not in self._files:
            return None
        name = f"batch_{uuid.uuid4().hex}"
        self._batches[name] = {
            "id": name,
            "object": "batch",
            "endpoint": body["endpoint"],
            "input_file_id": body["input_file_id"],
            "completion_window": body["completion_window"],
            "status": "in_progress",
            "created_at": 0,
        }
        return self._batches[name]

    def _look(self, name: str) -> dict[str, Any]:
        batch = self._batches[name]
        self._looks[name] = self._looks.get(name, 0) + 1
        if self._looks[name] < POLLS or batch["status"] != "in_progress":
            return batch
        fine, failed, ended = [], [], "completed"
        for n, line in enumerate(self._files[batch["input_file_id"]].splitlines()):
            row = json.loads(line)
            result = {"id": "fake", "custom_id": row["custom_id"], "response": None, "error": None}
            if n == self._lines:
                ended = "expired"
            if ended == "expired":
                failed.append(json.dumps(result | {"error": EXPIRED}))
                continue
            status, body = self._answer(row["body"])
            result |= {"response": {"status_code": status, "request_id": "fake", "body": body}}
            (fine if status == 200 else failed).append(json.dumps(result))
        # results come in any order
        self._files[f"{name}-out"] = "\n".join(reversed(fine)).encode()
        self._files[f"{name}-err"] = "\n".join(failed).encode()
        batch.update(status=ended, output_file_id=f"{name}-out" if fine else None)
        batch.update(error_file_id=f"{name}-err" if failed else None)
        return batch
