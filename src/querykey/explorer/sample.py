"""Texts that ship with the page: the first one to look at, and what the switch is fitted to. Written for it."""

EXAMPLE = "My sister met the doctor at the station, and she told her that the train was late."

SAMPLE = """
Anna borrowed a book about rivers from the library and read it on the train. The river in the book was long and brown,
and nobody who lived beside it knew where it began. When she came home, her brother asked whether he might read it too,
but she had left it on her seat. They called the station; a man with a tired voice said that he would look for it.

In 1907 the town built a bridge of iron. It cost more than the school and the hospital together, so the mayor lost the
next election. A hundred years later people come from far away to take pictures of it. What is useless to one
generation may be what another one is proud of.

Which of the two numbers is larger, 3/7 or 4/9? Multiply: 3 times 9 is 27, and 4 times 7 is 28, so the second one is.
Nobody needs a calculator for that, but most of us reach for one. The price went from $12.50 to $14.00, a rise of 12 %.

"I never said she stole my money," he repeated, and put the stress on another word each time. The dog, which had been
asleep under the table, got up, turned around twice and lay down again. It did not care about stress. Outside, the rain
that everybody had been waiting for since April began to fall on roofs, fields and the parked cars of the neighbours.

Cells divide; each daughter keeps a copy of the genome. Water boils at 100 degrees, unless one is on a mountain. If the
window is open, close it before you leave, and please tell Peter that his sister called. She wants her ladder back. The
committee that was to decide about the new road met on Monday, argued until midnight, and decided to meet again.
"""

PYTHON = '''def attend(queries, keys, values):
    """Each position looks for what it needs."""
    scores = queries @ keys.T / len(keys[0]) ** 0.5
    weights = softmax(scores)
    return weights @ values


class Library:
    def __init__(self, books=None):
        self.books = {} if books is None else dict(books)
        self.lent = set()

    def lend(self, name, reader):
        if name not in self.books:
            raise KeyError(f"there is no book {name!r}")
        if name in self.lent:
            return False
        self.lent.add(name)
        reader.take(self.books[name])
        return True

    def __len__(self):
        return len(self.books) - len(self.lent)


for number in range(1, 21):
    if number % 3 == 0 and number % 5 == 0:
        print("both", number)
    elif number % 3 == 0:
        print("three", number)
    else:
        print(number, end=", " if number < 20 else "\\n")


def parse(line, separator=","):
    fields = [field.strip() for field in line.split(separator)]
    result = {}
    for field in fields:
        key, found, value = field.partition("=")
        if not found:
            raise ValueError("expected key=value, got " + field)
        result[key] = int(value) if value.isdigit() else value
    return result


if __name__ == "__main__":
    import sys

    library = Library({"rivers": 3, "bridges": 1})
    for argument in sys.argv[1:]:
        try:
            print(parse(argument))
        except ValueError as error:
            print(error, file=sys.stderr)
'''
