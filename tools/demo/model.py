"""The gpt-oss architecture at the demo's size, for fast training on one GPU, and its export as a Hugging Face checkpoint.

Experts are fake-quantised to MXFP4 in every forward pass, with the rounding of core/mx_block.c (OCP MX 1.0, 6.3) and a
straight-through gradient; the other matrices are used in bf16. So the exported bits are the ones that were trained.
All experts run on all tokens as two matrix products; an expert that the router did not choose has the weight 0.
"""
import dataclasses
import json
import math
import pathlib

import torch
import torch.nn.functional as F
from torch import nn


@dataclasses.dataclass
class Config:
    layers: int = 8
    hidden: int = 256
    intermediate: int = 192
    heads: int = 8
    experts: int = 8
    used: int = 4
    vocab: int = 1536
    special_base: int = 1504
    window: int = 128
    head_dim: int = 64

    @property
    def kv_heads(self):
        return self.heads // 8


ALPHA, LIMIT, EPS = 1.702, 7.0, 1e-5
THETA, FACTOR, ORIGINAL, BETA_FAST, BETA_SLOW = 150000.0, 32.0, 4096, 32.0, 1.0


def power_of_two(exponent):
    """2^exponent for -126..127, exact on any device (ldexp goes through pow)."""
    return ((exponent.clamp(-126, 127) + 127) << 23).view(torch.float32)


def mxfp4_parts(w):
    """Blocks of 32 along the last dimension: E2M1 magnitudes with sign, and the exponent of each block's scale."""
    blocks = w.float().reshape(*w.shape[:-1], -1, 32)
    top = blocks.abs().amax(-1, keepdim=True)
    exponent = (torch.frexp(top).exponent - 3).clamp(min=-127)
    exponent = torch.where(top == 0, torch.full_like(exponent, -127), exponent)
    x = blocks * power_of_two(-exponent)
    a = x.abs()
    step = torch.where(a < 2, 0.5, torch.where(a < 4, 1.0, 2.0))
    q = (torch.round(a / step) * step).clamp(max=6.0)
    return torch.copysign(q, x), exponent


