"""A conversation through a chat template, and what becomes of one that the template refuses."""

from __future__ import annotations

import asyncio

import pytest
from test_llm_generate import loaded
from test_train_toys import TEMPLATE, pair, template, tiny, tokenizer

from anchorline.errors import ModelError, RequestRefused
from anchorline.llm.chat import chat_text
from anchorline.llm.hf_local import message_tokens
from anchorline.llm.local_endpoint import LocalEndpoint
from anchorline.llm.settings import EndpointSettings
from anchorline.llm.types import Request
from anchorline.train.tokenise import encode, tokenise
from anchorline.types import Message

REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
ALTERNATES = "{% for m in messages[1:] %}{{ raise_exception('roles\nalternate') }}{% endfor %}" + TEMPLATE
SYSTEM, ASKED = Message("system", "w1 w2"), Message("user", "w3")
MERGED = Message("user", "w1 w2\n\nw3")


def test_a_template_that_takes_a_system_message_gets_it() -> None:
    assert chat_text(tokenizer(), (SYSTEM, ASKED), to_answer=False) == "<system> w1 w2 <end> <user> w3 <end> "


def test_one_that_takes_none_has_it_in_the_first_user_turn_in_sampling_and_training() -> None:
    refusing = tokenizer(REFUSES)
    more = (Message("assistant", "w4"), Message("user", "w5"))
    for rest in ((), more):
        with_system, merged = (SYSTEM, ASKED, *rest), (MERGED, *rest)
        for to_answer in (True, False):
            text = chat_text(refusing, with_system, to_answer=to_answer)
            assert text == chat_text(tokenizer(), merged, to_answer=to_answer)
        assert encode(with_system, "w7", template(REFUSES)) == encode(merged, "w7", template())
    model = loaded(tiny())
    model.tokenizer.chat_template = REFUSES
    assert message_tokens(model, (SYSTEM, ASKED)) == list(encode((MERGED,), "w7", template())[0])


@pytest.mark.parametrize("messages", [(SYSTEM, ASKED, Message("assistant", "w4"), ASKED), (ASKED, ASKED)])
def test_a_conversation_that_it_refuses_all_the_same_is_one_line(messages: tuple[Message, ...]) -> None:
    with pytest.raises(ModelError, match=r"refuses a conversation with the turns .*user \(roles alternate\)"):
        chat_text(tokenizer(ALTERNATES), messages, to_answer=True)


def test_it_is_a_row_that_fails(tmp_path) -> None:
    made = tokenise([pair(1)], template(ALTERNATES), max_tokens=99, overlong="drop")
    assert [failure.kind for failure in made.failures] == ["boundary"]
    assert "refuses a conversation with the turns user, assistant" in made.failures[0].reason
    model = loaded(tiny())
    model.tokenizer.chat_template = ALTERNATES
    (tmp_path / "config.json").write_text("{}")

    async def main() -> None:
        settings = EndpointSettings(model=str(tmp_path), engine="transformers")
        async with LocalEndpoint(settings, loader=lambda _: model) as endpoint:
            await endpoint.complete(Request((ASKED, ASKED), max_tokens=3))

    with pytest.raises(RequestRefused, match="refuses a conversation"):
        asyncio.run(main())
