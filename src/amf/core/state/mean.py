"""A mean that follows slow change."""

from amf.core.state.sketch import measure


class Mean:
    """Exact up to 1 / `floor` observations, exponentially weighted after."""

    __slots__ = ("count", "floor", "value")

    def __init__(self, value: float, floor: float = 0.02) -> None:
        self.value = value
        self.count = 0
        self.floor = floor

    def observe(self, value: float) -> None:
        self.count += 1
        self.value += (value - self.value) * max(1.0 / self.count, self.floor)

    def to_list(self) -> list[float]:
        return [self.value, self.count]

    @classmethod
    def from_list(cls, document: list[object]) -> "Mean":
        """Of a value and a count. Raises TypeError or ValueError if these are none."""
        value, count = document
        mean = cls(measure(value))
        mean.count = int(measure(count))
        return mean
