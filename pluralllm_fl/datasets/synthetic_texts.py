"""The words of the synthetic survey. Every phrase was invented for it.

Values are three numbers: openness (to change and difference), state (a strong public hand),
trust (in strangers and institutions). They say how much a group that holds these values likes
the thing.
"""

from dataclasses import dataclass

Values = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Topic:
    """A field of opinion: policies of two opposite directions, and goals to choose from."""

    name: str
    values: Values
    appeal: float  # how much everybody leans to `forward`
    forward: tuple[str, ...]  # liked by groups whose values point along `values`
    backward: tuple[str, ...]  # liked by the opposite groups
    goals: tuple[tuple[str, Values], ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """A question frame with its ordinal answers, the friendliest to the subject first."""

    template: str
    options: tuple[str, ...]
    stance: int  # -1: agreeing means disliking the subject
    openness: float  # how far the frame itself pulls answers to the friendly end


TOPICS = (
    Topic(
        "climate protection",
        (0.8, 0.9, 0.5),
        0.5,
        (
            "a tax on carbon emissions",
            "closing the last coal power stations",
            "public money for solar roofs",
            "a ban on new petrol cars",
        ),
        (
            "opening new coal mines",
            "cheaper diesel for drivers",
            "drilling for oil near the coast",
            "an end to limits on factory smoke",
        ),
        (
            ("Cutting emissions quickly", (1.0, 0.9, 0.4)),
            ("Keeping energy cheap", (-0.6, -0.5, -0.3)),
            ("Protecting jobs in mining and industry", (-0.9, 0.3, -0.2)),
            ("Inventing cleaner machines", (0.5, -0.7, 0.7)),
            ("Saving forests and rivers", (0.4, 0.4, 0.3)),
            ("Preparing for floods and heat", (-0.1, 0.7, -0.6)),
        ),
    ),
    Topic(
        "foreign trade",
        (0.6, -1.0, 0.6),
        0.1,
        (
            "lower duties on foreign goods",
            "a free trade treaty with the neighbouring countries",
            "letting foreign firms buy local companies",
            "selling state-owned factories to investors",
        ),
        (
            "higher duties on imported steel",
            "rules that public offices must buy local products",
            "limits on cheap foreign food",
            "state aid for struggling national firms",
        ),
        (
            ("Lower prices in the shops", (0.3, -0.7, 0.2)),
            ("Protecting local jobs", (-0.7, 0.8, -0.5)),
            ("Selling more abroad", (0.4, -0.8, 0.6)),
            ("Fair wages everywhere", (0.7, 0.8, 0.5)),
            ("Not depending on other countries", (-0.9, 0.2, -0.8)),
            ("Friendship between nations", (0.8, 0.0, 1.0)),
        ),
    ),
    Topic(
        "immigration",
        (1.0, 0.2, 0.9),
        -0.35,
        (
            "a quicker path to citizenship for newcomers",
            "language courses for refugees",
            "more work permits for foreign nurses",
            "voting rights for foreign residents",
        ),
        (
            "stricter checks at the border",
            "a yearly cap on migrants",
            "sending back people without papers",
            "fewer benefits for new arrivals",
        ),
        (
            ("Helping people in danger", (0.9, 0.6, 0.8)),
            ("Guarding the border", (-1.0, 0.2, -0.9)),
            ("Finding workers for empty posts", (0.4, -0.8, 0.4)),
            ("Keeping our customs", (-1.1, 0.0, -0.4)),
            ("Teaching newcomers the language", (0.2, 0.5, 0.3)),
            ("Spending less on arrivals", (-0.5, -0.8, -0.5)),
        ),
    ),
    Topic(
        "trust in institutions",
        (0.1, 0.5, 1.2),
        0.45,
        (
            "more powers for the national parliament",
            "courts that no politician can overrule",
            "public money for honest broadcasters",
            "foreign observers at our elections",
        ),
        (
            "leaders who ignore the courts",
            "a private militia in every town",
            "doubting every official statement",
            "refusing to answer the census",
        ),
        (
            ("Honest officials", (0.0, 0.3, 0.4)),
            ("A strong leader", (-0.9, 0.3, -0.8)),
            ("Independent courts", (0.6, 0.2, 0.9)),
            ("Less paperwork", (-0.1, -0.9, -0.2)),
            ("Free newspapers", (0.9, -0.2, 0.6)),
            ("More votes by the people", (0.4, 0.1, -0.7)),
        ),
    ),
    Topic(
        "religion in public life",
        (-1.3, 0.1, 0.2),
        -0.4,
        (
            "prayers at the start of the school day",
            "laws that follow the teachings of faith",
            "religious leaders speaking about politics",
            "closing shops on holy days",
        ),
        (
            "a strict wall between faith and the state",
            "teaching children about having no religion",
            "taxing places of worship",
            "jokes about religion on television",
        ),
        (
            ("Passing the faith to children", (-1.3, 0.0, 0.2)),
            ("Freedom to believe nothing", (1.2, -0.2, 0.1)),
            ("Peace between believers", (0.4, 0.1, 1.0)),
            ("Charity for the poor", (-0.4, 0.5, 0.5)),
            ("Old festivals and rites", (-0.7, 0.0, 0.0)),
            ("Equal treatment of all creeds", (0.9, 0.4, 0.6)),
        ),
    ),
    Topic(
        "new technology",
        (0.9, -0.5, 0.7),
        0.3,
        (
            "robots that care for the elderly",
            "driverless buses in the city",
            "doctors who ask artificial intelligence for advice",
            "digital money on the telephone",
        ),
        (
            "a pause on artificial intelligence",
            "banning cameras that recognise faces",
            "keeping cash for every purchase",
            "schools without any screens",
        ),
        (
            ("Faster inventions", (0.8, -0.9, 0.6)),
            ("Protecting private data", (0.2, 0.5, -0.9)),
            ("Keeping human jobs", (-0.8, 0.6, -0.5)),
            ("Better medicine", (0.3, 0.2, 0.6)),
            ("Safety tests before sale", (-0.1, 1.0, -0.1)),
            ("Access for every village", (0.2, 0.9, 0.3)),
        ),
    ),
    Topic(
        "women and men",
        (1.2, 0.5, 0.3),
        0.8,
        (
            "equal pay checked by law",
            "more women in company boards",
            "long leave for new fathers",
            "girls learning engineering",
        ),
        (
            "mothers staying at home with young children",
            "men deciding the family budget",
            "separate schools for boys and girls",
            "harder rules for divorce",
        ),
        (
            ("Equal pay", (0.9, 0.8, 0.3)),
            ("Strong marriages", (-1.1, 0.0, 0.1)),
            ("Free choice for each couple", (0.8, -0.8, 0.4)),
            ("Nurseries for all", (0.5, 1.1, 0.4)),
            ("Respect for mothers", (-0.7, 0.2, 0.0)),
            ("Safety on the street", (-0.1, 0.4, -0.8)),
        ),
    ),
    Topic(
        "health care",
        (0.2, 1.2, 0.4),
        0.7,
        (
            "free hospitals paid from taxes",
            "public control of medicine prices",
            "vaccination of all school children",
            "a tax on sugary drinks",
        ),
        (
            "private clinics for those who pay",
            "fees for every visit to a doctor",
            "leaving vaccination to each family",
            "cutting the health budget",
        ),
        (
            ("The same care for rich and poor", (0.4, 1.3, 0.4)),
            ("Shorter waiting times", (0.0, -0.6, -0.3)),
            ("Free choice of doctor", (0.2, -1.1, 0.1)),
            ("Healthy habits from childhood", (0.1, 0.2, 0.4)),
            ("Traditional remedies", (-1.0, -0.2, -0.6)),
            ("New cures from research", (0.8, 0.1, 0.8)),
        ),
    ),
    Topic(
        "taxes and welfare",
        (0.1, 1.4, 0.3),
        0.4,
        (
            "higher taxes on large fortunes",
            "a monthly income for every citizen",
            "longer support for the unemployed",
            "public housing for low earners",
        ),
        (
            "one low tax rate for everyone",
            "cuts in unemployment pay",
            "fewer rules for employers",
            "private pensions instead of public ones",
        ),
        (
            ("A smaller gap between rich and poor", (0.5, 1.4, 0.3)),
            ("Lower taxes", (-0.2, -1.3, -0.3)),
            ("Rewarding hard work", (-0.6, -0.9, 0.1)),
            ("Safe pensions", (-0.3, 0.8, -0.2)),
            ("Less public debt", (-0.3, -0.7, 0.3)),
            ("Help for young families", (-0.2, 0.6, 0.3)),
        ),
    ),
    Topic(
        "crime and punishment",
        (-0.9, 0.3, -0.9),
        0.45,
        (
            "longer prison terms for thieves",
            "more police patrols at night",
            "the death penalty for murder",
            "trying teenagers as adults",
        ),
        (
            "community service instead of prison",
            "legal sale of cannabis",
            "training and jobs for former prisoners",
            "tight limits on police powers",
        ),
        (
            ("Harder punishment", (-1.1, 0.0, -0.9)),
            ("Second chances", (0.9, 0.4, 0.9)),
            ("More police", (-0.6, 0.7, -0.3)),
            ("Ending poverty that breeds crime", (0.6, 1.1, 0.3)),
            ("Help for victims", (-0.1, 0.3, -0.2)),
            ("Letting citizens defend themselves", (-0.7, -1.1, -1.0)),
        ),
    ),
    Topic(
        "schools",
        (0.8, 0.3, 0.4),
        0.35,
        (
            "lessons about other cultures",
            "pupils who question their teachers",
            "mixed classes of strong and weak pupils",
            "free universities",
        ),
        (
            "strict discipline in the classroom",
            "school uniforms for all ages",
            "more lessons in national history",
            "early selection of the best pupils",
        ),
        (
            ("Thinking for oneself", (1.1, -0.1, 0.3)),
            ("Obedience and good manners", (-1.2, 0.2, -0.2)),
            ("Skills for a job", (-0.2, -0.8, 0.0)),
            ("Equal chances", (0.5, 1.0, 0.4)),
            ("Love of the country", (-1.0, 0.3, 0.2)),
            ("Working with others", (0.4, 0.3, 0.9)),
        ),
    ),
    Topic(
        "defence and foreign policy",
        (-0.5, 0.4, -1.0),
        -0.25,
        (
            "a larger army",
            "compulsory military service",
            "spying on foreign governments",
            "acting alone when the country is threatened",
        ),
        (
            "sending aid to poor countries",
            "obeying the rulings of world courts",
            "giving up the heaviest weapons",
            "peace talks with old enemies",
        ),
        (
            ("A strong army", (-0.9, 0.3, -0.9)),
            ("Agreements with all countries", (0.7, 0.2, 1.1)),
            ("Staying out of foreign quarrels", (-0.3, -0.3, -0.8)),
            ("Help for countries in need", (0.7, 0.7, 0.8)),
            ("Secure sea routes for commerce", (-0.1, -0.9, 0.0)),
            ("The honour of the nation", (-1.2, 0.1, -0.4)),
        ),
    ),
)

_AGREE = ("Strongly agree", "Agree", "Neither agree nor disagree", "Disagree", "Strongly disagree")
_SUPPORT = ("Fully support", "Rather support", "Undecided", "Rather oppose", "Fully oppose")
_GOOD = ("Very good", "Rather good", "Neither good nor bad", "Rather bad", "Very bad")
_VOTE = ("Certainly in favour", "Probably in favour", "Probably against", "Certainly against")
_WORRY = ("A great deal of worry", "Some worry", "Little worry", "No worry at all")
_IMPORTANT = ("Very important", "Rather important", "Not very important", "Not at all important")

SCALES = (
    Scale("Do you support {}?", _SUPPORT, 1, 0.0),
    Scale("Our country needs {}. Do you agree?", _AGREE, 1, 0.1),
    Scale("Is {} good or bad for people like you?", _GOOD, 1, 0.0),
    Scale("How would you vote on {}?", _VOTE, 1, -0.1),
    Scale("How much does {} worry you?", _WORRY, -1, 0.0),
    Scale("How important is {} to you?", _IMPORTANT, 1, 0.2),
    Scale("A party promises {}. Do you support that?", _SUPPORT, 1, 0.0),
    Scale("Our children will be grateful for {}. Do you agree?", _AGREE, 1, 0.1),
    Scale("Is {} good or bad for the country?", _GOOD, 1, 0.1),
    Scale("Would you vote in favour of {}?", _VOTE, 1, 0.0),
)

GOAL_FRAMES = (
    "Thinking about {}, which of these matters most to you?",
    "Which of these should the government work on first in matters of {}?",
    "When you hear a debate about {}, what do you care about above all?",
)

DECIDER_FRAME = "Who should have the most say over {}?"
DECIDERS: tuple[tuple[str, Values], ...] = (
    ("The national government", (-0.2, 1.0, 0.3)),
    ("Local councils", (0.2, 0.2, -0.1)),
    ("Private companies", (0.0, -1.3, 0.2)),
    ("Scientists and experts", (0.8, 0.3, 1.0)),
    ("Ordinary people by vote", (0.3, -0.1, -0.8)),
    ("Religious leaders", (-1.4, 0.0, -0.2)),
)

QUALIFIERS = (
    "",
    "Thinking about the next ten years: ",
    "Thinking about the place where you live: ",
    "Leaving party politics aside: ",
    "Even if it costs more money: ",
    "With young people in mind: ",
    "After all that happened last year: ",
)

REGIONS: tuple[tuple[str, Values], ...] = (
    ("North", (0.9, 0.8, 0.8)),
    ("South", (-1.0, 0.7, -0.4)),
    ("East", (-0.6, -0.9, 0.6)),
    ("West", (0.8, -0.9, -0.3)),
    ("Mid", (-0.2, 0.2, -0.9)),
)
PLACES = (
    *("land", "mark", "ford", "haven", "vale", "moor", "field", "shire"),
    *("gate", "bridge", "wood", "brook", "cliff", "bay", "port", "stead"),
    *("wick", "combe", "fell", "mere", "ridge", "strand", "burgh", "holm"),
    *("dale", "heath", "isle", "march", "reach", "water"),
)
