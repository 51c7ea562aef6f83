"""Request bodies of the routes, as far as the emulator reads them. Unknown fields are ignored, wrong types are a 400."""

from typing import Annotated, Any, TypeVar

import msgspec

from amf.emulator.errors import MALFORMED, ApiError

Body = TypeVar("Body")


class Function(msgspec.Struct, kw_only=True, omit_defaults=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, kw_only=True):
    function: Function
    type: str = "function"


class CalledFunction(msgspec.Struct, kw_only=True):
    name: str
    arguments: str | dict[str, Any] | None = ""


class ToolCall(msgspec.Struct, kw_only=True):
    function: CalledFunction
    id: str | None = None
    type: str = "function"


class Message(msgspec.Struct, kw_only=True):
    role: str
    content: str | list[str | dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class StreamOptions(msgspec.Struct, kw_only=True):
    """`continuous_usage_stats`: every event of the stream says how far it is."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class ModelBody(msgspec.Struct, kw_only=True):
    """What every route's body may say. `priority`: lower is sooner."""

    model: str | None = None
    priority: int | None = None
    cache_salt: str | None = None
    session_id: str | None = None
    request_id: str | None = None


class GenerationBody(ModelBody, kw_only=True):
    """`temperature` to `frequency_penalty` are checked and otherwise have no effect, but that 0 means one answer only."""

    max_tokens: int | None = None
    min_tokens: int | None = None
    n: int | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=4)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None


class ChatBody(GenerationBody, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None


class CompletionBody(GenerationBody, kw_only=True):
    prompt: str | list[str | int | list[int]] | None = None


class EmbeddingBody(ModelBody, kw_only=True):
    input: str | list[str | int | list[int]]
    encoding_format: str | None = "float"
    dimensions: int | None = None


class RerankBody(ModelBody, kw_only=True):
    query: str
    documents: list[str | dict[str, Any]]
    top_n: int | None = None
    return_documents: bool | None = True


class TokenizeBody(msgspec.Struct, kw_only=True):
    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True):
    tokens: list[int]
    model: str | None = None


def parse(body: bytes, shape: type[Body]) -> Body:
    """Raises ApiError (400) for malformed JSON, broken UTF-8, missing fields and wrong types."""
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        raise ApiError(400, str(error), kind=MALFORMED) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", kind=MALFORMED) from error
