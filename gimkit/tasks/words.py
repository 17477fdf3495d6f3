"""The words of the tasks: common English ones, mostly single tokens in GPT-2's tokenizer too."""

WOMEN = (
    "Mary Anna Alice Emma Laura Sarah Kate Julia Jane Lisa Linda Maria Helen Rachel Susan Karen Nancy Emily "
    "Jessica Jennifer Michelle Elizabeth Margaret Barbara Patricia Sandra Diana Claire Ruth Lucy Sophie "
    "Victoria Rebecca Samantha Amanda Christine Catherine Molly Ellen Amy"
).split()
MEN = (
    "John Tom James Michael David Robert William Richard Thomas Charles Joseph Daniel Matthew Paul Steven "
    "Andrew Kevin Brian George Edward Ryan Jason Jeff Eric Stephen Scott Adam Peter Henry Jack Simon Sean "
    "Patrick Frank Gary Tim Ben Sam Luke Martin"
).split()
NAMES = [name for couple in zip(WOMEN, MEN) for name in couple]

PLACES = (
    "bakery harbor library theater kitchen museum market beach church bridge farm hotel castle station"
).split()
OBJECTS = (
    "book letter camera hat watch cup bag map key flower ticket coin lamp scarf pencil guitar"
).split()

DID = (
    "sang danced slept ran read laughed cried waited smiled worked talked walked jumped cooked wrote played"
).split()

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Japan": "Tokyo",
    "China": "Beijing", "Russia": "Moscow", "England": "London", "Egypt": "Cairo", "Greece": "Athens",
    "Poland": "Warsaw", "Austria": "Vienna", "Ireland": "Dublin", "Cuba": "Havana", "Iraq": "Baghdad",
    "Syria": "Damascus", "Turkey": "Ankara", "Canada": "Ottawa", "Norway": "Oslo", "Sweden": "Stockholm",
    "Denmark": "Copenhagen", "Hungary": "Budapest", "Belgium": "Brussels", "Scotland": "Edinburgh",
    "Thailand": "Bangkok", "Peru": "Lima",
}

KINDS = {
    "bird": "robin eagle hawk crow duck swan owl".split(),
    "fish": "salmon trout tuna cod shark".split(),
    "fruit": "apple banana peach pear plum lemon".split(),
    "tree": "oak pine maple willow cedar".split(),
    "color": "red blue green yellow purple".split(),
    "metal": "iron copper silver gold steel".split(),
    "tool": "hammer saw drill knife".split(),
    "vehicle": "car truck bus van train".split(),
    "animal": "dog cat horse lion bear".split(),
    "sport": "tennis football golf hockey baseball".split(),
}

# A noun and its plural. The nouns of agreement, and the words of the random sequences of induction.
NOUNS = {word: word + "s" for word in (
    "boy girl doctor teacher student farmer lawyer driver friend player singer writer worker soldier artist "
    "cat dog horse table chair door window letter picture road river mountain car boat"
).split()}
NEAR = "near behind beside with above".split()

THINGS = (
    "idea time thing way day part home head line hand air name war city food light story night law"
).split()

EVENTS = "war trip project meeting battle peace drought crisis contract flood course journey".split()


def held_out_names(a: str, b: str) -> bool:
    """Whether this pair of names is kept out of the bundled models' training (one pair in nine)."""
    i, j = NAMES.index(a), NAMES.index(b)
    return (i + j) % 9 == 0
