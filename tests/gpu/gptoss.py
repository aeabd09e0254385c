"""transformers' GptOssForCausalLM made from a model image, for comparisons; the experts dequantised on the device.

An image is a safetensors file (core/image.h). Its experts are E2M1 codes with one E8M0 scale a block of 32: every value is a bf16
number, so that dequantising to bf16 or to fp32 gives the same weights. `shifts` multiplies parts of them by powers of two, which
is exact too; tests/gpu/logits does the same on its side. The model computes in bf16 or, after widen(), in fp32.
"""
import json
import mmap
import struct
import warnings

import torch
from transformers import DynamicCache, GptOssConfig, GptOssForCausalLM

warnings.filterwarnings("ignore", message="The given buffer is not writable")
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
DTYPES = {"BF16": torch.bfloat16, "U8": torch.uint8}
WINDOW, EXPERTS_USED = 128, 4  # of every shape in core/model.c


class Image:
    def __init__(self, path):
        self.file = open(path, "rb")
        self.map = mmap.mmap(self.file.fileno(), 0, prot=mmap.PROT_READ)
        (length,) = struct.unpack("<Q", self.map[:8])
        header = json.loads(self.map[8 : 8 + length])
        self.meta = header.pop("__metadata__")
        self.base, self.tensors = 8 + length, header

    def get(self, name):
        t = self.tensors[name]
        begin, end = t["data_offsets"]
        dtype = DTYPES[t["dtype"]]
        flat = torch.frombuffer(self.map, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=self.base + begin)
        return flat.reshape(t["shape"])

    def shape(self, name):
        return self.tensors[name]["shape"]


def config_of(image):
    vocab, hidden = image.shape("embed")
    heads = image.shape("layers.0.sinks")[0]
    layers = sum(name.endswith(".sinks") for name in image.tensors)
    return GptOssConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_local_experts=image.shape("layers.0.router.weight")[0],
        num_experts_per_tok=EXPERTS_USED,
        intermediate_size=image.shape("layers.0.down.blocks")[2] * 32,
        num_attention_heads=heads,
        num_key_value_heads=heads // 8,
        head_dim=64,
        sliding_window=WINDOW,
        layer_types=["full_attention" if i % 2 else "sliding_attention" for i in range(layers)],
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        attention_bias=True,
        tie_word_embeddings=False,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    )


def dequantise(blocks, scales):
    """MXFP4 to bf16, [E, K, rows] as transformers keeps it: low nibble first."""
    table = torch.tensor(E2M1, dtype=torch.bfloat16, device=blocks.device)
    values = torch.stack([table[(blocks & 15).int()], table[(blocks >> 4).int()]], -1).flatten(-2)
    values = torch.ldexp(values, scales.int().unsqueeze(-1) - 127)
    return values.flatten(-2).to(torch.bfloat16).transpose(1, 2).contiguous()


class Model:
    """`shifts` is a dict of what tests/gpu/logits calls NAME=SHIFT."""

    def __init__(self, path, device, shifts):
        image = Image(path)
        self.device, self.shifts = torch.device(device), {}
        config = config_of(image)
        config._attn_implementation = "eager"
        config._experts_implementation = "eager"
        with torch.device("meta"):
            model = GptOssForCausalLM(config)
        model = model.to(torch.bfloat16).to_empty(device=self.device).eval()
        model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(self.device)
        assert model.config._attn_implementation == "eager"
        self.model, self.left = model, set(model.state_dict())
        self.fill(image)
        assert not self.left, sorted(self.left)[:5]
        self.shift(shifts)

    def put(self, name, value):
        target = self.model.get_parameter(name)
        assert target.shape == value.shape, (name, target.shape, value.shape)
        target.data.copy_(value)
        self.left.remove(name)

    def fill(self, image):
        def get(name):
            return image.get(name).to(self.device)

        heads, layers = self.model.config.num_attention_heads, self.model.config.num_hidden_layers
        parts = {"q": 64 * heads, "k": 8 * heads, "v": 8 * heads}
        self.put("model.embed_tokens.weight", get("embed"))
        self.put("model.norm.weight", get("final_norm"))
        self.put("lm_head.weight", get("lm_head"))
        for i in range(layers):
            ours, theirs = f"layers.{i}.", f"model.layers.{i}."
            attention, experts = theirs + "self_attn.", theirs + "mlp.experts."
            for kind in "weight", "bias":
                for part, value in zip(parts, get(f"{ours}qkv.{kind}").split(list(parts.values()))):
                    self.put(f"{attention}{part}_proj.{kind}", value)
                self.put(f"{attention}o_proj.{kind}", get(f"{ours}out.{kind}"))
                self.put(f"{theirs}mlp.router.{kind}", get(f"{ours}router.{kind}"))
            self.put(attention + "sinks", get(ours + "sinks"))
            self.put(theirs + "input_layernorm.weight", get(ours + "attn_norm"))
            self.put(theirs + "post_attention_layernorm.weight", get(ours + "mlp_norm"))
            for our, their in ("up", "gate_up_proj"), ("down", "down_proj"):
                self.put(experts + their, dequantise(get(f"{ours}{our}.blocks"), get(f"{ours}{our}.scales")))
                self.put(f"{experts}{their}_bias", get(f"{ours}{our}.bias"))

    def shift(self, shifts):
        """From the shifts it has to these."""
        for layer in self.model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            parts = {
                "up": [mlp.experts.gate_up_proj, mlp.experts.gate_up_proj_bias],
                "down": [mlp.experts.down_proj, mlp.experts.down_proj_bias],
                "out": [attention.o_proj.weight, attention.o_proj.bias],
                "router": [mlp.router.weight, mlp.router.bias],
                "q": [attention.q_proj.weight, attention.q_proj.bias],
                "sinks": [attention.sinks],
            }
            for name, parameters in parts.items():
                for p in parameters:
                    p.data.mul_(2.0 ** (shifts.get(name, 0) - self.shifts.get(name, 0)))
        self.shifts = dict(shifts)

    def widen(self):
        """The same weights in fp32, and all arithmetic with them; one parameter at a time."""
        for p in self.model.parameters():
            p.data = p.data.float()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def narrow(self):
        """widen() undone: exact too."""
        for p in self.model.parameters():
            p.data = p.data.bfloat16()

    @torch.no_grad()
    def hidden(self, ids, chunk, draw=None):
        """What goes into lm_head at every position, [T, H], computed `chunk` tokens at a time. `draw`, a generator: the last bit of
        every element of the embedding is drawn anew (bf16), to see what such a change makes of the result."""
        cache, out = DynamicCache(config=self.model.config), []
        for begin in range(0, len(ids), chunk):
            part = self.model.model.embed_tokens(torch.tensor([ids[begin : begin + chunk]], device=self.device))
            if draw:
                change = (torch.rand(part.shape, generator=draw).to(self.device) - 0.5) * 2**-7
                part = (part.float() * (1 + change)).to(part.dtype)
            out.append(self.model.model(inputs_embeds=part, past_key_values=cache, use_cache=True).last_hidden_state[0])
        return torch.cat(out)

    @torch.no_grad()
    def logits(self, hidden):
        return self.model.lm_head(hidden).float()
