"""From an HTTP request to a `Call`: parse, recognise, hash. Nothing is remembered until everything has been checked, so a
request that is turned away changes no state. Tokenising, where a pool asks for it, is awaited here and nowhere else, and so is
the question where a prompt lies, where there is somebody to ask."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from secrets import token_hex

from amf.core.types import Call, CallKind, Prefix
from amf.engines.keys import namespace
from amf.gateway.body import Body, outgoing, parse_body
from amf.gateway.branches import GroupDecision
from amf.gateway.clock import Clock
from amf.gateway.derive import DerivedRuns, Trail, trail
from amf.gateway.graphs import Graphs
from amf.gateway.identity import Identity, read_identity
from amf.gateway.pools import Pool, Pools
from amf.gateway.prefixes import TextChain, chain_messages, chain_text, token_prefix
from amf.gateway.problem import bad_request
from amf.gateway.promises import CallSlo, Promises
from amf.gateway.runs import RunBook


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbound:
    """What the route knows of a request before it is read. `tenant` "" means: no keys are configured."""

    path: str
    kind: CallKind
    headers: Mapping[str, str]
    tenant: str = ""
    trusted: bool = False
    arrived_s: float = 0.0  # modelled


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A request that passed intake. `body` is what the engine gets; `prompt_bytes` 0 means: length known exactly."""

    call: Call
    body: bytes
    stream: bool
    session_id: str
    hop_id: str
    pool: Pool
    slo: CallSlo
    prompt_bytes: int = 0
    decisions: tuple[GroupDecision, ...] = ()  # of which the fabric is to hear before the call

    @property
    def public_run_id(self) -> str:
        return public_run_id(self.call.run_id, self.call.tenant)


def scoped_run_id(run_id: str, tenant: str) -> str:
    """Run ids are per tenant: nobody joins, reads or cancels another's run by its name."""
    return f"{tenant}/{run_id}" if tenant else run_id


def public_run_id(run_id: str, tenant: str) -> str:
    return run_id.removeprefix(f"{tenant}/") if tenant else run_id


class Intake:
    """`known_hops` tells which hops of a run a call may name as parents."""

    def __init__(
        self,
        pools: Pools,
        graphs: Graphs,
        clock: Clock,
        derived: DerivedRuns,
        known_hops: Callable[[str], Collection[str]],
        promises: Promises,
    ) -> None:
        self._pools = pools
        self._graphs = graphs
        self._clock = clock
        self._derived = derived
        self._known_hops = known_hops
        self._promises = promises
        self._book = RunBook()

    async def accept(self, inbound: Inbound, raw: bytes) -> Accepted:
        """Raises Problem, having changed nothing."""
        body = parse_body(raw)
        _check_shape(inbound, body)
        identity = read_identity(inbound.headers, body)
        pool = self._pools.resolve(body.model)
        salt = _salt(body, pool)
        chain = _chain(inbound.kind, body, salt)
        tokens = None
        if pool.encoder is not None and inbound.kind is CallKind.GENERATE and not _is_tokens(body.prompt):
            tokens = await pool.encoder.encode(raw)
        if tokens is not None:
            prefix, prompt_bytes = token_prefix(tokens, pool.block_tokens, salt), 0
        else:
            prefix, prompt_bytes = _prefix(body, chain, pool, salt)
        where = trail(body.messages or [], chain.boundaries, inbound.tenant, retried=_retried(inbound.headers))
        call, slo = self._call(inbound, body, identity, prefix, where, pool)
        inquirer = self._pools.inquirer
        if inquirer is not None and tokens is not None and not salt and await inquirer.look(pool.name, prefix, tokens):
            call, slo = self._call(inbound, body, identity, prefix, where, pool)  # others came in the meantime
        session = scoped_run_id(identity.session_id, inbound.tenant) if identity.session_id else ""
        hop_id = self._book.note(call.run_id, call.hop, session)
        if identity.names_graph:
            self._book.follow(call.run_id, identity.graph)
        self._derived.note(where, call.run_id, self._clock.real_s(inbound.arrived_s))
        accepted = Accepted(
            call=call,
            body=outgoing(raw, body, trusted=inbound.trusted),
            stream=bool(body.stream),
            session_id=identity.session_id or public_run_id(call.run_id, inbound.tenant),
            hop_id=hop_id,
            pool=pool,
            slo=slo,
            prompt_bytes=prompt_bytes,
            decisions=identity.decisions,
        )
        self._promises.note(call, slo, inbound.arrived_s)
        return accepted

    def _call(
        self, inbound: Inbound, body: Body, identity: Identity, prefix: Prefix, where: Trail, pool: Pool
    ) -> tuple[Call, CallSlo]:
        run_id = self._run_id(inbound, identity, where)
        self._check_parents(run_id, identity)
        self._check_graph(run_id, identity)
        whole_run = identity.final or (identity.source == "derived" and not body.messages)
        slo = self._promises.resolve(run_id, inbound.tenant, identity, inbound.arrived_s, whole_run)
        call = Call(
            call_id=f"req-{token_hex(10)}",
            run_id=run_id,
            pool=pool.name,
            kind=inbound.kind,
            prefix=prefix,
            max_output_tokens=body.max_output_tokens if inbound.kind is CallKind.GENERATE else 0,
            graph=identity.graph,
            hop=identity.hop,
            parents=identity.parents,
            branch=identity.branch,
            branch_hint=identity.branch_hint,
            deadline_s=slo.brings_s,
            slo_class=slo.slo_class,
            tenant=inbound.tenant,
            identity=identity.source,
            final=identity.final,
            streams=bool(body.stream),
        )
        return call, slo

    def _run_id(self, inbound: Inbound, identity: Identity, where: Trail) -> str:
        if identity.parent_session_id:
            known = self._book.run_of(scoped_run_id(identity.parent_session_id, inbound.tenant))
            if known is not None:
                return known
        if identity.run_id:
            return scoped_run_id(identity.run_id, inbound.tenant)
        known = self._derived.find(where, self._clock.real_s(inbound.arrived_s))
        return known or scoped_run_id(f"run-{token_hex(8)}", inbound.tenant)

    def _check_graph(self, run_id: str, identity: Identity) -> None:
        known = self._book.graph_of(run_id) if identity.names_graph else ""
        if known and known != identity.graph and self._known_hops(run_id):
            raise bad_request(
                f"`x-amf-pipeline` is `{identity.graph}`, but this run follows `{known}`: give each pipeline a run of its own.",
                code="contradictory_identity",
                param="x-amf-pipeline",
            )

    def _check_parents(self, run_id: str, identity: Identity) -> None:
        if not identity.parents:
            return
        declared, seen = self._graphs.hops(identity.graph), self._known_hops(run_id)
        unknown = [name for name in identity.parents if name not in seen and name not in declared]
        if unknown:
            raise bad_request(
                f"`x-amf-parents` names {', '.join(unknown)}, which this run has not seen: send the parents' calls first, "
                "or declare the graph at /amf/v1/graphs.",
                code="unknown_parents",
                param="x-amf-parents",
            )
        graph = self._graphs.get(identity.graph)
        if graph is None or identity.hop not in graph.by_name or graph.loops:
            return  # with loops any hop may come before any other
        later = [name for name in identity.parents if name in graph.by_name and not graph.precedes(name, identity.hop)]
        if later:
            raise bad_request(
                f"`x-amf-parents` names {', '.join(later)}, which does not come before {identity.hop} in the declared graph "
                f"{graph.name}: name hops that do, or declare the graph anew.",
                code="contradictory_identity",
                param="x-amf-parents",
            )


