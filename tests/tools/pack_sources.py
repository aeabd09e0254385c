"""Turns a Hugging Face checkpoint folder into the other two layouts that nibble pack reads.

Independent of the product: numpy, safetensors and gguf only. Used by pack_test.py, and by hand:

    python3 tests/tools/pack_sources.py openai HF_FOLDER OUT_FOLDER
    python3 tests/tools/pack_sources.py gguf HF_FOLDER OUT.gguf [F32|F16|BF16|Q8_0]
"""
import json
import pathlib
import struct
import sys

import gguf
import ml_dtypes
import numpy as np
import safetensors.numpy

HF_TO_OPENAI = {
    "input_layernorm.weight": "attn.norm.scale",
    "self_attn.sinks": "attn.sinks",
    "self_attn.o_proj.weight": "attn.out.weight",
    "self_attn.o_proj.bias": "attn.out.bias",
    "post_attention_layernorm.weight": "mlp.norm.scale",
    "mlp.router.weight": "mlp.gate.weight",
    "mlp.router.bias": "mlp.gate.bias",
    "mlp.experts.gate_up_proj_blocks": "mlp.mlp1_weight.blocks",
    "mlp.experts.gate_up_proj_scales": "mlp.mlp1_weight.scales",
    "mlp.experts.gate_up_proj_bias": "mlp.mlp1_bias",
    "mlp.experts.down_proj_blocks": "mlp.mlp2_weight.blocks",
    "mlp.experts.down_proj_scales": "mlp.mlp2_weight.scales",
    "mlp.experts.down_proj_bias": "mlp.mlp2_bias",
}
HF_TO_GGUF = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.sinks": "attn_sinks.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.o_proj.bias": "attn_output.bias",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "mlp.router.weight": "ffn_gate_inp.weight",
    "mlp.router.bias": "ffn_gate_inp.bias",
    "mlp.experts.down_proj_bias": "ffn_down_exps.bias",
}
TYPES = {"BF16": np.uint16, "U8": np.uint8, "F8_E4M3": np.uint8, "F32": np.float32, "F16": np.float16}


