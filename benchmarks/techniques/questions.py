"""Questions with four answers, of which a model chooses one: which word has this definition?

python -m benchmarks.techniques.questions FOLDER writes `questions.json` from the files of WordNet 3.0 in FOLDER
(`/usr/share/wordnet` where Debian's package `wordnet-base` is installed). The same files give the same questions.

A question is the definition of a word in its most frequent sense, as WordNet's tagged texts have it. The wrong answers
are words of the same part of speech and subject, which are about as frequent and no relatives of the right one.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

FILE = Path(__file__).with_name("questions.json")
COUNT = 1200
_SEED = 0
_PARTS = {"noun": "1", "verb": "2", "adj": "3"}  # WordNet's numbers of the parts of speech
_NEAREST = 24  # the wrong answers are drawn from so many words of like frequency
_LETTERS = range(3, 11)
_WORDS = range(4, 15)  # of a definition


@dataclass(frozen=True)
class Question:
    definition: str
    choices: tuple[str, ...]
    answer: int  # the place of the right one

    @property
    def prompt(self) -> str:
        """What comes before the word, without a space between."""
        return f"Definition: {self.definition}\nWord:"


@dataclass(frozen=True)
class _Sense:
    """`subject`: WordNet's file of the word. `relatives`: the synsets it points to, and its own."""

    word: str
    definition: str
    subject: str
    count: int
    synset: str
    synonyms: frozenset[str]
    relatives: frozenset[str]


def load(file: Path = FILE) -> list[Question]:
    return [Question(text, tuple(choices), answer) for text, choices, answer in json.loads(file.read_text())]


def make(folder: Path, count: int = COUNT) -> list[Question]:
    """`count` questions, in a random order.

    Raises:
        FileNotFoundError: `folder` has no WordNet.
    """
    counts = dict(_first_senses(folder))
    senses = [sense for part in _PARTS for sense in _senses(folder, part, counts)]
    groups: dict[tuple[str, str], list[_Sense]] = defaultdict(list)
    for sense in sorted(senses, key=lambda sense: (sense.count, sense.word)):
        groups[sense.synset[0], sense.subject].append(sense)
    rng = random.Random(_SEED)
    made = [
        question
        for group in groups.values()
        for place in range(len(group))
        if (question := _question(group, place, rng)) is not None
    ]
    return rng.sample(made, count)


def _first_senses(folder: Path) -> Iterator[tuple[str, int]]:
    """The keys of words' most frequent senses, and how often they were tagged."""
    for line in (folder / "cntlist.rev").read_text(encoding="utf-8").splitlines():
        key, number, count = line.split()
        if number == "1":
            yield key, int(count)


def _senses(folder: Path, part: str, counts: dict[str, int]) -> Iterator[_Sense]:
    """Of the words of one part of speech, those whose definition can stand alone (the format is in wndb(5))."""
    for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):  # the licence, at the head of the file
            continue
        left, _, gloss = line.partition(" | ")
        offset, subject, _, size, *rest = left.split()
        pairs = [(rest[2 * i].lower(), rest[2 * i + 1]) for i in range(int(size, 16))]
        word, lex_id = pairs[0]
        key = f"{word}%{_PARTS[part]}:{subject}:{int(lex_id, 16):02}::"
        definition = " ".join(re.sub(r"\([^)]*\)", "", gloss.split(";")[0]).strip(" :").split())
        if key not in counts or not _fits(word, definition) or not rest[0].islower():
            continue
        pointers = rest[2 * len(pairs) + 1 :]
        related = {p[0] + o for o, p in re.findall(r"(\d{8}) ([nvasr])", " ".join(pointers))}
        own = part[0] + offset
        synonyms = frozenset(other for other, _ in pairs)
        yield _Sense(word, definition, subject, counts[key], own, synonyms, frozenset(related | {own}))


def _fits(word: str, definition: str) -> bool:
    """Whether the definition does not give the word away."""
    words = re.findall(r"[a-z]+", definition.lower())
    plain = word.isascii() and word.isalpha() and len(word) in _LETTERS
    return (
        plain and len(words) in _WORDS and not any(other[:4] == word[:4] for other in words) and '"' not in definition
    )


def _question(group: Sequence[_Sense], place: int, rng: random.Random) -> Question | None:
    """`group`: the senses of a part of speech and subject, by frequency."""
    right = group[place]
    start = max(0, min(place - _NEAREST // 2, len(group) - _NEAREST))
    others = [
        sense
        for sense in group[start : start + _NEAREST]
        if sense.word not in right.synonyms
        and sense.synset not in right.relatives
        and not sense.relatives & right.relatives
        and _fits(sense.word, right.definition)
    ]
    words = sorted({sense.word for sense in others})
    if len(words) < 3:
        return None
    choices = [right.word, *rng.sample(words, 3)]
    rng.shuffle(choices)
    return Question(right.definition, tuple(choices), choices.index(right.word))


def write(questions: Sequence[Question], file: Path) -> None:
    lines = ",\n".join(json.dumps(astuple(question)) for question in questions)
    file.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write(make(Path(sys.argv[1])), FILE)
