"""A reader of pages that fails on whatever is not well-formed."""

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """The words of a page, what it would load, its attributes as (tag, name, value), and its ids."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, source):
        super().__init__()
        self.open, self.ids, self.loads, self.refers, self.words, self.attributes = [], [], [], [], [], []
        self.feed(source)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))
        assert {name for name in self.refers if name} <= set(self.ids)

    @property
    def text(self):
        return " ".join(self.words)

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, *pair) for pair in attributes]
        for name, value in attributes:
            assert value is not None, (tag, name)
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "action", "data", "poster"):
                (self.refers if value.startswith("#") else self.loads).append(value.removeprefix("#"))
            if name in ("aria-labelledby", "aria-describedby"):
                self.refers.append(value)
            self.refers += re.findall(r"url\(#([^)]*)\)", value)
            assert not re.search(r"url\((?!#)", value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)
