"""Rows as they stand in files, to and from the types that the parts share. Pure: no file is touched here.

A row is a dict of JSON values. A row that cannot be used raises DataError with its field; `load` adds file and line.

>>> row = {"prompt": "Where is order 4417?", "chosen": "It left today.", "rejected": "It left today!"}
>>> pair = pair_from_row(row)
>>> pair.prompt
(Message(role='user', content='Where is order 4417?'),)
>>> pair_to_row(pair)["chosen"]
[{'role': 'assistant', 'content': 'It left today.'}]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from anchorline.data.jsonl import parse_json
from anchorline.errors import DataError
from anchorline.types import (
    OBJECTIVE_NAMES,
    ROLES,
    Answer,
    Failure,
    Message,
    Messages,
    Pair,
    Prompt,
    Provenance,
    Unpaired,
    prompt_id,
)

Row = dict[str, Any]
Layout = Literal["conversational", "plain"]
ORIGINS = ("maker", "policy", "reviser")


def prompt_from_row(row: Mapping[str, Any], *, system: str | None = None) -> Prompt:
    """Column `prompt` (text or messages) or `messages`. `system` is put before a prompt that has no system message."""
    field = "messages" if row.get("prompt") is None and row.get("messages") is not None else "prompt"
    messages = _conversation(_required(row, field, instead="messages"), field)
    if system is not None and messages[0].role != "system":
        messages = (Message("system", system), *messages)
    return Prompt(_id(row, messages), messages, _text(row, "group"))


def pair_from_row(row: Mapping[str, Any]) -> Pair:
    """TRL's conversational or plain `prompt, chosen, rejected`; conversations may repeat or replace the prompt.

    A column `objective` names what this pair is trained with. Columns that say where the pair comes from are another tool's
    where they hold something else than ours, and are left out as all further columns are.
    """
    prompt, chosen = _response(row, "chosen")
    other, rejected = _response(row, "rejected")
    if prompt != other:
        raise DataError("its conversation before the answer is not that of chosen", field="rejected")
    if chosen == rejected:
        raise DataError("chosen and rejected are identical, so there is nothing to prefer", field="chosen")
    objective = row.get("objective")
    if objective is not None and objective not in OBJECTIVE_NAMES:
        known = ", ".join(OBJECTIVE_NAMES)
        raise DataError(
            f"is {_show(objective)}, expected one of {known}, or none: what this pair is trained with; if the column means "
            "something else, rename it or leave it out",
            field="objective",
        )
    return Pair(_id(row, prompt), prompt, chosen, rejected, _provenance(row), objective)


def unpaired_from_row(row: Mapping[str, Any]) -> Unpaired:
    """KTO's `prompt, completion, label`."""
    prompt, completion = _response(row, "completion")
    label = _required(row, "label")
    if not isinstance(label, int) or label not in (0, 1):
        raise DataError(f"is {_show(label)}, expected true or false (or 1 or 0)", field="label")
    return Unpaired(_id(row, prompt), prompt, completion, bool(label))


def answer_from_row(row: Mapping[str, Any], *, finish: str | None = None) -> Answer:
    """A row of a run folder's `answers.jsonl`. The text may be empty: a policy can answer nothing.

    `finish` stands for a `finish` that is missing or null.
    """
    prompt = _conversation(_required(row, "prompt"), "prompt")
    text = _required_text(row, "text")
    finish = finish if finish and row.get("finish") is None else _required(row, "finish")
    if finish not in ("stop", "length"):
        raise DataError(f"is {_show(finish)}, expected 'stop' or 'length'", field="finish")
    return Answer(_id(row, prompt), prompt, text, finish)


def failure_from_row(row: Mapping[str, Any]) -> Failure:
    """A row of a run folder's `failures.jsonl`."""
    names = ("id", "stage", "kind", "reason")
    return Failure(*(_required_text(row, name) for name in names), details=_details(row))


def prompt_to_row(prompt: Prompt) -> Row:
    """Id and messages, and the group where there is one."""
    row = {"id": prompt.id, "prompt": messages_to_rows(prompt.messages)}
    return row | {"group": prompt.group} if prompt.group else row


def pair_to_row(pair: Pair, *, layout: Layout = "conversational") -> Row:
    """The same columns for every pair, and `objective` where it has its own. `plain` holds prompts of one user turn only."""
    if layout == "plain":
        if [m.role for m in pair.prompt] != ["user"]:
            raise DataError(f"pair {pair.id} has more than one user turn: the plain layout cannot hold it")
        texts: Row = {"prompt": pair.prompt[0].content, "chosen": pair.chosen, "rejected": pair.rejected}
    else:
        texts = {
            "prompt": messages_to_rows(pair.prompt),
            "chosen": _assistant_turn(pair.chosen),
            "rejected": _assistant_turn(pair.rejected),
        }
    origin = pair.provenance
    details = {"policy": origin.policy, "reviser": origin.reviser, "details": dict(origin.details)}
    own = {"objective": pair.objective} if pair.objective else {}
    return {"id": pair.id, **texts, "maker": origin.maker, **details, **own}


def unpaired_to_row(unpaired: Unpaired) -> Row:
    """TRL's conversational layout for single labelled answers."""
    prompt, completion = messages_to_rows(unpaired.prompt), _assistant_turn(unpaired.completion)
    return {"id": unpaired.id, "prompt": prompt, "completion": completion, "label": unpaired.label}


def answer_to_row(answer: Answer) -> Row:
    """Id, prompt, text and how the answer ended."""
    prompt = messages_to_rows(answer.prompt)
    return {"id": answer.id, "prompt": prompt, "text": answer.text, "finish": answer.finish}


