"""Reads a few named samples out of a Prometheus text page, skipping all that it does not understand.

A page of a busy engine has hundreds of lines and is read every second from every worker, for three numbers: hence a
scan for the wanted names rather than a full parse.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_LABEL = re.compile(r'([A-Za-z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Sample:
    name: str
    labels: dict[str, str]
    value: float


class SampleReader:
    """Finds the samples of the given metric names."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        wanted = "|".join(re.escape(name) for name in self.names)
        self._line = re.compile(rf'^({wanted})(?:\{{((?:[^"}}]|"(?:[^"\\]|\\.)*")*)\}})?[ \t]+(\S+)', re.MULTILINE)

    def read(self, page: str) -> Iterator[Sample]:
        """Every readable sample of a wanted name, in page order."""
        for match in self._line.finditer(page):
            name, labels, value = match.groups()
            try:
                number = float(value)
            except ValueError:
                continue
            yield Sample(name, {key: _unescape(text) for key, text in _LABEL.findall(labels or "")}, number)


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: "\n" if match[1] == "n" else match[1], text) if "\\" in text else text


def ratio(value: float) -> float:
    """A share that an engine states, kept between 0 and 1."""
    return min(1.0, max(0.0, value))
