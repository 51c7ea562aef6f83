"""May this pipeline start now? Asked once, at its first hop; an admitted pipeline is never refused later."""

from amf.core.decisions import Because
from amf.core.policy.interface import Verdict, View
from amf.core.types import Call

_ADMITTED = Verdict(Because(reason="within bounds"))


def by_bounds(call: Call, view: View) -> Verdict:
    """Refuse what cannot end well: a deadline that has passed, or more live pipelines than the configured bound.

    The retry hint is the mean time until one of the live pipelines ends: their mean age so far, shared among them.
    """
    config = view.config
    if call.deadline_s is not None and call.deadline_s <= view.now_s:
        late_s = view.now_s - call.deadline_s
        return Verdict(
            Because(reason=f"the deadline passed {late_s:.3f} s before the pipeline began"), "deadline_exceeded"
        )
    live = len(view.pipelines)
    if live >= config.max_live_pipelines:
        ages_s = sum(view.now_s - pipeline.opened_s for pipeline in view.pipelines.live())
        retry_s = max(ages_s / live / live, 0.1)
        reason = f"{live} pipelines are live, the bound is max_live_pipelines={config.max_live_pipelines}"
        return Verdict(Because(reason=reason), "pipeline_admission_refused", retry_s)
    return _ADMITTED
