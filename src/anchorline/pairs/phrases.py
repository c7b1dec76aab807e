"""Texts that speak of themselves: refusals to edit, and answers that allude to being an edit.

What the original or the conversation says too is no sign: an answer about a student's solution may mention it.

>>> is_refusal("I'm sorry, but I can't help with that.", "It left today.")
True
>>> self_reference("In this revised answer, the date is right.", "It left today.", "When did it leave?")
'revised answer'
"""

from __future__ import annotations

import re

_QUOTES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "“": '"', "”": '"', "\xa0": " "})

_REFUSES = re.compile(
    r"\b(?:i|we) (?:can't|cannot|can not|won't|will not|am unable to|'m unable to|am not able to|'m not able to|"
    r"must decline to|decline to) (?:help|assist|comply|fulfill|fulfil|revise|edit|rewrite|engage|continue with|"
    r"(?:provide|create|generate|write|produce) (?:a |an |the )?(?:revis|edit|such |this |that |content))"
    r"|\bi(?:'m unable| am unable) to (?:help|assist|comply)|\bas an ai(?: language)? model,? i (?:can't|cannot|am)"
    r"|\bi(?:'m| am) (?:sorry|afraid),? (?:but )?(?:there is|there's|i see) no (?:answer|text|conversation)"
)
_REFUSES_EARLY = 300
"""A refusal says so at once; further down, the words stand in a story or in a list."""

_UNABLE = (
    r"(?:can't|cannot|can not|couldn't|could not|won't|will not|unable|not able|not comfortable|uncomfortable|not willing|"
    r"unwilling|rather not|declin\w*|refus\w*|not allowed|not permitted|don't feel|do not feel)"
)
_CANNOT = re.compile(
    rf"\bi(?:'m|'d| am)?\b[^.!?\n]{{0,60}}?\b{_UNABLE}\b|\A\W{{0,4}}(?:sorry|unfortunately)?\W{{0,2}}{_UNABLE}\b"
    r"|\b(?:my|the|our|content|safety|usage) (?:guidelines|policies)\b"
    r"|\bich\b[^.!?\n]{0,60}?\b(?:nicht|keine|ab)\b|\b(?:ist mir|mir ist)\b[^.!?\n]{0,30}?\bnicht möglich\b"
    r"|\bik\b[^.!?\n]{0,60}?\b(?:niet|geen)\b|\bne (?:peux|puis|pouvons|suis)\b|\bm'est impossible\b|\bje refuse\b"
    r"|\bno (?:puedo|podemos|me es)\b|\bme es imposible\b|\bnão (?:posso|consigo|podemos)\b|\bnon (?:posso|possiamo)\b"
    r"|\bне (?:могу|можем|могла|мог)\b|\bnie (?:mogę|możemy)\b"
    r"|できません|できかね|致しかね|いたしかね|无法|無法|我不能|拒绝|拒絕|수 없습니다|수 없어요|لا أستطيع|لا يمكنني"
)
_EXCUSE = 240
"""A bare excuse is no longer."""
_LONG_WORD = re.compile(r"\w{4,}")
_UNSPACED = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{2}")