def read_safetensors(path):
    """name -> (type, array); bf16 as its 16-bit codes. A reader of its own, on purpose."""
    data = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + at for at in entry["data_offsets"])
        array = np.frombuffer(data[begin:end], TYPES[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = (entry["dtype"], array)
    return tensors


def read_hf(folder):
    tensors = {}
    for shard in sorted(pathlib.Path(folder).glob("*.safetensors")):
        tensors.update(read_safetensors(shard))
    return tensors


def write_safetensors(tensors, path):
    arrays = {
        name: np.ascontiguousarray(array).view(ml_dtypes.bfloat16 if dtype == "BF16" else array.dtype)
        for name, (dtype, array) in tensors.items()
    }
    safetensors.numpy.save_file(arrays, str(path))


def openai_tensors(folder):
    source = read_hf(folder)
    out = {
        "embedding.weight": source["model.embed_tokens.weight"],
        "unembedding.weight": source["lm_head.weight"],
        "norm.scale": source["model.norm.weight"],
    }
    for name, value in source.items():
        if not name.startswith("model.layers."):
            continue
        layer, rest = name[len("model.layers.") :].split(".", 1)
        if rest in HF_TO_OPENAI:
            out[f"block.{layer}.{HF_TO_OPENAI[rest]}"] = value
        elif rest.startswith("self_attn.q_proj."):
            kind = rest.rsplit(".", 1)[1]
            parts = [source[f"model.layers.{layer}.self_attn.{p}_proj.{kind}"][1] for p in "qkv"]
            out[f"block.{layer}.attn.qkv.{kind}"] = ("BF16", np.concatenate(parts))
    return out


def to_openai(folder, out, tensors=None):
    folder, out = pathlib.Path(folder), pathlib.Path(out)
    out.mkdir()
    write_safetensors(tensors or openai_tensors(folder), out / "model.safetensors")
    hf = json.loads((folder / "config.json").read_text())
    config = {
        "num_hidden_layers": hf["num_hidden_layers"],
        "num_experts": hf["num_local_experts"],
        "experts_per_token": hf["num_experts_per_tok"],
        "vocab_size": hf["vocab_size"],
        "hidden_size": hf["hidden_size"],
        "intermediate_size": hf["intermediate_size"],
        "swiglu_limit": 7.0,
        "head_dim": 64,
        "num_attention_heads": hf["num_attention_heads"],
        "num_key_value_heads": hf["num_key_value_heads"],
        "sliding_window": 128,
        "initial_context_length": 4096,
        "rope_theta": 150000,
        "rope_scaling_factor": 32.0,
        "rope_ntk_alpha": 1,
        "rope_ntk_beta": 32,
    }
    (out / "config.json").write_text(json.dumps(config))
    (out / "dtypes.json").write_text("{}")


def gguf_experts(blocks, scales):
    """Checkpoint blocks [.., 16] (low nibble even) and scales [..] to GGUF bytes: scale, 16 codes."""
    elements = np.empty(blocks.shape[:-1] + (32,), np.uint8)
    elements[..., 0::2] = blocks & 15
    elements[..., 1::2] = blocks >> 4
    codes = elements[..., :16] | elements[..., 16:] << 4
    joined = np.concatenate([scales[..., None], codes], axis=-1)
    return joined.reshape(joined.shape[:-2] + (-1,))


def bf16_to_f32(codes):
    return (codes.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values):
    return values.astype(ml_dtypes.bfloat16).view(np.uint16)


def round_trip(codes, dense):
    """What a bf16 tensor is after being stored as `dense` and rounded back."""
    values = bf16_to_f32(codes)
    if dense == "F16":
        values = values.astype(np.float16).astype(np.float32)
    if dense == "Q8_0":
        kind = gguf.GGMLQuantizationType.Q8_0
        values = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
    return f32_to_bf16(values)


def add_dense(writer, name, codes, dense):
    """Matrices in the wanted type; vectors and the router in F32, as llama.cpp's converter does."""
    if codes.ndim == 1 or "ffn_gate_inp" in name or "exps.bias" in name:
        dense = "F32"
    values = bf16_to_f32(codes)
    kind = gguf.GGMLQuantizationType[dense]
    if dense == "F32":
        writer.add_tensor(name, values)
    elif dense == "F16":
        writer.add_tensor(name, values.astype(np.float16))
    elif dense == "BF16":
        writer.add_tensor(name, np.ascontiguousarray(codes).view(np.uint8), raw_dtype=kind)
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    return dense


def add_metadata(writer, folder):
    config = json.loads((folder / "config.json").read_text())
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(64)
    writer.add_value_length(64)
    writer.add_rope_freq_base(150000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(32.0)
    writer.add_rope_scaling_orig_ctx_len(4096)
    return config["vocab_size"]


def add_tokenizer(writer, folder, vocab_size):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [int(gguf.TokenType.UNUSED)] * vocab_size
    for text, index in tokenizer["model"]["vocab"].items():
        tokens[index], types[index] = text, int(gguf.TokenType.NORMAL)
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], int(gguf.TokenType.CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-4o")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    if merges:
        writer.add_token_merges(merges)


def add_tensors(writer, folder, dense):
    source = read_hf(folder)
    experts = gguf.GGMLQuantizationType.MXFP4
    used = {}
    for name, (_, array) in source.items():
        top = {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight",
               "model.norm.weight": "output_norm.weight"}
        if name in top:
            used[name] = add_dense(writer, top[name], array, dense)
            continue
        layer, rest = name[len("model.layers.") :].split(".", 1)
        blk = f"blk.{layer}."
        if rest in HF_TO_GGUF:
            used[name] = add_dense(writer, blk + HF_TO_GGUF[rest], array, dense)
        elif rest.endswith("gate_up_proj_bias"):
            used[name] = add_dense(writer, blk + "ffn_gate_exps.bias", array[:, 0::2], dense)
            add_dense(writer, blk + "ffn_up_exps.bias", array[:, 1::2], dense)
        elif rest.endswith("_blocks"):
            joined = gguf_experts(array, source[name.replace("_blocks", "_scales")][1])
            if "down_proj" in rest:
                writer.add_tensor(blk + "ffn_down_exps.weight", joined, raw_dtype=experts)
            else:
                writer.add_tensor(blk + "ffn_gate_exps.weight", np.ascontiguousarray(joined[:, 0::2]), raw_dtype=experts)
                writer.add_tensor(blk + "ffn_up_exps.weight", np.ascontiguousarray(joined[:, 1::2]), raw_dtype=experts)
    return used


def to_gguf(folder, out, dense="BF16", split_max_tensors=0, alignment=None):
    """Writes OUT; returns the type in which each dense Hugging Face tensor was stored."""
    folder = pathlib.Path(folder)
    writer = gguf.GGUFWriter(str(out), "gpt-oss", split_max_tensors=split_max_tensors)
    if alignment:
        writer.add_custom_alignment(alignment)
    add_tokenizer(writer, folder, add_metadata(writer, folder))
    used = add_tensors(writer, folder, dense)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return used


if __name__ == "__main__":
    if sys.argv[1] == "openai":
        to_openai(sys.argv[2], sys.argv[3])
    else:
        to_gguf(sys.argv[2], sys.argv[3], *(sys.argv[4:5] or ["BF16"]))
