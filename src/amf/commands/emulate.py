"""`amf emulate`: one emulated worker on the command line.

The options live in a dataclass, field by field; the command's signature is made from it, so that they are said once.
"""

import asyncio
import dataclasses
import errno
import inspect
import sys
from typing import Annotated, Any, Literal

import typer
import zmq

from amf.emulator import Emulator, EmulatorConfig, Faults, serve

if sys.platform == "win32":
    _new_loop = asyncio.new_event_loop
else:
    import uvloop

    _new_loop = uvloop.new_event_loop

_MISUSE = 2
_FAULTS = "Faults (all seeded)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmulateOptions:
    """Names and units are the engine's where it has the option too."""

    port: Annotated[int, typer.Option(help="HTTP port; 0 takes a free one.", min=0, max=65535)] = 9000
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1"
    model: Annotated[str, typer.Option(help="A preset's name or the path of a Hugging Face config.json.")] = (
        "llama-3.1-8b"
    )
    served_model_name: Annotated[str | None, typer.Option(help="The model's name in the API.")] = None
    gpu: Annotated[str, typer.Option(help="h100, h200, b200, a100 or l40s.")] = "h200"
    tensor_parallel: Annotated[int, typer.Option(help="GPUs of this worker.", min=1)] = 1
    weights: Annotated[str, typer.Option(help="Weight format: bf16, fp16, fp8, int4 or mxfp4.")] = "fp8"
    kv: Annotated[str, typer.Option(help="KV cache format: bf16, fp16 or fp8.")] = "fp8"
    kv_tokens: Annotated[int | None, typer.Option(help="KV memory; default: what fits beside the weights.")] = None
    block_size: Annotated[int, typer.Option(help="Tokens in a KV block.", min=1)] = 16
    max_num_seqs: Annotated[int, typer.Option(help="Sequences in a batch at most.", min=1)] = 256
    max_num_batched_tokens: Annotated[int, typer.Option(help="Tokens in an iteration at most.", min=1)] = 2048
    max_model_len: Annotated[
        int | None, typer.Option(help="Prompt and output tokens at most. Default: what fits in the KV memory.", min=2)
    ] = None
    scheduling_policy: Annotated[Literal["fcfs", "priority"], typer.Option(help="priority: lower is sooner.")] = "fcfs"
    enable_force_include_usage: Annotated[bool, typer.Option(help="Every stream tells its usage.")] = False
    max_num_queued_reqs: Annotated[int | None, typer.Option(help="More waiting requests than this get a 503.")] = None
    time_scale: Annotated[float, typer.Option(help="How many times faster than life.")] = 1.0
    seed: Annotated[int, typer.Option(help="Of output and faults.")] = 0
    flush_ms: Annotated[float, typer.Option(help="A stream writes at most this often, real milliseconds.")] = 10.0
    embedding_dim: Annotated[int, typer.Option(help="Length of embeddings.", min=1)] = 256
    kv_events_port: Annotated[
        int | None, typer.Option(help="Publish KV events over ZMQ here, replay on the next port; 0 takes free ones.")
    ] = None
    evict_silently: Annotated[
        float, typer.Option(help="Lose so many cached tokens per second without an event.", rich_help_panel=_FAULTS)
    ] = 0.0
    drop_events: Annotated[
        float, typer.Option(help="Probability that a batch of KV events is lost.", rich_help_panel=_FAULTS)
    ] = 0.0
    die_after: Annotated[
        float | None, typer.Option(help="Die in mid-stream after so many real seconds.", rich_help_panel=_FAULTS)
    ] = None
    die_after_tokens: Annotated[
        int | None, typer.Option(help="Die in mid-stream after so many generated tokens.", rich_help_panel=_FAULTS)
    ] = None
    slow: Annotated[float, typer.Option(help="Take so many times as long.", rich_help_panel=_FAULTS)] = 1.0
    stall_after: Annotated[
        float | None,
        typer.Option(help="After so many real seconds accept, but never answer.", rich_help_panel=_FAULTS),
    ] = None
    garbage: Annotated[
        float, typer.Option(help="Probability that a response is cut off or not JSON.", rich_help_panel=_FAULTS)
    ] = 0.0

    def config(self) -> EmulatorConfig:
        """Raises ValueError for values that contradict each other or are out of range."""
        return EmulatorConfig(
            model=self.model,
            served_name=self.served_model_name,
            gpu=self.gpu,
            tensor_parallel=self.tensor_parallel,
            weights=self.weights,
            kv=self.kv,
            kv_tokens=self.kv_tokens,
            block_tokens=self.block_size,
            max_running=self.max_num_seqs,
            token_budget=self.max_num_batched_tokens,
            max_model_tokens=self.max_model_len,
            scheduling=self.scheduling_policy,
            force_usage=self.enable_force_include_usage,
            max_waiting=self.max_num_queued_reqs,
            time_scale=self.time_scale,
            seed=self.seed,
            kv_events_port=self.kv_events_port,
            host=self.host,
            port=self.port,
            flush_ms=self.flush_ms,
            embedding_dim=self.embedding_dim,
            faults=Faults(
                evict_silently_tokens_per_s=self.evict_silently,
                drop_events=self.drop_events,
                die_after_s=self.die_after,
                die_after_tokens=self.die_after_tokens,
                slow=self.slow,
                stall_after_s=self.stall_after,
                garbage=self.garbage,
            ),
        )


def emulate(**options: Any) -> None:
    """Run one emulated worker: a simulated engine behind vLLM's wire protocol, without a GPU.

    Example: amf emulate --port 9001 --model llama-3.3-70b --gpu h200 --time-scale 10 --kv-events-port 5557
    """
    try:
        config = EmulateOptions(**options).config()
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            runner.run(serve(config, _announce))
    except (ValueError, OSError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        _refuse(f"port {options['port']} on {options['host']} is in use" if taken else str(error))
    except zmq.ZMQError as error:
        taken = error.errno == errno.EADDRINUSE
        _refuse(f"the KV event ports from {options['kv_events_port']} are in use" if taken else str(error))


emulate.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in dataclasses.fields(EmulateOptions)
    ]
)
emulate.__annotations__ = {field.name: field.type for field in dataclasses.fields(EmulateOptions)}


def _announce(emulator: Emulator) -> None:
    config, worker = emulator.config, emulator.config.worker
    events = f", KV events on {emulator.kv_endpoint}" if emulator.kv_endpoint else ""
    print(
        f"amf emulate: serving {emulator.model} on {emulator.url} ({config.tensor_parallel} x {config.gpu}, "
        f"{worker.kv_tokens:,} KV tokens, time scale {config.time_scale:g}{events})",
        flush=True,
    )


def _refuse(message: str) -> None:
    typer.echo(f"amf emulate: {message}", err=True)
    raise typer.Exit(_MISUSE)
