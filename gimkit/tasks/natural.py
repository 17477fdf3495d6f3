"""Words and sentences for models that were pretrained on real text: people, places and objects that fit together.

The lists are long, because a task uses only words that are one token. No sentence begins with a name: many tokenizers
have no start token, and models then use the first token as one.
"""

from gimkit.tasks.words import VERBS, Words, two_digits

WOMEN = tuple((
    "Mary Anna Alice Emma Laura Sarah Kate Julia Jane Lisa Linda Maria Helen Rachel Susan Karen Nancy Emily Jessica "
    "Jennifer Michelle Elizabeth Margaret Barbara Patricia Sandra Diana Claire Ruth Lucy Sophie Victoria Rebecca "
    "Samantha Amanda Christine Catherine Molly Ellen Amy Anne Sara Julie Maggie Sophia Olivia Hannah Charlotte "
    "Caroline Eva Clara Martha Alison Angela Melissa Stephanie Nicole Katherine Andrea Monica Dorothy Carol Eleanor "
    "Rosa Elena Teresa Betty Annie Jenny Emilia Isabel Isabella Natalie Vanessa Heather Megan Kathleen Deborah Pamela "
    "Cynthia Sharon Laurie Joan Judith Frances Ann Lily Sally Polly Ella Zoe Ada Ingrid Marie Louise Lauren Erin "
    "Katie Carolyn Tina Rita Nina Vera"
).split())
MEN = tuple((
    "John Tom James Michael David Robert William Richard Thomas Charles Joseph Daniel Matthew Paul Steven Andrew "
    "Kevin Brian George Edward Ryan Jason Jeff Eric Stephen Scott Adam Peter Henry Jack Simon Sean Patrick Frank Gary "
    "Tim Ben Luke Martin Mike Steve Jim Joe Bob Anthony Mark Donald Kenneth Joshua Timothy Jeffrey Jacob Nicholas "
    "Jonathan Larry Justin Brandon Benjamin Samuel Gregory Alexander Jerry Dennis Walter Nathan Douglas Zachary Kyle "
    "Arthur Albert Roger Philip Carl Bruce Keith Ralph Roy Louis Eugene Howard Fred Oliver Oscar Harry Hugh Ian Neil "
    "Graham Victor Vincent Felix Leo Max Tony Greg Doug Dave Dan Ken Ron Phil Bill Ted Ed Jake Josh Matt Nick Ethan "
    "Noah Liam Lucas Isaac"
).split())

PLACES = {
    "store": "basket jacket bottle drink", "shop": "bag hat dress present", "market": "basket melon lemon fish",
    "park": "ball kite blanket sandwich", "beach": "towel ball shell bucket", "library": "book magazine map newspaper",
    "school": "book pencil ruler notebook", "hospital": "blanket flower card pillow",
    "garden": "flower rose shovel plant", "kitchen": "plate cup spoon bowl", "restaurant": "menu drink plate napkin",
    "cafe": "cookie cup newspaper drink", "station": "ticket map bag suitcase",
    "airport": "ticket passport suitcase bag", "hotel": "key towel map bag", "office": "letter pen key phone",
    "museum": "ticket map camera postcard", "theater": "ticket coat program drink", "farm": "basket bucket rope melon",
    "bakery": "cake pie cookie sandwich", "party": "drink cake present balloon", "lake": "towel boat net blanket",
    "bank": "pen letter check card", "zoo": "map ticket camera balloon", "stadium": "ticket flag jersey drink",
    "concert": "ticket guitar drink jacket", "church": "candle book flower coin", "house": "key lamp chair book",
    "barn": "rope bucket saddle lamp", "gym": "towel ball bottle key",
}

DEEDS = (
    "sang danced slept ran read laughed cried waited smiled worked talked walked jumped cooked wrote played listened "
    "swam rested shouted painted coughed whistled waved prayed"
).split()

