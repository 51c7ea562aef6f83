"""The built-in graphs by name: their pipelines, their declared form, their default fleets."""

from difflib import get_close_matches
from random import Random

from amf.sim.plan import PipelinePlan
from amf.sim.scenario import ScenarioError
from amf.sim.workload.chains import CHAINS
from amf.sim.workload.draft import Draft, static_runs
from amf.sim.workload.fans import FANS
from amf.sim.workload.speculation import SPECULATING
from amf.sim.workload.template import Template

GRAPHS: dict[str, Template] = {template.name: template for template in (*CHAINS, *FANS, *SPECULATING)}


def built_in(name: str) -> Template:
    """The graph of this name. Raises ScenarioError naming the nearest known one."""
    if name not in GRAPHS:
        near = get_close_matches(name, GRAPHS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(GRAPHS)}"
        raise ScenarioError(f"graph {name!r} is neither built in nor a .yaml, .toml or .json file; {hint}")
    return GRAPHS[name]


def draw_graph(template: Template, count: int, scale_tokens: float, rng: Random) -> tuple[PipelinePlan, ...]:
    """`count` pipelines. Each has its own stream of random numbers, so that the n-th is the same whatever the count."""
    statics = static_runs(template.statics, scale_tokens)
    plans: list[PipelinePlan] = []
    for number in range(count):
        draft = Draft(template.name, number, statics, scale_tokens, Random(rng.getrandbits(64)))
        template.draw(draft)
        plans.append(draft.pipeline())
    return tuple(plans)