class Mxfp4(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        q, exponent = mxfp4_parts(w)
        return (q * power_of_two(exponent)).reshape(w.shape).to(torch.bfloat16)

    @staticmethod
    def backward(ctx, grad):
        return grad.float()


def yarn_tables(length, dim, device):
    """cos and sin [length, dim / 2], as transformers' yarn without truncation."""
    half = torch.arange(0, dim, 2, dtype=torch.float64)
    plain = 1.0 / THETA ** (half / dim)
    at = lambda turns: dim * math.log(ORIGINAL / (turns * 2 * math.pi)) / (2 * math.log(THETA))
    low, high = max(at(BETA_FAST), 0), min(at(BETA_SLOW), dim - 1)
    keep = 1 - ((torch.arange(dim // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    inverse = plain / FACTOR * (1 - keep) + plain * keep
    angle = torch.arange(length, dtype=torch.float64)[:, None] * inverse
    scale = 0.1 * math.log(FACTOR) + 1
    return (angle.cos() * scale).float().to(device), (angle.sin() * scale).float().to(device)


def norm(x, w):
    return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * w.to(torch.bfloat16).float()).to(torch.bfloat16)


def rotate(x, cos, sin):
    """x [N, heads, 64], cos and sin [N, 32]; the halves are rotated against each other."""
    a, b = x.float().chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(torch.bfloat16)


def before_attention(x, norm_w, qkv_w, qkv_b, cos, sin, heads, kv_heads):
    """x [N, H] fp32 to q [N, heads, 64], k and v [N, kv_heads, 64]."""
    n = x.shape[0]
    y = F.linear(norm(x, norm_w), qkv_w.to(torch.bfloat16), qkv_b.to(torch.bfloat16))
    q, k, v = y.split([heads * 64, kv_heads * 64, kv_heads * 64], -1)
    q, k = rotate(q.reshape(n, heads, 64), cos, sin), rotate(k.reshape(n, kv_heads, 64), cos, sin)
    return q, k, v.reshape(n, kv_heads, 64)


def sink_softmax(s, mask, sinks):
    """s [B, K, L, G, L] raw products, mask [L, L] added, sinks [K, G]: one more column, dropped afterwards."""
    s = s.float() * 0.125 + mask[:, None, :]
    sink = sinks.to(torch.bfloat16).float()[:, None, :, None]
    top = torch.maximum(s.amax(-1, keepdim=True), sink).detach()
    e = torch.exp(s - top)
    return (e / (e.sum(-1, keepdim=True) + torch.exp(sink - top))).to(torch.bfloat16)


def after_attention(x, a, out_w, out_b, norm_w, router_w, router_b, up_w, up_b, down_w, down_b, experts, used):
    """Output projection and the experts. Also the router's balance: mean probability and mean share of each expert."""
    x = x + F.linear(a, out_w.to(torch.bfloat16), out_b.to(torch.bfloat16)).float()
    t = norm(x, norm_w)
    logits = F.linear(t.float(), router_w.to(torch.bfloat16).float(), router_b.to(torch.bfloat16).float())
    index = torch.arange(experts, device=x.device)
    other, mine = logits[:, None, :], logits[:, :, None]
    rank = ((other > mine) | ((other == mine) & (index[None, None, :] < index[None, :, None]))).sum(-1)
    chosen = rank < used
    c = torch.softmax(logits.masked_fill(~chosen, float("-inf")), -1)
    gate, up = F.linear(t, up_w, up_b.to(torch.bfloat16)).float().chunk(2, -1)
    gate, up = gate.clamp(max=LIMIT), up.clamp(-LIMIT, LIMIT)
    h = gate * torch.sigmoid(ALPHA * gate) * (up + 1)
    h = (h.reshape(x.shape[0], experts, -1) * c[:, :, None]).to(torch.bfloat16).reshape(x.shape[0], -1)
    y = F.linear(h, down_w).float() + c @ down_b.to(torch.bfloat16).float()
    return x + y, torch.softmax(logits, -1).mean(0), chosen.float().mean(0)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        q, kv = c.heads * 64, c.kv_heads * 64
        init = lambda *shape, std=0.02: nn.Parameter(torch.randn(*shape) * std)
        zeros = lambda *shape: nn.Parameter(torch.zeros(*shape))
        deep = 1 / math.sqrt(2 * c.layers)
        self.attn_norm, self.mlp_norm = nn.Parameter(torch.ones(c.hidden)), nn.Parameter(torch.ones(c.hidden))
        self.qkv_w, self.qkv_b = init(q + 2 * kv, c.hidden, std=c.hidden**-0.5), zeros(q + 2 * kv)
        self.out_w, self.out_b = init(c.hidden, q, std=q**-0.5 * deep), zeros(c.hidden)
        self.sinks = zeros(c.kv_heads, 8)
        self.router_w, self.router_b = init(c.experts, c.hidden), zeros(c.experts)
        # [2, E, I, H]: gate, then up; [E, H, I]: quantised along the last dimension
        self.up_w, self.up_b = init(2, c.experts, c.intermediate, c.hidden, std=c.hidden**-0.5), zeros(2, c.experts, c.intermediate)
        self.down_w = init(c.experts, c.hidden, c.intermediate, std=c.intermediate**-0.5 * deep)
        self.down_b = zeros(c.experts, c.hidden)


class Model(nn.Module):
    def __init__(self, c, quantise=True):
        super().__init__()
        self.c, self.quantise = c, quantise
        self.embed = nn.Parameter(torch.randn(c.vocab, c.hidden) * 0.5)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.final_norm = nn.Parameter(torch.ones(c.hidden))
        self.head = nn.Parameter(torch.randn(c.vocab, c.hidden) * 0.02)
        self.functions = (before_attention, sink_softmax, after_attention)
        self.tables = {}

    def compile(self):
        import torch._dynamo

        torch._dynamo.config.cache_size_limit = 64
        self.functions = (torch.compile(before_attention, dynamic=False), torch.compile(sink_softmax, dynamic=True),
                          torch.compile(after_attention, dynamic=False))

    def experts(self, layer):
        as_used = Mxfp4.apply if self.quantise else lambda w: w.to(torch.bfloat16)
        up = as_used(layer.up_w).reshape(-1, self.c.hidden)
        down = as_used(layer.down_w).permute(1, 0, 2).reshape(self.c.hidden, -1)
        return up, down

    def tables_for(self, length, device):
        """Rotation tables and the two masks of a length."""
        if length not in self.tables:
            at = torch.arange(length, device=device)
            full = torch.zeros(length, length, device=device).masked_fill(at[None, :] > at[:, None], float("-inf"))
            near = full.masked_fill(at[None, :] <= at[:, None] - self.c.window, float("-inf"))
            self.tables[length] = (*yarn_tables(length, self.c.head_dim, device), near, full)
        return self.tables[length]

    def forward(self, tokens, fast=False):
        """tokens [B, L] to the last layer's normalised state [B * L, H] and the balance loss."""
        c, (b, l) = self.c, tokens.shape
        pre, softmax, post = self.functions if fast else (before_attention, sink_softmax, after_attention)
        cos, sin, near, full = self.tables_for(l, tokens.device)
        cos, sin = cos.repeat(b, 1), sin.repeat(b, 1)
        x = F.embedding(tokens.reshape(-1), self.embed.to(torch.bfloat16).float())
        balance = 0.0
        for i, layer in enumerate(self.layers):
            q, k, v = pre(x, layer.attn_norm, layer.qkv_w, layer.qkv_b, cos, sin, c.heads, c.kv_heads)
            g, kv = c.heads // c.kv_heads, c.kv_heads
            q = q.reshape(b, l, kv, g, 64).transpose(1, 2).reshape(b * kv, l * g, 64)
            k, v = (t.reshape(b, l, kv, 64).transpose(1, 2).reshape(b * kv, l, 64) for t in (k, v))
            s = torch.bmm(q, k.transpose(1, 2)).reshape(b, kv, l, g, l)
            p = softmax(s, near if i % 2 == 0 else full, layer.sinks)
            a = torch.bmm(p.reshape(b * kv, l * g, l), v).reshape(b, kv, l, g * 64).transpose(1, 2).reshape(b * l, -1)
            up, down = self.experts(layer)
            x, probability, share = post(x, a, layer.out_w, layer.out_b, layer.mlp_norm, layer.router_w, layer.router_b, up,
                                         layer.up_b.reshape(-1), down, layer.down_b, c.experts, c.used)
            balance = balance + c.experts / c.used * (probability * share).sum()
        return norm(x, self.final_norm), balance / c.layers

    def logits(self, state):
        return F.linear(state, self.head.to(torch.bfloat16))


# --- export ---


def pack_blocks(w):
    """MXFP4 of [.., rows, K]: blocks u8 [.., rows, K / 32, 16] (low nibble first) and scales u8 [.., rows, K / 32]."""
    q, exponent = mxfp4_parts(w)
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], device=w.device)
    codes = torch.bucketize(q.abs(), values).to(torch.uint8) | (torch.signbit(q).to(torch.uint8) << 3)
    return (codes[..., 0::2] | codes[..., 1::2] << 4).contiguous(), (exponent[..., 0] + 127).to(torch.uint8)


@torch.no_grad()
def checkpoint(model):
    """All tensors of the Hugging Face layout."""
    c, made = model.c, {}
    put = lambda name, t: made.__setitem__(name, t.detach().to(torch.bfloat16).cpu().contiguous())
    put("model.embed_tokens.weight", model.embed)
    put("model.norm.weight", model.final_norm)
    put("lm_head.weight", model.head)
    for i, layer in enumerate(model.layers):
        at = f"model.layers.{i}."
        put(at + "input_layernorm.weight", layer.attn_norm)
        put(at + "post_attention_layernorm.weight", layer.mlp_norm)
        sizes = [c.heads * 64, c.kv_heads * 64, c.kv_heads * 64]
        for n, w, b in zip("qkv", layer.qkv_w.split(sizes), layer.qkv_b.split(sizes)):
            put(at + f"self_attn.{n}_proj.weight", w)
            put(at + f"self_attn.{n}_proj.bias", b)
        put(at + "self_attn.o_proj.weight", layer.out_w)
        put(at + "self_attn.o_proj.bias", layer.out_b)
        put(at + "self_attn.sinks", layer.sinks.reshape(-1))
        put(at + "mlp.router.weight", layer.router_w)
        put(at + "mlp.router.bias", layer.router_b)
        up = layer.up_w.permute(1, 2, 0, 3).reshape(c.experts, 2 * c.intermediate, c.hidden)  # even rows gate, odd rows up
        put(at + "mlp.experts.gate_up_proj_bias", layer.up_b.permute(1, 2, 0).reshape(c.experts, -1))
        put(at + "mlp.experts.down_proj_bias", layer.down_b)
        for n, w in (("gate_up", up), ("down", layer.down_w)):
            blocks, scales = pack_blocks(w)
            made[at + f"mlp.experts.{n}_proj_blocks"] = blocks.cpu()
            made[at + f"mlp.experts.{n}_proj_scales"] = scales.cpu().contiguous()
    return made


def configs(c):
    base = c.special_base
    eos = [base + 4, base + 1, base + 14]
    kinds = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(c.layers)]
    config = {
        "architectures": ["GptOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.0, "eos_token_id": base + 4,
        "experts_per_token": c.used, "head_dim": 64, "hidden_act": "silu", "hidden_size": c.hidden,
        "initial_context_length": ORIGINAL, "initializer_range": 0.02, "intermediate_size": c.intermediate,
        "layer_types": kinds, "max_position_embeddings": 131072, "model_type": "gpt_oss", "num_attention_heads": c.heads,
        "num_experts_per_tok": c.used, "num_hidden_layers": c.layers, "num_key_value_heads": c.kv_heads,
        "num_local_experts": c.experts, "output_router_logits": False, "pad_token_id": base + 1,
        "quantization_config": {
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
            "quant_method": "mxfp4"},
        "rms_norm_eps": EPS,
        "rope_scaling": {"beta_fast": BETA_FAST, "beta_slow": BETA_SLOW, "factor": FACTOR,
                         "original_max_position_embeddings": ORIGINAL, "rope_type": "yarn", "truncate": False},
        "rope_theta": int(THETA), "router_aux_loss_coef": 0.9, "sliding_window": c.window, "swiglu_limit": LIMIT,
        "tie_word_embeddings": False, "use_cache": True, "vocab_size": c.vocab}
    generation = {"bos_token_id": base, "do_sample": True, "eos_token_id": eos, "pad_token_id": base + 1}
    return config, generation


def export(model, folder, tokenizer):
    from safetensors.torch import save_file

    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(checkpoint(model), folder / "model.safetensors", metadata={"format": "pt"})
    config, generation = configs(model.c)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    text = pathlib.Path(tokenizer).read_bytes()
    (folder / "tokenizer.json").write_bytes(text)