OPENINGS = (
    "When {A} and {B} went to the {place}, ",
    "After {A} and {B} went to the {place}, ",
    "When {A} and {B} got to the {place}, ",
    "While {A} and {B} were at the {place}, ",
    "As {A} and {B} were leaving the {place}, ",
    "Before {A} and {B} left the {place}, ",
    "Then {A} and {B} went to the {place}, and ",
    "Yesterday {A} and {B} were at the {place}, where ",
    "Then {A} and {B} went to the {place}. ",
    "Yesterday {A} and {B} spent an hour at the {place}. ",
    "One day {A} and {B} met at the {place}. ",
    "After lunch {A} and {B} walked to the {place}. ",
    "On Sunday {A} and {B} had a long talk at the {place}. ",
)
CLAUSES = (
    "{S} gave a {obj} to",
    "{S} gave the {obj} to",
    "{S} handed a {obj} to",
    "{S} handed the {obj} to",
    "{S} passed the {obj} to",
    "{S} offered a {obj} to",
    "{S} decided to give a {obj} to",
    "{S} wanted to give the {obj} to",
    "{S} showed the {obj} to",
    "{S} brought a {obj} to",
)
BETWEEN = (
    "It was a sunny day, and {A} and {B} were happy. ",
    "There {A} and {B} talked for a while. ",
    "Soon {A} and {B} were laughing. ",
    "It was good for {A} and {B} to be there. ",
    "Everybody there knew {A} and {B}. ",
    "It was late, but {A} and {B} were not tired. ",
)
ASK_ODD = (
    "The only person who was named just once is",
    "The name that came only once is",
    "The one who was named only once is",
)

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Japan": "Tokyo", "China": "Beijing",
    "Russia": "Moscow", "England": "London", "Egypt": "Cairo", "Greece": "Athens", "Poland": "Warsaw",
    "Austria": "Vienna", "Ireland": "Dublin", "Cuba": "Havana", "Iraq": "Baghdad", "Syria": "Damascus",
    "Turkey": "Ankara", "Canada": "Ottawa", "Norway": "Oslo", "Sweden": "Stockholm", "Denmark": "Copenhagen",
    "Hungary": "Budapest", "Belgium": "Brussels", "Scotland": "Edinburgh", "Thailand": "Bangkok", "Peru": "Lima",
    "Portugal": "Lisbon", "Finland": "Helsinki", "Australia": "Canberra", "Kenya": "Nairobi", "Iran": "Tehran",
    "Lebanon": "Beirut", "Ukraine": "Kyiv", "Romania": "Bucharest", "Bulgaria": "Sofia", "Serbia": "Belgrade",
    "Croatia": "Zagreb", "Chile": "Santiago", "Venezuela": "Caracas", "Colombia": "Bogota", "Ecuador": "Quito",
    "Indonesia": "Jakarta", "Philippines": "Manila", "Vietnam": "Hanoi", "Taiwan": "Taipei", "Afghanistan": "Kabul",
    "Pakistan": "Islamabad", "Bangladesh": "Dhaka", "Nepal": "Kathmandu", "Libya": "Tripoli", "Morocco": "Rabat",
    "Algeria": "Algiers", "Tunisia": "Tunis", "Ghana": "Accra", "Senegal": "Dakar",
    "Zimbabwe": "Harare", "Uganda": "Kampala", "Sudan": "Khartoum", "Somalia": "Mogadishu", "Jordan": "Amman",
    "Jamaica": "Kingston", "Iceland": "Reykjavik", "Wales": "Cardiff", "Qatar": "Doha", "Latvia": "Riga",
    "Slovakia": "Bratislava", "Armenia": "Yerevan",
}
ASK_CAPITAL = (
    "The capital of {} is",
    "The capital city of {} is",
    "The capital and largest city of {} is",
    "I have never been to the capital of {},",
    "She flew to the capital of {}, the city of",
)

KINDS = {kind: tuple(members.split()) for kind, members in {
    "bird": "robin eagle hawk crow duck swan owl sparrow parrot pigeon penguin goose raven falcon dove turkey",
    "fish": "salmon trout tuna cod carp bass herring sardine eel pike",
    "fruit": "apple banana peach pear plum lemon cherry mango grape orange strawberry melon lime fig",
    "vegetable": "carrot onion potato cabbage spinach lettuce broccoli pepper bean pumpkin celery",
    "tree": "oak pine maple willow cedar elm birch spruce palm fir",
    "flower": "rose lily tulip daisy orchid violet iris daffodil lavender",
    "insect": "bee ant beetle moth butterfly wasp fly mosquito",
    "metal": "iron copper silver gold steel aluminum zinc tin nickel lead",
    "tool": "hammer saw drill shovel axe chisel screwdriver rake",
    "vehicle": "car truck bus van taxi tractor motorcycle bicycle",
    "animal": "dog cat horse lion bear wolf fox goat sheep pig tiger elephant rabbit deer camel",
    "sport": "tennis football golf hockey baseball soccer basketball volleyball rugby boxing",
    "drink": "coffee tea beer wine juice milk whiskey soda vodka",
    "weapon": "sword gun rifle spear pistol bomb dagger knife",
    "dance": "waltz tango polka salsa ballet",
    "disease": "cancer malaria cholera flu tuberculosis asthma",
    "fabric": "cotton wool silk linen velvet denim nylon",
}.items()}
ASK_KIND = (
    "The {} is a kind of",
    "The {} is a type of",
    "We all know that the {} is a kind of",
    "In this book, the {} is a type of",
)

