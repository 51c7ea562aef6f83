"""A model's dimensions, and reading them from a Hugging Face `config.json`.

Parameters are counted from the dimensions, since configs do not state them: embeddings, attention projections, MLPs
and experts; norms and biases (under 0.1 %) are left out. Published configs omit values equal to the defaults of their
class, so the defaults they rely on are repeated in `_CLASS_DEFAULTS`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

Config = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Dimensions that decide seconds and bytes.

    `head_dim` is the width of a query and key head, `value_head_dim` of a value head. `latent_dim` > 0 (MLA) is what is
    cached per token and layer instead of keys and values. `full_layers` attend to the whole context, `window_layers` to
    `window_tokens`; the remaining `layers` (linear attention) keep no per-token state. `expert_params` are all routed
    experts together. `active_params` are those a token is multiplied with; by the usual convention that includes the
    embedding table of a decoder. An `encoder` reads its input once, in both directions, and caches nothing.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    value_head_dim: int
    vocab: int
    total_params: float
    active_params: float
    full_layers: int
    window_layers: int = 0
    window_tokens: int = 0
    expert_params: float = 0.0
    experts: int = 0
    active_experts: int = 0
    latent_dim: int = 0
    encoder: bool = False


_ENCODERS: Final = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet", "modernbert", "nomic_bert")
_TWO_MATRIX_MLP: Final = (*_ENCODERS[:6], "gpt_neox", "phi", "starcoder2", "nemotron")
_TIED_BY_DEFAULT: Final = ("gemma", "cohere", *_ENCODERS)
_CLASS_DEFAULTS: Final[Mapping[str, Config]] = {
    "gemma2": {"sliding_window_pattern": 2},
    "gemma3_text": {
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window_pattern": 6,
    },
    "cohere2": {"sliding_window_pattern": 4},
}
_EXPERT_COUNT_KEYS: Final = ("n_routed_experts", "num_local_experts", "num_experts")
_ACTIVE_COUNT_KEYS: Final = ("num_experts_per_tok", "experts_per_token")


@dataclass(frozen=True, slots=True)
class _Reader:
    """Typed access to a config that names the model and the key when something is missing or of the wrong type."""

    name: str
    config: Config

    def whole(self, *keys: str, default: int | None = None) -> int:
        """The first of `keys` that is present and not null; else the default; else ValueError."""
        for key in keys:
            value = self.config.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{self.name}: '{key}' in config.json is {value!r}: expected a whole number >= 0")
            return value
        if default is None:
            raise ValueError(
                f"{self.name}: config.json has no '{keys[0]}': use the model's full config.json or add the key to it"
            )
        return default

    def listed(self, key: str) -> tuple[object, ...]:
        value = self.config.get(key)
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            raise ValueError(f"{self.name}: '{key}' in config.json is {value!r}: expected a list")
        return tuple(value)


def model_from_config(config: Config, name: str) -> ModelSpec:
    """Reads a parsed `config.json`: dense, MLA, experts, sliding window, encoder, or multimodal (its text part).

    Raises ValueError that names the key when one is missing or of the wrong type.
    """
    outer, text = config, config.get("text_config")
    if isinstance(text, Mapping):
        config = {**{key: outer[key] for key in ("tie_word_embeddings",) if key in outer}, **text}
    kind = str(config.get("model_type", ""))
    read = _Reader(name, {**_CLASS_DEFAULTS.get(kind, {}), **config})
    layers, hidden, vocab = read.whole("num_hidden_layers"), read.whole("hidden_size"), read.whole("vocab_size")
    heads = read.whole("num_attention_heads")
    if not (layers and hidden and vocab and heads):
        raise ValueError(f"{name}: layers, hidden size, vocabulary and heads in config.json must all be positive")
    tied = bool(read.config.get("tie_word_embeddings", kind.startswith(_TIED_BY_DEFAULT)))
    encoder = kind in _ENCODERS
    embedding = vocab * hidden * (1 if tied or encoder else 2)
    if encoder:
        embedding += hidden * read.whole("max_position_embeddings", default=0)
    attention = _Attention.read(read, hidden, heads)
    dense_mlp, expert_params, experts, active_experts = _mlps(read, layers, hidden, 2 if kind in _TWO_MATRIX_MLP else 3)
    total = embedding + layers * attention.params + dense_mlp + expert_params
    active_share = active_experts / experts if experts else 1.0
    full_layers, window_layers, window_tokens = _windows(read, layers)
    return ModelSpec(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        value_head_dim=attention.value_head_dim,
        vocab=vocab,
        total_params=float(total),
        active_params=total - (embedding if encoder else 0) - expert_params * (1 - active_share),
        full_layers=full_layers,
        window_layers=window_layers,
        window_tokens=window_tokens,
        expert_params=float(expert_params),
        experts=experts,
        active_experts=active_experts,
        latent_dim=attention.latent_dim,
        encoder=encoder,
    )


@dataclass(frozen=True, slots=True)
class _Attention:
    kv_heads: int
    head_dim: int
    value_head_dim: int
    latent_dim: int
    params: int  # of one layer

    @classmethod
    def read(cls, read: _Reader, hidden: int, heads: int) -> "_Attention":
        latent = read.whole("kv_lora_rank", default=0)
        if latent:
            return cls._latent(read, hidden, heads, latent)
        head_dim = read.whole("head_dim", default=hidden // heads)
        kv_heads = 1 if read.config.get("multi_query") is True else read.whole("num_key_value_heads", default=heads)
        return cls(kv_heads, head_dim, head_dim, 0, 2 * hidden * head_dim * (heads + kv_heads))

    @classmethod
    def _latent(cls, read: _Reader, hidden: int, heads: int, latent: int) -> "_Attention":
        """MLA: keys and values are projected down to `latent` numbers per token, plus one rotary key for all heads."""
        rope, plain, value = (read.whole(key) for key in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"))
        query_rank = read.whole("q_lora_rank", default=0)
        query_width = heads * (plain + rope)
        query = query_rank * (hidden + query_width) if query_rank else hidden * query_width
        down, up, out = hidden * (latent + rope), latent * heads * (plain + value), heads * value * hidden
        return cls(heads, plain + rope, value, latent + rope, query + down + up + out)


def _mlps(read: _Reader, layers: int, hidden: int, matrices: int) -> tuple[int, int, int, int]:
    """Parameters outside and inside routed experts, the experts of a layer and how many of them a token activates."""
    experts = read.whole(*_EXPERT_COUNT_KEYS, default=0)
    if experts <= 1:
        return layers * matrices * hidden * read.whole("intermediate_size"), 0, 0, 0
    active = read.whole(*_ACTIVE_COUNT_KEYS)
    if not 0 < active <= experts:
        raise ValueError(f"{read.name}: config.json activates {active} of {experts} experts: expected 1 to {experts}")
    width = read.whole("moe_intermediate_size", "intermediate_size")
    sparse = sum(_sparse_layers(read, layers))
    shared = read.whole("shared_expert_intermediate_size", default=width * read.whole("n_shared_experts", default=0))
    dense = sparse * hidden * (matrices * shared + experts)
    if sparse < layers:
        dense += (layers - sparse) * matrices * hidden * read.whole("intermediate_size")
    return dense, sparse * experts * matrices * hidden * width, experts, active


def _sparse_layers(read: _Reader, layers: int) -> Iterator[bool]:
    first = read.whole("first_k_dense_replace", default=0)
    step = max(1, read.whole("moe_layer_freq", "decoder_sparse_step", default=1))
    offset = 0 if "moe_layer_freq" in read.config else 1
    dense = read.listed("mlp_only_layers")
    return (layer >= first and (layer + offset) % step == 0 and layer not in dense for layer in range(layers))


def _windows(read: _Reader, layers: int) -> tuple[int, int, int]:
    """Layers that attend to everything, layers that attend to a window, and the window in tokens."""
    types = read.listed("layer_types")
    window = read.whole("sliding_window", default=0)
    if read.config.get("use_sliding_window") is False:
        window = 0
    if types:
        sliding = sum(kind == "sliding_attention" for kind in types) if window else 0
        chunked = 0 if sliding else sum(kind == "chunked_attention" for kind in types)
        linear = sum(kind == "linear_attention" for kind in types)
        if chunked:
            window = read.whole("attention_chunk_size")
        windowed = sliding + chunked
        return max(0, layers - windowed - linear), windowed, window if windowed else 0
    if not window:
        return layers, 0, 0
    pattern = read.whole("sliding_window_pattern", default=0)
    if pattern:
        return layers // pattern, layers - layers // pattern, window
    full = min(layers, read.whole("max_window_layers", default=0))
    return full, layers - full, window
