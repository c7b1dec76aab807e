r"""Closing remarks: what a reviser says about its edit below the revision, where it would be learnt as the last paragraph.

Behind an end marker it is no part of the revision. Before one, what is said of an edit and of nothing else counts; where the
end marker lacks, what may be said of something else counts too, as the reply may have run on into its explanation.

>>> closing_remark("Hold it for ten seconds.\n\n**Explanation of changes:** the time was wrong.", "Press it.", "How?")
'explanation of changes:'
>>> closing_remark("Hold it.\n\n*Apology removed.*", "Sorry! Hold it.", "How?", ended=False)
'apology removed.'

A label such as "**Explanation:**" may head a part of the answer, or a word to whoever asked for the edit. Without an end
marker nobody can tell, so it counts as a remark, unless the original has as many of that label:

>>> added_label("Hold it for ten seconds.\n\n**Explanation:** it was too short.", "Press it.")
'explanation'
>>> added_label("Hold it.\n\n**Explanation:** it takes long to restart.", "Press it.\nExplanation: it restarts.")
"""

from __future__ import annotations

import re
from collections import Counter

from anchorline.pairs.phrases import plain

_LOOKED_AT = 4
"""Paragraphs from the end that a remark is looked for in; never the first one."""
_PARAGRAPH = re.compile(r"\n[ \t\r]*\n")

_EDITS = r"(?:changes?|edits?|revisions?|corrections?|modifications?|adjustments?)"
_DID = (
    r"(?:kept|preserved|retained|maintained|changed|corrected|fixed|removed|replaced|adjusted|modified|made|tightened|"
    r"clarified|dropped|shortened|trimmed|simplified|edited|added|aimed|focused|avoided)"
)
_I_DID = rf"\bi(?:'ve| have)? (?:(?:only|just|also|mainly|mostly|deliberately|primarily) )?{_DID}\b"
_SURELY = re.compile(
    rf"^\W{{0,8}}(?:(?:key|main|notable|summary of|explanation of|explanation for|overview of|list of|notes? on|about) )?"
    rf"(?:the )?{_EDITS}(?: (?:made|applied|explained|summary))?\W{{0,4}}(?::|\n|$)"
    rf"|^\W{{0,8}}(?:what|why)(?: i(?:'ve)?| has| was| were)? (?:changed|edited|revised)\b"
    rf"|^\W{{0,8}}why (?:this|these) (?:works?|{_EDITS}|version|is (?:better|an improvement))\b"
    rf"|^\W{{0,8}}(?:teacher )?(?:reasoning|rationale|justification)(?: for {_EDITS})?\W{{0,4}}:"
    rf"|^\W{{0,8}}the changes (?:are|were) (?:small|minimal|minor|few|limited)\b"
    rf"|^\W{{0,8}}\({_DID} (?:the|an?|all|some|only)\b[^)\n]{{0,200}}\)$"
    rf"|^\W{{0,8}}(?:note|explanation|comment)s?\W{{1,6}}(?:[^.\n]{{0,60}} )?{_I_DID}"
    rf"|^\W{{0,8}}{_DID}:"
    rf"|^\W{{0,8}}{_I_DID} (?:the|an?|all|your|its)\b[^.\n]{{0,60}}\b(?:apolog\w{{1,4}}|exclamation|wording|phrasing|guideline)"
)
"""Said of an edit and of nothing else, at the start of a paragraph."""
_SURELY_WITHIN = re.compile(
    r"\b(?:rest|everything else|all else) (?:left |kept )?unchanged\b"
    r"|\bhope (?:that )?(?:this|the|these|my) (?:edits?|revisions?|revised|rewrite|reworded|corrections?)\b"
)
"""And anywhere in one."""
_COUNT = re.compile(
    r"^\W{0,8}(?:(?:new |final |total )?word count\W{1,6}\d+(?: words)?"
    r"|(?:about |~ ?)?\d+ words(?: in total| total)?[)\]])\W{0,4}$"
)
"""A last line that counts the words above it, unless the original counted its own."""
_PERHAPS = re.compile(
    rf"{_I_DID}[^.\n]{{0,100}}\b(?:structure|wording|tone|phrasing|sentences?|paragraphs?|exclamation|{_EDITS}|guideline|"
    rf"style|answer|response|original|text)\b"
    r"|\b(?:(?:this|the above) version|(?:this|the) (?:edit|revision|rewrite)) (?:now |still |also |only )?"
    r"(?:keeps|fixes|corrects|addresses|"
    r"removes|drops|is|maintains|preserves|improves|meets|follows|adheres)\b"
    rf"|\bthe (?:edits|revisions|corrections) (?:are|were|keep|aim|focus)\b|\bminimal {_EDITS}\b"
    r"|\b(?:this|the above) (?:answer|response) (?:is now|now|still keeps|keeps|preserves|retains|maintains)\b"
    r"|\b(?:further|more|other|additional) (?:edits|revisions)\b|\b(?:want|like|need) me to (?:revise|edit|rewrite|reword)\b"
)
"""Said of code or of a user's own text as well: no sign where changing something is what was asked for."""
_CUT = r"(?:removed|dropped|shortened|trimmed|simplified|tightened|reworded|rephrased|replaced)"
_UNENDED = re.compile(
    rf"^\W{{0,8}}i(?:'ve| have)? (?:(?:only|just|also) )?{_CUT}\b"
    rf"|^\W{{0,8}}i(?:'ve| have)? (?:(?:only|just|also) )?(?:corrected|fixed|clarified|edited) (?:it|the|an?|one|two|some)\b"
    rf"|^\W{{0,8}}[(\[]{_I_DID}[^)\]\n]{{0,200}}[)\]]\W{{0,4}}$"
    rf"|^\W{{0,8}}(?:[\w'-]{{1,20}} ){{1,3}}(?:(?:was|were) )?{_CUT}\b[^\n]{{0,60}}$"
)
"""A paragraph that starts with what was done to a text, or is no more than that."""
_CHANGING = re.compile(
    r"\b(?:revis|re-?writ|re-?word|re-?phras|paraphras|edit|improv|correct|proofread|polish|draft|fix|refactor|modif|debug|"
    r"chang|shorten|summar|translat)"
)