NOUNS = {word: word + "s" for word in (
    "boy girl doctor teacher student farmer lawyer driver friend player singer writer worker soldier artist dog cat "
    "horse actor author baker banker brother sister captain chef cousin dancer engineer guard guest king queen leader "
    "manager mother father neighbor nurse officer painter parent patient pilot poet president prisoner professor "
    "sailor scientist tourist uncle visitor waiter customer tree car truck bus bike chair lamp picture book key box "
    "letter bag boat flower house"
).split()} | {"man": "men", "woman": "women", "child": "children", "box": "boxes", "bus": "buses"}
NEAR = ("near", "behind", "beside", "next to", "across from", "in front of")
OTHERS = {word: word + "s" for word in (
    "house car tree table door window shop school river mountain garden wall road bridge tower station store gate "
    "building lake truck boat lamp statue"
).split()}
AGREE = (
    "The {} {near} the {other}",
    "I know that the {} {near} the {other}",
    "He said that the {} {near} the {other}",
    "We could see that the {} {near} the {other}",
)

PRONOUN = (
    "Yesterday {} was late for work because",
    "Everybody likes {} because",
    "Last night {} said that",
    "When {} came home,",
    "After {} left the house,",
    "On Sunday {} was happy because",
)

EVENTS = (
    "war trip project meeting battle drought crisis contract flood siege journey reign study strike plague famine "
    "construction expedition campaign conflict marriage trial voyage rebellion"
).split()
YEARS = (
    "The {event} lasted from the year {start} to the year {end}",
    "The {event} began in {start} and ended in {end}",
    "The {event} that began in {start} ended in {end}",
    "The {event} went on from {start} until {end}",
)

ROW = tuple((
    "idea time thing way day part home head line hand air name war city food light story night law river mountain "
    "table chair door window letter picture road boat book tree stone water fire paper glass ring king queen horse "
    "bird fish apple bread milk sugar salt iron gold silver wood grass flower leaf rain snow wind cloud star moon sun "
    "earth island lake beach forest garden field farm house wall roof floor bed lamp clock phone radio movie song "
    "music dance game ball team school teacher student doctor nurse farmer soldier artist writer singer friend "
    "brother sister mother father child baby woman man boy girl shirt shoe hat coat dress bag box cup plate knife "
    "spoon bottle key map ticket train bus car truck plane ship bridge tower castle church market store bank office "
    "hotel hospital library museum paint pencil chalk engine wheel battery computer camera screen button metal "
    "plastic rubber cotton silk rope chain honey cheese butter meat rice corn bean potato onion tomato lemon orange "
    "banana cherry coffee tea wine beer soup cake candy egg chicken cow pig sheep dog cat mouse bear wolf fox lion "
    "tiger snake frog bee spider"
).split())

NATURAL = Words(
    women=WOMEN, men=MEN, names=WOMEN + MEN, places={place: tuple(found.split()) for place, found in PLACES.items()},
    deeds=tuple(DEEDS), openings={"all": OPENINGS}, between=BETWEEN, clauses={"all": CLAUSES},
    before_deeds="This is what happened. ", ask_odd={"all": ASK_ODD}, capitals=CAPITALS, ask_capital=ASK_CAPITAL,
    kinds=KINDS, ask_kind=ASK_KIND, nouns=NOUNS, near=NEAR, others=OTHERS, verbs=VERBS, ask_verb=AGREE,
    ask_pronoun=PRONOUN, events=tuple(EVENTS), starts=two_digits(range(11, 19)), ask_year=YEARS, before_row="Words: ",
    row=ROW)
