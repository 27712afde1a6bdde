"""Writes the trained demo model as a GGUF file: matrices Q8_0, norms F32, vocabulary and chat template inside.

    python -m demo.export [--work FOLDER] [--out FILE]

Only reading model.pt needs torch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from demo.data import ITEMS_PATH
from demo.vocabulary import END, PADDING, PRE_TOKENIZER, TEXT_END

NAME = "Shale demo: the Python standard library"
CONTEXT_LENGTH = 2048
MODEL_PATH = Path(__file__).resolve().parent / "models" / "shale-demo.gguf"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write(
    path: Path, shape: Mapping[str, Any], vocabulary: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    """One GGUF file from the shape, the content of tokenizer.json and the float32 tensors by GGUF name."""
    writer = gguf.GGUFWriter(path, "llama")
    _add_shape(writer, shape)
    _add_vocabulary(writer, vocabulary)
    for name, values in tensors.items():
        if values.ndim == 1:
            writer.add_tensor(name, values.astype(np.float32))
        else:
            packed = quants.quantize(values.astype(np.float32), GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: gguf.GGUFWriter, shape: Mapping[str, Any]) -> None:
    writer.add_name(NAME)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(shape["width"])
    writer.add_block_count(shape["num_layers"])
    writer.add_feed_forward_length(shape["ffn_width"])
    writer.add_head_count(shape["num_heads"])
    writer.add_head_count_kv(shape["num_kv_heads"])
    writer.add_layer_norm_rms_eps(shape["norm_epsilon"])
    writer.add_rope_dimension_count(shape["width"] // shape["num_heads"])
    writer.add_rope_freq_base(shape["rope_base"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_vocab_size(shape["num_tokens"])


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Mapping[str, Any]) -> None:
    special = {token["content"]: token["id"] for token in vocabulary["added_tokens"]}
    ids = {**vocabulary["model"]["vocab"], **special}
    tokens = sorted(ids, key=ids.__getitem__)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in vocabulary["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(special[END])
    writer.add_bos_token_id(special[TEXT_END])
    writer.add_pad_token_id(special[PADDING])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def read_weights(path: Path) -> dict[str, NDArray[np.float32]]:
    """The tensors of model.pt as float32 arrays."""
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor.float().numpy() for name, tensor in state.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ITEMS_PATH.parent)
    parser.add_argument("--out", type=Path, default=MODEL_PATH)
    arguments = parser.parse_args()
    shape, vocabulary = (
        json.loads((arguments.work / name).read_text("utf-8")) for name in ("shape.json", "tokenizer.json")
    )
    write(arguments.out, shape, vocabulary, read_weights(arguments.work / "model.pt"))
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