_REQUIRED = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/embeddings": "input",
}


def _check_shape(inbound: Inbound, body: Body) -> None:
    names = ("query", "documents") if inbound.kind is CallKind.RERANK else (_REQUIRED[inbound.path],)
    for name in names:
        if not getattr(body, name):
            raise bad_request(f"`{name}` is missing or empty.", code="missing_field", param=name)
    limit = body.max_output_tokens
    if limit is not None and limit < 0:
        raise bad_request("`max_tokens` is below 0.", code="invalid_field", param="max_tokens")


def _salt(body: Body, pool: Pool) -> str:
    """What keeps equal texts apart: the client's own salt, and the name of an adapter (any other name than the pool's), whose
    KV engines do not share with the base model's."""
    return namespace(body.cache_salt or "", "" if body.model in (None, pool.name) else body.model)


def _chain(kind: CallKind, body: Body, salt: str) -> TextChain:
    if kind is CallKind.RERANK:
        total = len(body.query or "") * len(body.documents or ()) + sum(len(bytes(d)) for d in body.documents or ())
        return TextChain(total_bytes=total)
    if body.messages and kind is CallKind.GENERATE:
        return chain_messages(body.messages, bytes(body.tools), salt)
    text = body.input if kind is CallKind.EMBED else body.prompt
    if isinstance(text, list) and len(text) == 1 and isinstance(text[0], str):
        text = text[0]
    if isinstance(text, str):
        return chain_text(text, salt)
    return TextChain(total_bytes=sum(len(item) for item in text or () if isinstance(item, str)))


def _prefix(body: Body, chain: TextChain, pool: Pool, salt: str) -> tuple[Prefix, int]:
    """The prefix, and the prompt's bytes where its tokens are only estimated."""
    text = body.prompt if body.prompt is not None else body.input
    if not (isinstance(text, list) and _is_tokens(text)):
        return chain.prefix(pool.bytes_per_token.value), chain.total_bytes
    prompts: list[Sequence[object]] = [item for item in text if isinstance(item, list)] or [text]
    try:
        prefixes = [token_prefix(each, pool.block_tokens, salt) for each in prompts]
    except ValueError as error:
        raise bad_request(
            f"The prompt is no list of token ids: {error}.", code="invalid_field", param="prompt"
        ) from error
    return (prefixes[0] if len(prefixes) == 1 else Prefix(total_tokens=sum(map(len, prompts)))), 0


def _is_tokens(text: object) -> bool:
    return isinstance(text, list) and bool(text) and not isinstance(text[0], str)


def _retried(headers: Mapping[str, str]) -> bool:
    return headers.get("x-stainless-retry-count", "0") not in ("", "0")