_MADE = r"(?:revised|edited|corrected|improved|rewritten|reworked|reworded|polished|enhanced|refined|updated)"
_SPEAKS = re.compile(
    rf"\b{_MADE} (?:answer|response|reply|solution)s?\b"
    r"|\b(?:original|previous|earlier|student's|assistant's|model's) (?:answer|response|reply|solution)s?\b"
    r"|\bthis revision\b|\bin (?:this|the|my) (?:revision|edit|rewrite)\b"
    r"|\b(?:revisions|edits) (?:made|applied)\b|\b(?:aim|bounds) of the edit\b"
    r"|^\W{0,4}(?:changes|edits|revisions|improvements)(?: made| applied)?\W{0,4}:\W{0,4}$",
    re.MULTILINE,
)
_SPEAKS_WEAKLY = re.compile(
    rf"\b(?:the|this|my|a|an|your) {_MADE} (?:version|text|message|draft)\b"
    r"|\b(?:i|i've|i have|we|we've|we have) (?:also )?(?:revised|rewritten|rewrote|edited|reworded|rephrased|polished)\b"
    rf"|\bhere(?:'s| is) (?:the|my|your) {_MADE}\b"
)
"""Said of a text of the user's as often as of the answer: no sign where editing is what was asked for."""
_ANNOUNCES = re.compile(
    r"\A\W{0,4}(?:(?:sure|certainly|of course|okay|ok|absolutely)\b[!,. ]{1,3})?(?:"
    r"(?:here(?:'s| is| are)|below is|this is) (?:the|my|your|an?|one) [^\n:.!?]{0,60}?"
    r"(?:version|edit|rewrite|revision|draft|wording|rephrasing|alternative|attempt|text|answer|response|reply|message)"
    r"\b[^\n:.!?]{0,40}(?::|\n)"
    rf"|(?:{_MADE}|final|reworked|rephrased|fixed|amended|modified|calmer|better|new)(?: (?:version|text"
    rf"|draft))?\W{{0,3}}[:\])])"
)
"""A first line that announces a text instead of being one."""
_SPEAKS_ABROAD = re.compile(
    r"\b(?:überarbeitet|korrigiert|verbessert|bearbeitet|umformuliert)\w{0,3} (?:antwort|fassung|version|text)"
    r"|\b(?:réponse|version|texte) (?:révisé|corrigé|modifié|amélioré|reformulé)"
    r"|\b(?:respuesta|versión|texto|resposta|versão|risposta|versione|testo) "
    r"(?:revisad|corregid|editad|mejorad|modificad|corrigid|melhorad|rivist|corrett|modificat|migliorat)"
    r"|\b(?:herziene?|aangepaste?|verbeterde?|bewerkte?) (?:antwoord|versie|tekst)"
    r"|\b(?:исправлен|отредактирован|переработан|улучшен|пересмотрен)\w{2,4} (?:ответ|верси|текст|вариант)"
    r"|(?:修改|修订|修訂|改写|改寫|编辑|編輯|更正|润色|优化)(?:后|後|过|版)的?(?:的)?(?:回答|答案|回复|回覆|版本|文本|内容)?"
    r"|(?:修正|改訂|編集|改善|書き直し)(?:後|版|した|された)の?(?:回答|答え|返答|文章|バージョン)"
)
_HINTS: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    (_SPEAKS, ("answer", "response", "reply", "solution", "revision", "rewrite", "edit", "changes", "improvements")),
    (_SPEAKS_WEAKLY, (
        "revised", "edited", "corrected", "improved", "rewritten", "rewrote", "reworked", "reworded", "rephrased", "polished",
        "enhanced", "refined", "updated",
    )),
    (_SPEAKS_ABROAD, (
        "antwo", "fassung", "versi", "versão", "text", "tekst", "testo", "réponse", "respuesta", "resposta", "risposta",
        "ответ", "верси", "вариант", "текст", "修", "改", "编", "編", "更正", "润色", "优化", "書き直し",
    )),
)  # fmt: skip
"""One of these is in all that a pattern matches; most texts have none, and the patterns are slow."""
_EDITING = re.compile(r"\b(?:revis|re-?writ|re-?word|re-?phras|paraphras|edit|improv|correct|proofread|polish|draft)")

