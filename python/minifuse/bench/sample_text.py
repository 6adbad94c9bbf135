"""Sentences of our own, for benchmarks and comparisons where no file is given."""

SENTENCES: tuple[str, ...] = (
    "The night train to the coast leaves at twenty past nine.",
    "She kept the letters in a tin box under the stairs.",
    "How do I change the oil filter of a small diesel engine?",
    "Rain fell on the tin roof all afternoon.",
    "The committee postponed its decision until the spring.",
    "A heron stood motionless at the edge of the pond.",
    "What is the boiling point of water at three thousand metres?",
    "He forgot his umbrella again, and again it rained.",
    "Fresh bread smells best just before dawn.",
    "The new bridge carries forty thousand cars a day.",
    "Please cancel my order and refund the shipping costs.",
    "Two violins and a cello played in the empty hall.",
    "The patient's fever dropped after the second dose.",
    "Her garden has more weeds than roses, and she likes it so.",
    "Interest rates were left unchanged for the third month.",
    "Can I use my card abroad without paying a fee?",
    "The old mill was turned into a library.",
    "Snow closed the pass for a week.",
    "Sort the numbers first; then the search is easy.",
    "The cat slept through the earthquake.",
    "A quick brown dog ran after the delivery van.",
    "The recipe asks for two eggs, but one will do.",
    "Nobody answered the door, so he left the parcel with a neighbour.",
    "The satellite lost contact with the ground for six minutes.",
    "Children learn a second language faster than adults do.",
    "The museum is free on the first Sunday of the month.",
    "My password was rejected although I had just changed it.",
    "Wolves have returned to the forests along the border.",
    "The lecture on thermodynamics was unexpectedly funny.",
    "Bees find their way home by the position of the sun.",
    "The contract ends automatically unless it is renewed.",
    "An apple a day costs more than it used to.",
    "The tide comes in faster here than a man can run.",
    "He plays chess by post with a friend in Norway.",
    "The museum's oldest map shows an island that does not exist.",
    "Turn left at the church and follow the river.",
    "Her first novel sold eleven copies, nine of them to her aunt.",
    "The battery lasts two days if the screen stays dark.",
    "Most of the city's lamps were still lit by gas.",
    "The auditors found nothing, which worried everybody.",
)


def paragraphs(count: int, sentences_each: int = 10) -> list[str]:
    """Longer texts: consecutive sentences joined, each paragraph starting one sentence further."""
    texts = []
    for start in range(count):
        picked = [SENTENCES[(start + i) % len(SENTENCES)] for i in range(sentences_each)]
        texts.append(" ".join(picked))
    return texts


def sentences(count: int) -> list[str]:
    """This many sentences; they repeat with a number in front, so that no two are equal."""
    return [
        SENTENCES[i % len(SENTENCES)]
        if i < len(SENTENCES)
        else f"{i // len(SENTENCES)}. {SENTENCES[i % len(SENTENCES)]}"
        for i in range(count)
    ]
