"""Tenants in a scenario: a flood of tight deadlines beside a modest tenant, with fair shares and without."""

from dataclasses import replace
from pathlib import Path

import pytest

from amf.core.policy import admission
from amf.core.policy.bundles import policies_named
from amf.sim.scenario import Scenario, ScenarioError, load_scenario, scenario_from_dict
from amf.sim.study import Case, play

EXAMPLE = Path(__file__).parents[2] / "examples" / "tenants.toml"
POOLS = [{"model": model, "kv_tokens": 60_000} for model in ("llama-3.3-70b", "qwen3-32b", "llama-3.1-8b")]
PARTS = [
    {"kind": "graph", "graph": "chain-3", "share": 8.0, "slo_s": 20, "tenant": "flood"},
    {"kind": "graph", "graph": "chain-3", "slo_s": 60, "tenant": "modest"},
]


def scenario(fabric: dict[str, object]) -> Scenario:
    workload = {"kind": "mix", "pipelines": 150, "load": 1.5, "seed": 8, "mix": PARTS}
    return scenario_from_dict({"workload": workload, "pool": POOLS, "fabric": fabric}, "s.toml")


def met(asked: Scenario, shared: bool = True) -> dict[str, float]:
    """The share of each tenant's pipelines that met their deadlines, if all are admitted: else most of a flood is refused, and
    nobody need share."""
    fabric = replace(policies_named("fabric"), admit=admission.by_bounds)
    bundle = fabric if shared else replace(fabric, share=None)
    outcome = play(asked, Case(policy="fabric", seed=asked.workload.seed, bundle=bundle), lambda done, total: None)
    tenants = {plan.pipeline_id: plan.tenant for plan in outcome.workload.pipelines}
    records = [(tenants[record.pipeline], record.met) for record in outcome.records.pipelines]
    return {
        tenant: sum(bool(kept) for other, kept in records if other == tenant)
        / sum(other == tenant for other, _ in records)
        for tenant in ("flood", "modest")
    }


def test_a_flood_does_not_take_everything():
    unshared, shared = met(scenario({}), shared=False), met(scenario({"fair_burst_tokens": 50_000}))
    assert shared["modest"] > unshared["modest"] + 0.1
    assert shared["flood"] > unshared["flood"] - 0.05, "the flood is late either way"
    assert met(scenario({"fair_burst_tokens": 10**12})) == unshared


def test_a_weight_in_a_scenario():
    loaded = load_scenario(EXAMPLE)
    assert dict(loaded.fabric) == {"tenant_weights": {"modest": 2.0}}
    light = met(scenario({"fair_burst_tokens": 20_000, "tenant_weights": {"modest": 0.05}}))
    heavy = met(scenario({"fair_burst_tokens": 20_000, "tenant_weights": {"modest": 4}}))
    assert heavy["modest"] > light["modest"] + 0.2


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"modst": 2.0}, ["'modst'", "[fabric.tenant_weights]", "'modest'"]),
        ({"modest": 0}, ["[fabric.tenant_weights] modest", "above 0"]),
        ({"modest": float("inf")}, ["modest", "above 0"]),
        ({"modest": "much"}, ["modest", "a number"]),
        (5, ["[fabric.tenant_weights]", "table"]),
    ],
)
def test_mistakes_in_weights_are_named(weights: object, words: list[str]):
    with pytest.raises(ScenarioError) as error:
        scenario({"tenant_weights": weights})
    assert all(word in str(error.value) for word in ("s.toml", *words)), str(error.value)


def test_weights_need_tenants():
    data = {"workload": {"kind": "coding-sessions"}, "fabric": {"tenant_weights": {"modest": 2.0}}}
    with pytest.raises(ScenarioError, match=r"s.toml: \[fabric.tenant_weights\] has nobody to weigh; give parts"):
        scenario_from_dict(data, "s.toml")