_LABELS = (
    r"(?:explanation|reason|comment|remark|note|improvement|enhancement|fix|critique|justification)s?"
    r"|fixes|reasoning|rationale|commentary|why|what(?:'s| is| has)? (?:changed|different|new)|difference|change|edit"
    r"|erklärung|begründung|hinweis|anmerkung|änderung(?:en)?|explication|remarque|modification|explicación|nota|cambio"
    r"|пояснение|объяснение|изменения|примечание|说明|解释|修改说明|説明|変更点|word count|user|human|assistant|system|customer"
)
_LABEL = re.compile(
    rf"^[ \t>#*_~•–—(\[\d.-]{{0,12}}(?:[\w']{{1,20}}[ ]){{0,2}}(?P<said>{_LABELS})"
    r"(?:[ ](?:of|for|on|about|behind)[ ][^:：\n]{1,60})?[*_)\]]{0,4}[ \t]{0,2}[:：]"
    rf"|^[ \t>]{{0,4}}(?:#{{1,6}}[ \t]{{1,4}})?(?:\d{{1,2}}[.)][ \t]{{1,4}})?[*_]{{0,3}}"
    rf"(?:[\w']{{1,20}}[ ])?(?P<headed>{_LABELS})[*_]{{0,3}}[ \t\r]{{0,4}}$",
    re.MULTILINE,
)
"""With a colon, or as a heading on a line of its own."""
_FIRST = re.compile(
    rf"^\W{{0,8}}(?:{_LABELS}|{_EDITS})\W{{1,6}}(?:[^.\n]{{0,60}} )?{_I_DID}"
    rf"|^\W{{0,8}}[(\[]{_I_DID}[^)\]\n]{{0,200}}[)\]]\W{{0,4}}$"
)
"""A line above the revision that says what was done to it."""


def closing_remark(text: str, original: str, asked: str, *, ended: bool = True) -> str | None:
    """The words with which one of the last paragraphs, the last line or the first speaks of the edit, if one does.

    What the original says is none. `ended` tells whether an end marker ends the text.
    """
    body, _, last = text.strip().rpartition("\n")
    if not body:
        return None
    paragraphs = [*_PARAGRAPH.split(text.strip())[1:][-_LOOKED_AT:], last]
    first = text.strip().partition("\n")[0]
    known = plain(f"{original}\n{asked}")
    finders = [_SURELY.match, _SURELY_WITHIN.search]
    if not ended:
        finders += [_UNENDED.match] if _CHANGING.search(plain(asked)) else [_UNENDED.match, _PERHAPS.search]
    places = [(plain(first), [_FIRST.match]), *((plain(paragraph), finders) for paragraph in paragraphs)]
    if not _COUNT.match(plain(original.strip().rpartition("\n")[2])):
        places.append((plain(last), [_COUNT.match]))
    for paragraph, looked_for in places:
        for find in looked_for:
            found = find(paragraph)
            said = found[0].strip(" \t\r\n*_#>-—–(") if found else ""
            if found and said.rstrip(":*_ \n") not in known:
                return said
    return None


def added_label(text: str, original: str) -> str | None:
    """The first label of an explanation, below a text's first line, that the text has more often than the original."""
    had = Counter(_labels(original))
    for label in _labels(text.strip().partition("\n")[2]):
        had[label] -= 1
        if had[label] < 0:
            return label
    return None


def _labels(text: str) -> list[str]:
    """The labels that lines of a text begin with, as one word each, in the singular."""
    return [(match["said"] or match["headed"]).removesuffix("s") for match in _LABEL.finditer(plain(text))]
