"""Which pool answers what a recording sent to some model."""

from collections.abc import Iterable, Sequence

from amf.core.types import Worker
from amf.sim.scenario import ScenarioError, WorkloadSpec

ANY_OTHER = "*"


def pools_for(models: Iterable[str], spec: WorkloadSpec, fleet: Sequence[Worker]) -> dict[str, str]:
    """Pool by recorded model: what `[workload.models]` says, else the pool of that name, else the only pool, else what it
    says of "*". Raises ScenarioError that names the models nobody serves, and pools that are not there."""
    pools = tuple(dict.fromkeys(worker.pool for worker in fleet))
    said = dict(spec.models or ())
    absent = [f"{model!r} = {pool!r}" for model, pool in said.items() if pool not in pools]
    if absent:
        raise ScenarioError(
            f"[workload.models] {', '.join(absent)}: there is no such [[pool]]; the pools are {', '.join(pools)}"
        )
    chosen: dict[str, str] = {}
    unserved: list[str] = []
    for model in dict.fromkeys(models):
        if model in said:
            chosen[model] = said[model]
        elif model in pools:
            chosen[model] = model
        elif len(pools) == 1:
            chosen[model] = pools[0]
        elif ANY_OTHER in said:
            chosen[model] = said[ANY_OTHER]
        else:
            unserved.append(model)
    if unserved:
        lines = ", ".join(f'"{model}" = "{pools[0]}"' for model in unserved[:3])
        raise ScenarioError(
            f"{spec.path}: calls {', '.join(unserved)}, which no [[pool]] serves; say who answers for them in "
            f'[workload.models], for example {lines}, or "{ANY_OTHER}" = "{pools[0]}" for all others'
        )
    return chosen
