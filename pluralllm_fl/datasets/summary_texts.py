"""The words of the synthetic articles and their summaries. Every phrase was invented for them."""

from dataclasses import dataclass

Taste = tuple[float, float, float]  # for length, detail and a warm tone (below 0: against)


@dataclass(frozen=True, slots=True)
class Story:
    """What an article is about: who did what, why, what follows, and who makes use of it."""

    actor: str
    deed: str
    background: str
    outlook: str
    users: str


STORIES = (
    Story("library", "opened a new reading room", "the old building had been too small for years",
          "a children's corner is to follow", "readers"),
    Story("hospital", "bought a scanner for its emergency ward",
          "patients had been sent to the next city", "a second device is planned", "patients"),
    Story("tram company", "started a night line", "late workers had been left to walk home",
          "the line may be extended to the harbour", "passengers"),
    Story("school", "replaced its heating by heat pumps", "the boilers dated from the last century",
          "the roof will get solar panels", "pupils"),
    Story("swimming pool", "closed for repairs", "tiles had come off the walls",
          "swimmers will find new changing rooms", "swimmers"),
    Story("water works", "found a leak under the market square", "pressure had fallen all summer",
          "other pipes of that age will be checked", "households"),
    Story("museum", "returned three paintings to their owners",
          "a historian had traced where they came from", "more of the collection is under study",
          "visitors"),
    Story("football club", "moved its youth teams", "the old pitch was often flooded",
          "a stand for the parents will be built", "players"),
    Story("bakery", "was taken over by its employees", "the owner had looked for an heir in vain",
          "they want to open a second shop", "customers"),
    Story("park office", "planted a small forest on the old car park",
          "the quarter is the hottest in the city", "a pond will be dug", "walkers"),
    Story("fire brigade", "put the first electric engine into service",
          "the old engine had failed twice", "all others will be replaced in time", "firefighters"),
    Story("university", "let the public into its observatory", "it had been for students only",
          "lectures will be held on clear nights", "stargazers"),
)  # fmt: skip
PLACES = (
    "Aldermoor", "Brightwater", "Corvane", "Dunholt", "Eastmere", "Fallowfield", "Grenville Bay",
    "Harrowgate Hill", "Isenford", "Juniper Falls", "Kestrel Point", "Lorrimer", "Merrowdale",
    "Northwick", "Ottersby", "Penhallow",
)  # fmt: skip
PEOPLE = (
    "Maria Lindqvist", "Tomas Okoro", "Helen Brandt", "Yusuf Karim", "Ines Duarte", "Paul Novak",
    "Grace Adeyemi", "Kenji Mori", "Clara Fontaine", "Ravi Menon", "Olga Petrova", "Sam Whitlock",
)  # fmt: skip
# How warm a tone is -> what stands before and after a summary.
TONES = {
    1.0: (
        ("What wonderful news!", "Everybody is delighted."),
        ("Good things do happen!", "It is a joy, and a reason to celebrate."),
        ("Hooray!", "A lovely success for all who worked so hard."),
    ),
    0.0: (("", ""),),
    -1.0: (
        ("There is cause for alarm.", "Critics fear that it will end badly."),
        ("A worrying story.", "Many are angry, and the risks are ignored."),
        ("Bad news.", "It is a scandal, and nobody takes responsibility."),
    ),
}
# Who judges, and what they like on the whole; nobody dislikes details.
READERS: tuple[tuple[str, Taste], ...] = (
    ("Commuters", (-1.2, 0.3, 0.8)),
    ("Analysts", (0.6, 1.5, -0.6)),
    ("Grandparents", (1.0, 0.2, 1.4)),
    ("Night editors", (-0.9, 1.0, -0.4)),
)
