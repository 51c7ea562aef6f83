"""A study as data: scenarios x policies x seeds, and the goals that its figures are held against.

A *setting* is one scenario under a label, with the variants it is played under. A *variant* is a policy, perhaps with parts
or bounds of its own. Every variant of a setting meets the same pipelines under one seed, so that they may be compared in
pairs. A goal names what is compared; `goals.py` says how it is judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from amf.core.policy.interface import Policies
from amf.sim.memory.scenario import MemoryScenario
from amf.sim.scenario import Scenario

OURS = "fabric"
FIRST_SEED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user asked for. `traces`: recordings by kind, in order. `seeds`, `pipelines` None: the study's own numbers."""

    quick: bool = False
    seeds: int | None = None
    pipelines: int | None = None
    traces: Sequence[tuple[str, Path]] = ()

    def seed_range(self, full: int = 5, quick: int = 2) -> tuple[int, ...]:
        count = self.seeds or (quick if self.quick else full)
        return tuple(range(FIRST_SEED, FIRST_SEED + count))

    def recordings(self, kind: str) -> Sequence[Path]:
        return [path for each, path in self.traces if each == kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """`name` is what tables call it. `bundle`: the choices, where they are not those of the bundle of that name; `config`: keys
    of FabricConfig that are set otherwise than by default; `error_sigma`: how wrong its predictions are; `calibrated`: rows say
    how true what it states of remaining paths turned out (`calibration`). `speculation`: what clients do with attempts and
    guesses, where it is not what the scenario says."""

    name: str
    bundle: Policies | None = None
    config: tuple[tuple[str, float], ...] = ()
    error_sigma: float = 0.0
    calibrated: bool = False
    speculation: str = ""


def named(*policies: str) -> tuple[Variant, ...]:
    """Bundles as they are."""
    return tuple(Variant(name=policy) for policy in policies)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """`x`: where the setting lies on the study's axis, if it has one; settings of one `series` share a chart. The variants of a
    memory's scenario are its layouts, by name alone."""

    label: str
    scenario: Scenario | MemoryScenario
    variants: tuple[Variant, ...]
    x: float | None = None
    series: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """Several settings under one label, which goals may name as they do a setting: every figure is the mean over `of`, variant
    by variant and seed by seed. All of them play the same variants. `x` and `series`: as a setting's."""

    label: str
    of: tuple[str, ...]
    x: float | None = None
    series: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """`policy` over the strongest of `rivals` (all others if empty) in one figure of `sim/paired.py`, at least so much.
    `than`: the setting of the rivals, if it is another one."""

    name: str
    setting: str
    figure: str
    at_least: float
    policy: str = OURS
    rivals: tuple[str, ...] = ()
    than: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The mean of a figure (any dotted field of a row), at most, at least, or between the two; one of them is set."""

    name: str
    setting: str
    figure: str
    at_most: float | None = None
    at_least: float | None = None
    policy: str = OURS


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """A share (higher is better) of `policy` minus that of the best of `rivals` (all others if empty), at least so much: 0.03
    is three percentage points ahead, -0.02 two behind."""

    name: str
    setting: str
    figure: str
    at_least: float
    policy: str = OURS
    rivals: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaches:
    """How many times smaller the x is at which a figure of `policy` reaches `target` than that of the best of `rivals`, at
    least. `along`: the settings, or averages of them, with their x in ascending order; `setting`: what to call them."""

    name: str
    setting: str
    along: tuple[tuple[float, str], ...]
    figure: str
    target: float
    at_least: float
    rivals: tuple[str, ...]
    policy: str = OURS


Goal = Gain | Limit | Points | Reaches


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """`axis`: what `Setting.x` means; `drawn`: dotted fields drawn against it, or as bars without an axis. `measured`: rows
    carry what the simulation itself cost, which no two runs have in common."""

    name: str
    question: str
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    goals: tuple[Goal, ...] = ()
    averages: tuple[Average, ...] = ()
    axis: str = ""
    drawn: tuple[str, ...] = ("jct_s.mean", "stretch.p99", "ttft_s.mean", "hit_ratio")
    notes: tuple[str, ...] = field(default=())
    measured: bool = False
