"""A float64 numpy forward of Llama-shaped decoders, written from the papers and the file formats alone: the independent
side of logits_parity.py. It keeps GGUF's interleaved rotation as it is in the file instead of re-ordering rows."""
import hashlib
import json
import math
import pathlib

import numpy as np


class Model:
    """config: plain dict in Hugging Face's words. weights: name -> float64 array [out, in] or [n], Hugging Face's names."""

    def __init__(self, config, weights, interleaved=False, freq_factors=None):
        self.c = config
        self.w = weights
        self.interleaved = interleaved
        self.inv_freq, self.attention_factor = inverse_frequencies(config)
        if freq_factors is not None:
            self.inv_freq = self.inv_freq / freq_factors

    def rotate(self, x, positions):
        """x [n, heads, d]"""
        angle = positions[:, None, None] * self.inv_freq
        cos, sin = np.cos(angle) * self.attention_factor, np.sin(angle) * self.attention_factor
        half = x.shape[-1] // 2
        a, b = (x[..., 0::2], x[..., 1::2]) if self.interleaved else (x[..., :half], x[..., half:])
        out = np.empty_like(x)
        first, second = a * cos - b * sin, b * cos + a * sin
        if self.interleaved:
            out[..., 0::2], out[..., 1::2] = first, second
        else:
            out[..., :half], out[..., half:] = first, second
        return out

    def norm(self, x, weight):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.c["rms_norm_eps"]) * weight

    def linear(self, x, name):
        y = x @ self.w[name + ".weight"].T
        bias = self.w.get(name + ".bias")
        return y if bias is None else y + bias

    def forward(self, caches, spans, tokens, positions):
        """caches: per sequence {layer: [k, v]}; spans: per sequence its slice of tokens. Returns logits [n, vocab]."""
        c = self.c
        heads, kv_heads, d = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        positions = np.asarray(positions)
        x = self.w["model.embed_tokens.weight"][np.asarray(tokens)]
        for layer in range(c["num_hidden_layers"]):
            p = f"model.layers.{layer}."
            h = self.norm(x, self.w[p + "input_layernorm.weight"])
            q = self.linear(h, p + "self_attn.q_proj").reshape(-1, heads, d)
            k = self.linear(h, p + "self_attn.k_proj").reshape(-1, kv_heads, d)
            v = self.linear(h, p + "self_attn.v_proj").reshape(-1, kv_heads, d)
            if p + "self_attn.q_norm.weight" in self.w:
                q = self.norm(q, self.w[p + "self_attn.q_norm.weight"])
                k = self.norm(k, self.w[p + "self_attn.k_norm.weight"])
            q, k = self.rotate(q, positions), self.rotate(k, positions)
            mixed = np.empty((len(tokens), heads * d))
            for cache, span in zip(caches, spans):
                if layer in cache:
                    cache[layer] = [np.concatenate([cache[layer][0], k[span]]), np.concatenate([cache[layer][1], v[span]])]
                else:
                    cache[layer] = [k[span], v[span]]
                mixed[span] = attend(q[span], *cache[layer], positions[span], c.get("sliding_window"))
            x = x + self.linear(mixed, p + "self_attn.o_proj")
            h = self.norm(x, self.w[p + "post_attention_layernorm.weight"])
            gate = self.linear(h, p + "mlp.gate_proj")
            x = x + self.linear(gate / (1 + np.exp(-gate)) * self.linear(h, p + "mlp.up_proj"), p + "mlp.down_proj")
        x = self.norm(x, self.w["model.norm.weight"])
        return x @ self.w.get("lm_head.weight", self.w["model.embed_tokens.weight"]).T

    def run(self, prompts, n):
        """Logits of every prompt position, and n greedy tokens behind each prompt; all sequences run together."""
        caches, ends = [{} for _ in prompts], np.cumsum([len(prompt) for prompt in prompts])
        spans = [slice(end - len(prompt), end) for prompt, end in zip(prompts, ends)]
        prompt_logits = self.forward(caches, spans, sum(prompts, []), sum((list(range(len(p))) for p in prompts), []))
        out = [[int(np.argmax(prompt_logits[end - 1]))] for end in ends]
        spans = [slice(i, i + 1) for i in range(len(prompts))]
        for step in range(1, n):
            positions = [len(prompt) + step - 1 for prompt in prompts]
            logits = self.forward(caches, spans, [o[-1] for o in out], positions)
            for o, row in zip(out, logits):
                o.append(int(np.argmax(row)))
        return prompt_logits, out


def attend(q, k, v, positions, window):
    """q [t, heads, d], k and v [context, kv_heads, d]; causal."""
    t, heads, d = q.shape
    group = heads // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("thd,shd->hts", q, k) / math.sqrt(d)
    key_positions = np.arange(len(k))
    hidden = key_positions[None, :] > positions[:, None]
    if window:
        hidden |= key_positions[None, :] <= positions[:, None] - window
    scores[:, hidden] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hts,shd->thd", weights, v).reshape(t, heads * d)


