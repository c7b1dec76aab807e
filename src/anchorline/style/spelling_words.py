"""British and American spellings, as two tables from a word in lower case to its other spelling.

Words that are right in both variants with another sense ("practice", "check", "meter", "program", "tire", "draft")
are respelled in the direction that is safe, from the spelling that only one variant has.

>>> AMERICAN["organised"], BRITISH["color"], "check" in BRITISH
('organized', 'colour', False)
"""

from __future__ import annotations

_OUR_NOUNS = """
    arbo ardo armo behavio cando clamo colo demeano endeavo favo fervo flavo harbo hono humo labo neighbo odo parlo
    ranco rigo rumo savio savo splendo tumo valo vapo vigo
"""
"""Stems of -our / -or words, with -s."""
_OUR_DERIVED = """
    armo:ed,ing,y behavio:al colo:ed,ful,fully,ing,less discolo:ed,ing disfavo: dishono:able,ed endeavo:ed,ing
    favo:able,ably,ed,ing,ite,ites flavo:ed,ful,ing,less harbo:ed,ing hono:able,ably,ed,ing humo:ed,ing labo:ed,er,ing
    misbehavio: neighbo:hood,hoods,ing,ly odo:less rumo:ed savo:ed,ing,y unfavo:able,ably multicolo:ed watercolo:,s
"""
_ISE = """
    agon amort anonym apolog author bapt capital categor central character civil color commercial computer conceptual
    critic crystall custom demoral digit econom emphas energ equal familiar fantas fertil final formal general global
    harmon hospital hypothes ideal immun individual initial institutional internal international italic item jeopard
    legal liberal local marginal material maxim mechan memor mesmer mobil minim modern monet monopol national
    natural neutral normal optim organ ostrac patron penal personal plagiar polar popular priorit privat public
    random rational real recogn reorgan revolution roman scrutin sensit serial social special stabil standard
    steril stigmat subsid summar symbol sympath synchron synthes tantal terror theor token traumat union util
    vandal verbal victim visual vocal weapon western
"""
_ISATION = """
    anonym author capital categor central character civil commercial custom digit fertil final formal general global
    harmon hospital ideal immun initial internal legal liberal local marginal material maxim mobil minim modern monet
    national neutral normal optim organ personal polar popular priorit privat random rational real reorgan serial
    social special stabil standard steril synchron token util visual vocal
"""
_YSE = "anal catal paral electrol psychoanal"
_DOUBLED = """
    cancel channel counsel dial equal fuel funnel initial jewel label level marvel model panel parcel pedal pencil
    quarrel rival shovel signal snorkel spiral swivel total towel travel tunnel unravel
"""
"""Verbs that double their l in British -led and -ling."""
_RE = "cent fib lit lust meag mit sab sepulch somb spect theat calib kilomet centimet millimet"
_PAIRS = """
    acknowledgement acknowledgment  acknowledgements acknowledgments  aeroplane airplane  aeroplanes airplanes
    ageing aging  aluminium aluminum  anaemia anemia  anaesthetic anesthetic  archaeology archeology  artefact artifact
    artefacts artifacts  behove behoove  cancelled canceled  catalogue catalog  catalogues catalogs
    catalogued cataloged
    centred centered  centring centering  chequered checkered  chilli chili  cosy cozy  cosier cozier
    counsellor counselor  counsellors counselors  defence defense  defences defenses  defenceless defenseless
    diarrhoea diarrhea  enrol enroll  enrols enrolls  enrolment enrollment  enrolments enrollments
    encyclopaedia encyclopedia  fulfil fulfill  fulfils fulfills  fulfilment fulfillment  foetus fetus
    grey gray  greys grays  greyer grayer  greyish grayish  gynaecology gynecology  haemorrhage hemorrhage
    instalment installment  instalments installments  instil instill  jeweller jeweler  jewellers jewelers
    jewellery jewelry  judgement judgment  judgements judgments  leukaemia leukemia  likeable likable
    liveable livable  manoeuvre maneuver  manoeuvres maneuvers  manoeuvred maneuvered  marvellous marvelous
    moustache mustache  moustaches mustaches  mould mold  moulds molds  mouldy moldy  moult molt  moulding molding
    oestrogen estrogen  offence offense  offences offenses  orthopaedic orthopedic  paediatric pediatric
    paediatrician pediatrician  plough plow  ploughs plows  ploughed plowed  pretence pretense  pyjamas pajamas
    sceptic skeptic  sceptics skeptics  sceptical skeptical  scepticism skepticism  skilful skillful
    skilfully skillfully  smoulder smolder  smouldering smoldering  sulphur sulfur  traveller traveler
    travellers travelers  modeller modeler  labeller labeler  unlabelled unlabeled  wilful willful  wilfully willfully
    woollen woolen  woollens woolens  woolly wooly
    saleable salable  sizeable sizable  unshakeable unshakable  omelette omelet  omelettes omelets
"""
_ONLY_BRITISH = """
    cheque check  cheques checks  chequebook checkbook  draught draft  draughts drafts  draughty drafty  kerb curb
    kerbs curbs  licence license  licences licenses  metre meter  metres meters  practise practice  practised practiced
    practises practices  practising practicing  programme program  programmes programs  storey story  storeys stories
    tyre tire  tyres tires  whilst while  amongst among  learnt learned  dreamt dreamed  spelt spelled
"""
"""Pairs whose American side is a word of British English too."""


def _both() -> dict[str, str]:
    """British to American, for pairs that hold in both directions."""
    words: dict[str, str] = {}
    for stem in _OUR_NOUNS.split():
        words |= {stem + "ur" + end: stem + "r" + end for end in ("", "s")}
    for entry in _OUR_DERIVED.split():
        stem, _, ends = entry.partition(":")
        words |= {stem + "ur" + end: stem + "r" + end for end in ends.split(",")}
    for stem in _ISE.split():
        words |= {f"{stem}is{end}": f"{stem}iz{end}" for end in ("e", "ed", "es", "er", "ers", "ing")}
    for stem in _ISATION.split():
        words |= {f"{stem}isation{end}": f"{stem}ization{end}" for end in ("", "s")}
    for stem in _YSE.split():
        words |= {f"{stem}ys{end}": f"{stem}yz{end}" for end in ("e", "ed", "ing", "er", "ers")}
    for stem in _DOUBLED.split():
        words |= {f"{stem}l{end}": f"{stem}{end}" for end in ("ed", "ing")}
    for stem in _RE.split():
        words |= {f"{stem}re{end}": f"{stem}er{end}" for end in ("", "s")}
    return words | _table(_PAIRS)


def _table(pairs: str) -> dict[str, str]:
    words = pairs.split()
    return dict(zip(words[::2], words[1::2], strict=True))


AMERICAN = _both() | _table(_ONLY_BRITISH)
"""From the British spelling to the American."""
BRITISH = {american: british for british, american in _both().items()}
"""From the American spelling to the British."""
