"""Who plays a study: processes here, or a Ray cluster. Ray is imported only if it is asked for."""

from importlib import import_module

from amf.sim.scenario import ScenarioError
from amf.simulate.play import Players
from amf.simulate.pool import Processes


def players(jobs: int, ray_address: str | None) -> Players:
    """Raises ScenarioError if Ray is asked for and not installed."""
    if ray_address is None:
        return Processes(jobs)
    try:
        module = import_module("amf.simulate.ray_pool")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        raise ScenarioError(
            f"--ray {ray_address}: Ray is not installed; pip install 'agent-memory-fabric[ray]', or leave --ray out"
        ) from error
    cluster: Players = module.RayCluster(ray_address, jobs)
    return cluster
