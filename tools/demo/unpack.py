#!/usr/bin/env python3
"""Gives the checkpoint back that the demo's image was packed from: an image is a safetensors file with the same tensors.

    unpack.py etc/demo/demo.nib FOLDER      for transformers and eval.py; packing FOLDER again gives the same image
"""
import json
import pathlib
import sys

from safetensors.torch import load_file, save_file

from model import Config, configs

NAMES = {
    "attn_norm": "input_layernorm.weight", "sinks": "self_attn.sinks",
    "out.weight": "self_attn.o_proj.weight", "out.bias": "self_attn.o_proj.bias", "mlp_norm": "post_attention_layernorm.weight",
    "router.weight": "mlp.router.weight", "router.bias": "mlp.router.bias", "up.blocks": "mlp.experts.gate_up_proj_blocks",
    "up.scales": "mlp.experts.gate_up_proj_scales", "up.bias": "mlp.experts.gate_up_proj_bias",
    "down.blocks": "mlp.experts.down_proj_blocks", "down.scales": "mlp.experts.down_proj_scales",
    "down.bias": "mlp.experts.down_proj_bias",
}
ONCE = {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "lm_head": "lm_head.weight"}


def main():
    image, folder = load_file(sys.argv[1]), pathlib.Path(sys.argv[2])
    c, made = Config(), {}
    sizes = [c.heads * 64, c.kv_heads * 64, c.kv_heads * 64]
    for name, tensor in image.items():
        if name in ONCE:
            made[ONCE[name]] = tensor
        elif name.startswith("layers."):
            _, layer, rest = name.split(".", 2)
            at = f"model.layers.{layer}."
            if rest.startswith("qkv."):
                for n, part in zip("qkv", tensor.split(sizes)):
                    made[at + f"self_attn.{n}_proj.{rest[4:]}"] = part.contiguous()
            else:
                made[at + NAMES[rest]] = tensor
    folder.mkdir(parents=True, exist_ok=True)
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in zip(("config.json", "generation_config.json"), configs(c)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    (folder / "tokenizer.json").write_bytes((pathlib.Path(sys.argv[1]).parent / "tokenizer.json").read_bytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
