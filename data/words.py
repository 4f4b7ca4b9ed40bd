"""Word lists for make.py: ordinary English words, with every irregular form written out."""


def words(text: str) -> list[str]:
    return text.split()


def forms(text: str) -> list[tuple[str, ...]]:
    """The forms of each word, between slashes."""
    return [tuple(word.split("/")) for word in text.split()]


NAMES = words("""
    Amir Anna Ben Chen Clara David Emma Felix Grace Henry Ida Jack
    Kofi Laura Mara Nina Noah Olga Oscar Paul Priya Rosa Tom Yuki""")

ROLES = words("""
    baker cook dancer doctor driver farmer gardener nurse pilot sailor singer student teacher
    visitor waiter""")

# base, third person, past, participle
VERBS = forms("""
    borrow/borrows/borrowed/borrowed break/breaks/broke/broken bring/brings/brought/brought
    buy/buys/bought/bought carry/carries/carried/carried choose/chooses/chose/chosen
    clean/cleans/cleaned/cleaned copy/copies/copied/copied draw/draws/drew/drawn
    drop/drops/dropped/dropped find/finds/found/found hide/hides/hid/hidden
    hold/holds/held/held lift/lifts/lifted/lifted lose/loses/lost/lost move/moves/moved/moved
    paint/paints/painted/painted push/pushes/pushed/pushed repair/repairs/repaired/repaired
    see/sees/saw/seen sell/sells/sold/sold send/sends/sent/sent take/takes/took/taken
    wash/washes/washed/washed""")

# things that can be carried, sold, painted ...: singular, plural
THINGS = forms("""
    basket/baskets bell/bells bench/benches boat/boats book/books bottle/bottles box/boxes
    brush/brushes chair/chairs clock/clocks coat/coats cup/cups dish/dishes drum/drums
    glass/glasses key/keys kite/kites knife/knives ladder/ladders lamp/lamps map/maps
    picture/pictures scarf/scarves shelf/shelves table/tables toy/toys tray/trays watch/watches""")

# further nouns for the plural family, many of them irregular
CREATURES = forms("""
    child/children man/men woman/women mouse/mice goose/geese sheep/sheep wolf/wolves fox/foxes
    pony/ponies baby/babies lady/ladies hero/heroes bird/birds friend/friends""")

ADJECTIVES = words("""
    big bright clean fine good great little lovely new nice old quiet simple small strange tall""")

# adjective, comparative
COMPARATIVES = forms("""
    tall/taller old/older young/younger strong/stronger fast/faster slow/slower quiet/quieter
    kind/kinder big/bigger thin/thinner happy/happier busy/busier funny/funnier lazy/lazier
    good/better bad/worse""")

CITIES = words("""
    Athens Berlin Cairo Delhi Dublin Lagos Lima London Madrid Oslo Paris Prague Rome Tokyo Vienna""")
COLOURS = words("black blue brown green grey orange pink purple red white yellow")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
PLACES = words("garden hall harbour kitchen library market office school shop station")

# unit, smaller unit, the power of ten between them, something measured
UNITS = [
    ("metres", "centimetres", 2, "The rope was {} long."),
    ("kilometres", "metres", 3, "The road was {} long."),
    ("centimetres", "millimetres", 1, "The board was {} wide."),
    ("kilograms", "grams", 3, "The sack weighed {}."),
    ("litres", "millilitres", 3, "The barrel held {}."),
    ("euros", "cents", 2, "The bill came to {}."),
]

# what a guest writes about, then what can be said of any of it
ASPECTS = words("breakfast coffee dinner food garden lunch music room service show soup view")
PRAISE = words("charming delightful excellent fantastic great lovely perfect superb wonderful")
BLAME = words("awful boring dreadful disappointing horrible poor sad terrible unpleasant")
