"""The tiny Llama of tiny_model.py as a GGUF file, for llama.cpp, which does not make weights up: random ones, from a seed.

python tiny_gguf.py MODEL_FOLDER FILE.gguf        in the environment where install.py puts llama.cpp's server
"""

import json
import sys
from pathlib import Path

import gguf
import numpy

SCALE = 0.05  # of the weights: large enough that a token's context decides what follows, small enough to stay finite


def write(model: Path, file: Path) -> None:
    shape = json.loads((model / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "llama")
    _describe(writer, shape)
    _tokens(writer, model)
    _weights(writer, shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: gguf.GGUFWriter, shape: dict) -> None:
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(shape["num_attention_heads"])
    writer.add_head_count_kv(shape["num_key_value_heads"])
    writer.add_rope_dimension_count(shape["head_dim"])
    writer.add_rope_freq_base(shape["rope_theta"])
    writer.add_layer_norm_rms_eps(shape["rms_norm_eps"])
    writer.add_vocab_size(shape["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def _tokens(writer: gguf.GGUFWriter, model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    settings = json.loads((model / "tokenizer_config.json").read_text())
    special = {token["id"] for token in tokenizer["added_tokens"]}
    tokens = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    kinds = (gguf.TokenType.CONTROL, gguf.TokenType.NORMAL)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([kinds[number not in special] for _, number in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(settings["chat_template"])


def _weights(writer: gguf.GGUFWriter, shape: dict) -> None:
    random = numpy.random.default_rng(0)
    hidden, inner, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    heads, kv_heads = (shape["head_dim"] * shape[name] for name in ("num_attention_heads", "num_key_value_heads"))
    matrices = {
        "attn_q": (heads, hidden),
        "attn_k": (kv_heads, hidden),
        "attn_v": (kv_heads, hidden),
        "attn_output": (hidden, heads),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }

    def add(name: str, size: tuple[int, int]) -> None:
        writer.add_tensor(f"{name}.weight", (SCALE * random.standard_normal(size)).astype(numpy.float16))

    def add_norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", numpy.ones(hidden, numpy.float32))

    add("token_embd", (vocabulary, hidden))
    add_norm("output_norm")
    for layer in range(shape["num_hidden_layers"]):
        for name, size in matrices.items():
            add(f"blk.{layer}.{name}", size)
        add_norm(f"blk.{layer}.attn_norm")
        add_norm(f"blk.{layer}.ffn_norm")


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
