"""What benchmarks/speculation.py asks a model: three texts whose answer repeats them, and sixteen essays."""

_CODE = """class Basket:
    def __init__(self, owner):
        self.owner = owner
        self.items = []

    def add(self, name, price, count=1):
        if count < 1:
            raise ValueError("count must be at least 1")
        self.items.append((name, price, count))

    def remove(self, name):
        self.items = [item for item in self.items if item[0] != name]

    def total(self):
        return sum(price * count for _, price, count in self.items)

    def receipt(self):
        lines = [f"{count} x {name}: {price:.2f}" for name, price, count in self.items]
        lines.append(f"total: {self.total():.2f}")
        return "\\n".join(lines)
"""

EDIT = f"""Rename the class Basket to Cart in this Python code. Change nothing else, and answer with the whole code.

```python
{_CODE}```"""

QUOTES = """Here is an article:

"The lighthouse at Cape Morrow was built in 1871 by a crew of forty men. Its lamp burned whale oil until 1889, when
kerosene took its place. The keeper, Elias Warren, lived there with his wife and four children for twenty-six years. In
the winter of 1894 a storm broke the windows of the lamp room, and Warren kept the light burning with a ship's lantern
for three nights. Eleven ships passed the cape in those nights, and none was lost. The lighthouse was made automatic in
1962. Today it is a museum, and some nine thousand people visit it every year."

Copy the article word for word, in quotation marks, one sentence a line."""

NOTES = """These are my notes:

- 09:15 call with the bank about the loan for the new workshop
- 10:40 delivery of twelve oak boards and four sheets of plywood
- 11:30 Mrs. Hartley comes to choose the handles for her kitchen
- 13:00 lunch with Thomas at the harbour
- 14:20 sharpen the plane irons and the large chisels
- 15:45 glue the drawers of the walnut desk
- 17:10 write the bill for the bookshelf of the school library

Write all the notes again as a numbered list, with the same words."""

_TOPICS = (
    "a storm at sea", "the first day at a new school", "why bread rises", "an old clockmaker", "the history of tea",
    "life in a desert town", "how bridges carry weight", "a dog that waits at a station", "the colours of autumn",
    "a letter from a soldier", "what makes music sad", "a market in the morning", "the moon landing", "a haunted inn",
    "learning to swim", "the work of bees",
)  # fmt: skip

ESSAYS = tuple(f"Write a long and vivid text about {topic}." for topic in _TOPICS)
