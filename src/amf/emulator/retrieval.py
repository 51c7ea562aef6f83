"""POST /v1/embeddings and /rerank, /v1/rerank, /v2/rerank. Inputs go through the worker as requests without output.

An embedding hashes words into the dimensions (feature hashing: each word adds +1 or -1 at four places) and has length 1,
so texts that share words are near each other and a toy retriever finds what it should. A rerank score is the share of
the query's words that the document has.
"""

import base64
import re
import uuid
from typing import Any

import numpy as np
from aiohttp import web
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from amf.emulator.config import MAX_EMBEDDING_DIM
from amf.emulator.emulator import Emulator, Levers
from amf.emulator.errors import ApiError
from amf.emulator.output import Output
from amf.emulator.protocol import EmbeddingBody, RerankBody, parse
from amf.emulator.request import check_model, fits, read_inputs, read_levers
from amf.emulator.respond import send_json
from amf.emulator.routes import EMULATOR
from amf.emulator.ticket import Ticket
from amf.emulator.tokenizer import decode

_PLACES = 4
_NOTHING = Output(content=b"", shown="", finish_reason="stop")


async def embeddings(request: web.Request) -> web.StreamResponse:
    emulator = request.app[EMULATOR]
    body = parse(await request.read(), EmbeddingBody)
    check_model(emulator, body.model)
    inputs = read_inputs(body.input, "input")
    dim = emulator.config.embedding_dim if body.dimensions is None else body.dimensions
    if not 1 <= dim <= MAX_EMBEDDING_DIM:
        raise ApiError(400, f"dimensions must be between 1 and {MAX_EMBEDDING_DIM}", param="dimensions")
    if body.encoding_format not in (None, "float", "base64"):
        raise ApiError(400, "encoding_format must be float or base64", param="encoding_format")
    tickets = await _read_through(emulator, inputs, read_levers(request, emulator, body))
    data = [
        {"index": index, "object": "embedding", "embedding": _encoded(embed(decode(tokens), dim), body.encoding_format)}
        for index, tokens in enumerate(inputs)
    ]
    head = {"id": f"embd-{uuid.uuid4().hex}", "object": "list", "model": emulator.model}
    return await send_json(request, emulator, head | {"data": data, "usage": _usage(tickets)})


async def rerank(request: web.Request) -> web.StreamResponse:
    emulator = request.app[EMULATOR]
    body = parse(await request.read(), RerankBody)
    check_model(emulator, body.model)
    texts = [_document_text(document) for document in body.documents]
    if not texts:
        raise ApiError(400, "documents cannot be empty", param="documents")
    if body.top_n is not None and body.top_n < 0:
        raise ApiError(400, "top_n cannot be negative", param="top_n")
    pairs = read_inputs([body.query + "\n" + text for text in texts], "documents")
    tickets = await _read_through(emulator, pairs, read_levers(request, emulator, body))
    scores = [overlap(body.query, text) for text in texts]
    order = sorted(range(len(texts)), key=lambda index: (-scores[index], index))
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in order]
    for result in results if body.return_documents is not False else ():
        result["document"] = {"text": texts[result["index"]]}
    head = {"id": f"rerank-{uuid.uuid4().hex}", "model": emulator.model, "usage": _usage(tickets)}
    return await send_json(request, emulator, head | {"results": results[: body.top_n or None]})


def embed(text: str, dim: int) -> NDArray[np.float32]:
    """A unit vector of `dim` places."""
    vector = np.zeros(dim, dtype=np.float32)
    for word in _words(text):
        draws = np.frombuffer(xxh3_128_digest(word.encode()), dtype="<u4")
        np.add.at(vector, draws % dim, np.where(draws >> 31, 1.0, -1.0))
    norm = float(np.linalg.norm(vector))
    if norm == 0:
        vector[xxh3_64_intdigest(text.encode()) % dim] = norm = 1.0
    return vector / np.float32(norm)


def overlap(query: str, document: str) -> float:
    """Between 0 and 1: the share of the query's words that occur in the document."""
    wanted, found = set(_words(query)), set(_words(document))
    return round(len(wanted & found) / len(wanted), 6) if wanted else 0.0


async def _read_through(emulator: Emulator, inputs: list[bytes], levers: Levers) -> list[Ticket]:
    """Let the worker read every input. Raises ApiError if one is too long or the queue is full."""
    for tokens in inputs:
        fits(emulator, tokens)
    tickets = emulator.submit([(tokens, [_NOTHING]) for tokens in inputs], levers)
    await emulator.finish(tickets)
    return tickets


def _usage(tickets: list[Ticket]) -> dict[str, Any]:
    prompt = sum(ticket.prompt_tokens for ticket in tickets)
    cached = sum(ticket.cached_tokens for ticket in tickets)
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt,
        "completion_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _encoded(vector: NDArray[np.float32], form: str | None) -> list[float] | str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if form == "base64" else vector.tolist()


def _document_text(document: str | dict[str, Any]) -> str:
    text = document if isinstance(document, str) else document.get("text")
    if not isinstance(text, str):
        raise ApiError(400, "a document is a text or an object with a text", param="documents")
    return text


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
