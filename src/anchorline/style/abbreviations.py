"""Abbreviations, without their last full stop, and words that start sentences: what sentence splitting looks up.

>>> "dr" in NEVER_END, "etc" in MAY_END
(True, True)
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NEVER_END = _words(
    """
    mr mrs ms mx dr prof rev hon gen capt lt sgt col messrs mme mlle hr fr e.g i.e eg ie vs cf viz approx ca resp
    z.b d.h bzw
    """
)
"""Abbreviations that are always followed by the rest of their sentence."""
NUMBERED = _words(
    """
    no nos nr fig figs art vol ch sec p pp ext tel
    """
)
"""Abbreviations when a number follows, ordinary sentence ends otherwise ("No.")."""
MAY_END = _words(
    """
    etc inc ltd co corp jr sr st ave dept est al jan feb mar apr jun jul aug sept sep oct nov dec mon tue wed thu
    fri sat sun min max
    """
)
"""Abbreviations that end a sentence only where the next word looks like the start of one."""
STARTERS = _words(
    """
    the this that these those there here it its i we you he she they your our my their his her a an please if when
    once while after before in on for at as to and but or so also however what which who why how where do does did
    is are was were can could would will should shall let just thank thanks no yes sorry
    """
)
"""Words that start a sentence more often than they follow an abbreviation."""