_NO_ANSWER = re.compile(
    r"\A\W{0,8}(?:n/a|no (?:further |other )?(?:changes?|edits?|revisions?|corrections?)(?: (?:is|are|was|were))? "
    r"(?:needed|necessary|required|made)|nothing (?:needs? to be |to |was |has been )?(?:changed?|"
    r"edit(?:ed)?|revised?|correct(?:ed)?|fix(?:ed)?|do|add)\b"
    r"|no (?:changes?|edits?|revisions?|corrections?|modifications?)\W{0,3}\Z|(?:null|nil|tbd|todo|tba|same|nan)\W{0,3}\Z"
    r"|(?:it|this|that|the text) (?:is|looks|seems) (?:already )?(?:fine|good|correct|perfect|ok|okay) "
    r"(?:already|as (?:it )?(?:is|was))\b"
    r"|(?:it|this) is already (?:fine|good|correct|perfect|calm|clear|ok|okay)\b"
    r"|(?:the )?(?:original|current)(?: text| version| wording)? (?:is|was|looks|needs|stands|works)\b|same as\b"
    r"|keine (?:weiteren )?(?:änderung|bearbeitung|korrektur)|nichts zu (?:ändern|tun)|aucune? (?:changement|modification)"
    r"|rien à (?:changer|modifier)|sin (?:cambios|modificaciones)|nada que (?:cambiar|editar)|sem (?:alterações|mudanças)"
    r"|nessuna modifica|geen (?:wijziging|aanpassing)|без изменений|(?:изменени\w+|правк\w+) не (?:нужн|треб)"
    r"|(?:无需|無需|不需要|没有|沒有)(?:任何)?(?:修改|更改|改动)|(?:変更|修正)(?:は|の必要は)?(?:なし|不要|ありません)"
    r"|(?:the|this|your)(?: original| current)? (?:answer|response|reply) "
    r"(?:is (?:already|good|fine|perfect|unchanged|correct as|ok)"
    r"|already|needs no|requires no|(?:does not|doesn't) need|remains|stays|can stay)\b"
    r"|(?:the )?same (?:answer |text |response |reply )?as (?:before|above|the original|it was)\b"
    r"|(?:as|see) (?:before|above)\b|unchanged)[^\n]{0,120}\Z"
)
"""All of a text that stands where an answer should and is none."""


def is_refusal(text: str, original: str) -> bool:
    """Whether a reply declines to do the edit."""
    return _declines(text) and not _declines(original)


def is_excuse(text: str, original: str, asked: str) -> bool:
    """Whether a short text only says what cannot be done, in no words of the answer or of the conversation.

    >>> is_excuse("I'm not comfortable with this.", "It left today!", "Where is my order?")
    True
    >>> is_excuse("I can't see your order.", "I'll check your order!", "Where is my order?")
    False
    """
    said = plain(text.strip())
    if (
        len(said) > _EXCUSE
        or not _CANNOT.search(said)
        or (len(original) <= _EXCUSE and _CANNOT.search(plain(original)))
    ):
        return False
    known = plain(f"{original}\n{asked}")
    rest = _CANNOT.sub(" ", said)
    pieces = [word[:5] for word in _LONG_WORD.findall(rest) if not _UNSPACED.search(word)]
    pieces += _UNSPACED.findall(rest)
    return sum(piece in known for piece in pieces) * 3 <= len(pieces)


def no_answer(text: str, original: str, asked: str) -> bool:
    """Whether a text only says that there is nothing to change, or what has changed: "N/A", "Same as before".

    >>> no_answer("No changes needed.", "It left.", "When?"), no_answer("The answer is 42.", "41.", "What is it?")
    (True, False)
    """
    said = plain(text.strip())
    return _NO_ANSWER.search(said) is not None and said.strip("\"'().*_ ") not in plain(f"{original}\n{asked}")


def self_reference(text: str, original: str, asked: str) -> str | None:
    """The words with which a text alludes to being a revision, if it does. `asked` is the conversation."""
    text = plain(text)
    patterns = [pattern for pattern, hints in _HINTS if any(hint in text for hint in hints)]
    announced = _ANNOUNCES.match(text)
    if not patterns and not announced:
        return None
    known = plain(f"{original}\n{asked}")
    if _EDITING.search(plain(asked)):
        patterns, announced = [pattern for pattern in patterns if pattern is not _SPEAKS_WEAKLY], None
    said = [match[0] for pattern in patterns for match in pattern.finditer(text)]
    if announced and not _ANNOUNCES.match(plain(original)):
        said.append(announced[0])
    return next((each.strip() for each in said if each not in known), None)


def _declines(text: str) -> bool:
    return _REFUSES.search(plain(text[:_REFUSES_EARLY])[:_REFUSES_EARLY]) is not None


def plain(text: str) -> str:
    """The text in small letters and with plain quotes."""
    return (text if text.isascii() else text.translate(_QUOTES)).casefold()
