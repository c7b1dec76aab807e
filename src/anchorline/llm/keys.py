"""What identifies a request, and how a request is written down: JSON with sorted names.

The key covers all that changes the answer: model, messages, temperature, top_p, schema, extra_body and sample index. It
leaves out max_tokens (see `cache`), the URL, the row and the stage.

>>> from dataclasses import replace
>>> hello = Request((Message("user", "Hi"),), max_tokens=8)
>>> request_key("m", hello) == request_key("m", replace(hello, max_tokens=9, row="r1", stage="judge"))
True
>>> request_key("m", hello) == request_key("m", replace(hello, index=1))
False
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from anchorline.llm.types import Request
from anchorline.types import Message, Messages

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical(value: Any) -> str:
    """JSON in ASCII with sorted names and no spaces: equal values give equal texts."""
    return _ENCODER.encode(value)


def messages_json(messages: Messages) -> str:
    """The conversation as JSON: a list of role and text."""
    return canonical([[m.role, m.content] for m in messages])


def read_messages(text: str) -> Messages:
    """The conversation back from `messages_json`."""
    return tuple(Message(role, content) for role, content in json.loads(text))


def settings_json(request: Request, extra_body: Mapping[str, Any] | None = None) -> str:
    """What besides model and messages changes the answer."""
    return canonical(
        {
            # 0 and 0.0 are the same temperature
            "temperature": float(request.temperature),
            "top_p": float(request.top_p),
            "schema": request.schema,
            "extra_body": dict(extra_body or {}),
            "index": request.index,
        }
    )


def request_key(model: str, request: Request, extra_body: Mapping[str, Any] | None = None) -> str:
    """64 hex digits that stand for the request."""
    text = f"{canonical(model)}\n{messages_json(request.messages)}\n{settings_json(request, extra_body)}"
    return hashlib.sha256(text.encode()).hexdigest()
