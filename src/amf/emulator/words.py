"""Filler text: plain words in a seeded order, exactly as many characters as asked for, all ASCII."""

import random

_TEXT = (
    "a about after again all also an and answer any as at be because before between both but by call can change check "
    "code come compare data day design each end every example fact fast few file find first follow for from function "
    "get give good graph group have help here how idea if in into is it just keep know large last later leave less let "
    "like line list long look make many may mean model more most move much must name near need never new next node not "
    "note now number of off often on one only open or order other our out over page part path place plan point read "
    "reason result right round rule run same say see set several should show side simple since small so some source "
    "start state step still such table take task test than that the their then there these thing this though through "
    "time to try turn two under until up use user value very view want way we well were what when where which while "
    "who why will with word work write year yet you"
)
_WORDS = _TEXT.split()


def filler(seed: int, length: int) -> str:
    """`length` characters, the same for the same seed; a shorter one is a prefix of a longer one but for its full stop."""
    rng = random.Random(seed)
    words: list[str] = []
    written = 0
    while written < length:
        batch = rng.choices(_WORDS, k=64)
        words += batch
        written += sum(map(len, batch)) + len(batch)
    text = " ".join(words)[:length].capitalize()
    return text[:-1] + "." if length > 1 else text