def inverse_frequencies(c):
    """Inverse frequencies [d/2] and the factor on cosines and sines, for each rope_scaling."""
    d, base = c["head_dim"], c["rope_theta"]
    freq = 1.0 / base ** (np.arange(0, d, 2) / d)
    scaling = c.get("rope_scaling") or {}
    kind, factor = scaling.get("rope_type", scaling.get("type", "default")), scaling.get("factor", 1.0)
    if kind == "linear":
        return freq / factor, 1.0
    if kind == "llama3":
        old, low, high = (scaling[key] for key in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
        turns = old * freq / (2 * math.pi)
        share = np.clip((turns - low) / (high - low), 0, 1)
        return share * freq + (1 - share) * freq / factor, 1.0
    if kind == "yarn":
        old = scaling["original_max_position_embeddings"]

        def dim_of(turns):
            return d * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(base))

        low = max(math.floor(dim_of(scaling.get("beta_fast", 32))), 0)
        high = min(math.ceil(dim_of(scaling.get("beta_slow", 1))), d - 1)
        ramp = np.clip((np.arange(d // 2) - low) / max(high - low, 0.001), 0, 1)
        return freq / factor * ramp + freq * (1 - ramp), scaling.get("attention_factor", 0.1 * math.log(factor) + 1)
    return freq, 1.0


GGUF_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def hf_name(name):
    fixed = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
             "output.weight": "lm_head.weight"}
    if name in fixed:
        return fixed[name]
    blk, layer, what, kind = name.split(".")
    return f"model.layers.{layer}.{GGUF_NAMES[what]}.{kind}"


def load_gguf(path):
    import gguf
    reader = gguf.GGUFReader(path)

    def field(key, default=None):
        entry = reader.get_field(key)
        return default if entry is None else entry.contents()

    arch = field("general.architecture")
    heads, hidden = field(f"{arch}.attention.head_count"), field(f"{arch}.embedding_length")
    config = {
        "num_hidden_layers": field(f"{arch}.block_count"), "num_attention_heads": heads,
        "num_key_value_heads": field(f"{arch}.attention.head_count_kv", heads),
        "head_dim": field(f"{arch}.attention.key_length", hidden // heads),
        "rms_norm_eps": field(f"{arch}.attention.layer_norm_rms_epsilon"), "rope_theta": field(f"{arch}.rope.freq_base", 10000.0),
    }
    weights, factors = {}, None
    for tensor in reader.tensors:
        data = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        data = data.reshape([int(n) for n in tensor.shape][::-1])
        if tensor.name == "rope_freqs.weight":
            factors = data
        else:
            weights[hf_name(tensor.name)] = data
    return Model(config, weights, interleaved=arch == "llama", freq_factors=factors)


def gguf_tokenizer(path):
    """The byte-level BPE of a GGUF file as a Hugging Face tokenizer."""
    import gguf
    from tokenizers import Tokenizer, models, pre_tokenizers
    reader = gguf.GGUFReader(path)
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    merges = [tuple(m.split(" ", 1)) for m in reader.get_field("tokenizer.ggml.merges").contents()]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer


def file_hash(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def to_bf16(x):
    """Rounds to the nearest bf16 (ties to even); returns the 16 bits."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def store(x, dtype):
    """Bytes of x in a safetensors dtype, and the values that those bytes mean."""
    if dtype == "BF16":
        bits = to_bf16(x)
        return bits.tobytes(), (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    kind = {"F32": np.float32, "F16": np.float16}[dtype]
    return x.astype(kind).tobytes(), x.astype(kind).astype(np.float64)


def write_safetensors(path, tensors):
    """tensors: name -> (dtype, shape, bytes)"""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()))


def write_random_model(folder, config, dtype, seed):
    """A random Hugging Face directory over two shards with an index; returns the numpy model of the same values."""
    rng, c = np.random.default_rng(seed), config
    hidden, ffn, vocab = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    q, kv = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    for layer in range(c["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        shapes |= {p + "input_layernorm.weight": (hidden,), p + "post_attention_layernorm.weight": (hidden,),
                   p + "self_attn.q_proj.weight": (q, hidden), p + "self_attn.k_proj.weight": (kv, hidden),
                   p + "self_attn.v_proj.weight": (kv, hidden), p + "self_attn.o_proj.weight": (hidden, q),
                   p + "mlp.gate_proj.weight": (ffn, hidden), p + "mlp.up_proj.weight": (ffn, hidden),
                   p + "mlp.down_proj.weight": (hidden, ffn)}
        if c["model_type"] == "qwen2":
            shapes |= {p + "self_attn.q_proj.bias": (q,), p + "self_attn.k_proj.bias": (kv,), p + "self_attn.v_proj.bias": (kv,)}
        if c["model_type"] == "qwen3":
            shapes |= {p + "self_attn.q_norm.weight": (c["head_dim"],), p + "self_attn.k_norm.weight": (c["head_dim"],)}
    weights, shards = {}, [{}, {}]
    for i, (name, shape) in enumerate(shapes.items()):
        values = rng.normal(0, 1, shape)
        if "norm" in name:
            values = 1 + 0.2 * values
        elif len(shape) == 2 and "embed" not in name:
            values = values * 1.5 / math.sqrt(shape[1])
        data, weights[name] = store(values, dtype)
        shards[i % 2][name] = (dtype, shape, data)
    folder = pathlib.Path(folder)
    files = [f"model-{i + 1:05}-of-00002.safetensors" for i in range(2)]
    for file, tensors in zip(files, shards):
        write_safetensors(folder / file, tensors)
    index = {"metadata": {}, "weight_map": {name: files[i % 2] for i, name in enumerate(shapes)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(c))
    return Model(c, weights)