def failure_to_row(failure: Failure) -> Row:
    """Id, stage, kind, reason and what else is known."""
    texts = {"id": failure.id, "stage": failure.stage, "kind": failure.kind, "reason": failure.reason}
    return {**texts, "details": dict(failure.details)}


def messages_to_rows(messages: Messages) -> list[Row]:
    """The turns as `{"role", "content"}` objects."""
    return [{"role": m.role, "content": m.content} for m in messages]


def _conversation(value: Any, field: str) -> Messages:
    """A prompt: one text is one user turn; messages must end with the user's."""
    messages = _messages(value, field)
    if messages[-1].role != "user":
        raise DataError(f"ends with a turn of role {messages[-1].role}, expected the user's turn last", field=field)
    return messages


def _messages(value: Any, field: str) -> Messages:
    if isinstance(value, str):
        return (Message("user", _not_blank(value, field)),)
    if not isinstance(value, Sequence):
        raise DataError(f"is {_show(value)}, expected text or a list of messages", field=field)
    if not value:
        raise DataError("is an empty list, expected at least one message", field=field)
    return tuple(_message(turn, f"{field}[{n}]", first=n == 0) for n, turn in enumerate(value))


def _message(turn: Any, field: str, *, first: bool) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"is {_show(turn)}, expected an object with role and content", field=field)
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        raise DataError(f"is {_show(role)}, expected one of {', '.join(ROLES)}", field=f"{field}.role")
    if role == "system" and not first:
        raise DataError("is a system message, which may only come first", field=field)
    return Message(role, _not_blank(content, f"{field}.content"))


def _response(row: Mapping[str, Any], field: str) -> tuple[Messages, str]:
    """The prompt and the one assistant turn of a column that holds a text, that turn, or the whole conversation."""
    value = _required(row, field)
    given = None if row.get("prompt") is None else _conversation(row["prompt"], "prompt")
    if isinstance(value, str):
        text = _not_blank(value, field)
        return given or _no_prompt(field), text
    messages = _messages(value, field)
    *before, last = messages
    if last.role != "assistant":
        raise DataError(f"ends with a turn of role {last.role}, expected the assistant's turn last", field=field)
    if not before:
        return given or _no_prompt(field), last.content
    prompt = _conversation([{"role": m.role, "content": m.content} for m in before], field)
    if given is not None and not _repeats(prompt, given, as_text=isinstance(row["prompt"], str)):
        raise DataError("holds a conversation that does not start with the prompt column's messages", field=field)
    return prompt, last.content


def _repeats(conversation: Messages, prompt: Messages, *, as_text: bool) -> bool:
    """Whether a whole conversation is the prompt column's: the same turns, with or without a system message before.

    A prompt that is one text may stand for a longer conversation, as its first or last user turn.
    """
    turns = conversation[1:] if conversation[0].role == "system" and prompt[0].role != "system" else conversation
    return turns == prompt or (as_text and prompt[0] in (turns[0], turns[-1]))


def _no_prompt(field: str) -> Messages:
    raise DataError(f"is missing, and {field} does not hold the conversation before the answer", field="prompt")


def _required(row: Mapping[str, Any], field: str, *, instead: str | None = None) -> Any:
    value = row.get(field)
    if value is None:
        names = ", ".join(str(name) for name, found in row.items() if found is not None) or "none"
        other = f" (or {instead!r})" if instead else ""
        raise DataError(f"is missing or null; expected a column {field!r}{other}, got {names}", field=field)
    return value


def _required_text(row: Mapping[str, Any], field: str) -> str:
    value = _required(row, field)
    if not isinstance(value, str):
        raise DataError(f"is {_show(value)}, expected text", field=field)
    return value


def _text(row: Mapping[str, Any], field: str) -> str:
    return "" if row.get(field) is None else _required_text(row, field)


def _id(row: Mapping[str, Any], messages: Messages) -> str:
    value = row.get("id")
    if value is None:
        return prompt_id(messages)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"is {_show(value)}, expected text or a whole number", field="id")
    return _not_blank(str(value), "id")


def _provenance(row: Mapping[str, Any]) -> Provenance:
    maker, policy, reviser = (value if isinstance(value := row.get(name), str) else "" for name in ORIGINS)
    try:
        details = _details(row)
    except DataError:
        details = {}
    return Provenance(maker, policy, reviser, details)


def _details(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """An object, or an object as JSON text: a Parquet column cannot hold objects of differing shape."""
    value = row.get("details")
    if isinstance(value, str):
        try:
            value = parse_json(value.encode())
        except ValueError as error:
            raise DataError(f"is text, expected an object ({error})", field="details") from None
    if value is not None and not isinstance(value, Mapping):
        raise DataError(f"is {_show(value)}, expected an object", field="details")
    return dict(value or {})


def _not_blank(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"is {_show(value)}, expected text", field=field)
    if not value.strip():
        raise DataError("is blank, expected text", field=field)
    return value


def _assistant_turn(text: str) -> list[Row]:
    return [{"role": "assistant", "content": text}]


def _show(value: Any) -> str:
    """The value for a message: short, on one line, and with its kind where the value alone does not tell."""
    if value is None:
        return "null"
    if isinstance(value, str | bool | int | float):
        text = repr(value)
        return text if len(text) <= 40 else f"{text[:37]}..."
    return {"dict": "an object", "list": "a list"}.get(type(value).__name__, f"a {type(value).__name__}")
