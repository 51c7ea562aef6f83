"""Time as the fabric sees it: seconds since the shell's start, never decreasing, times `scale` for fleets that run faster
than life. Everything the client sees is real time; everything the fabric sees is modelled time."""

import time


class Clock:
    def __init__(self, scale: float = 1.0) -> None:
        if scale <= 0:
            raise ValueError("the time scale must be above 0")
        self.scale = scale
        self._start_s = time.monotonic()

    def now_s(self) -> float:
        """Modelled seconds since the start."""
        return (time.monotonic() - self._start_s) * self.scale

    def real_s(self, modelled_s: float) -> float:
        return modelled_s / self.scale

    def modelled_s(self, real_s: float) -> float:
        return real_s * self.scale
