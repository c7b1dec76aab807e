"""Styles: a customer's guideline as free text and rules, each rule a check together with its minimal repair.

>>> style = parse_style({"name": "s", "rules": [{"kind": "starts_with", "text": "Hello."}]})
>>> repair(style, (), "It left today.").text
'Hello. It left today.'
"""

from anchorline.style.load import load_style, parse_style
from anchorline.style.rules import Rule
from anchorline.style.sentences import without_torn_end
from anchorline.style.style import MAX_TEXT, Repair, Style, check, prescribed, repair, without_prescribed

__all__ = [
    "MAX_TEXT",
    "Repair",
    "Rule",
    "Style",
    "check",
    "load_style",
    "parse_style",
    "prescribed",
    "repair",
    "without_prescribed",
    "without_torn_end",
]
