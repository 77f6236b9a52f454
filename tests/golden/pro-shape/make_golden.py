#!/usr/bin/env python3
"""Writes golden.json: logits and greedy tokens of the model of tests/common/model/pro_shape_test.cc by an
independent implementation in numpy of docs/model.md: a reference.py that is not part of this repository.

  pro_shape_test --gtest_also_run_disabled_tests --gtest_filter='*WriteModelHere'     writes ./pro-shape
  make_golden.py path/to/reference.py pro-shape golden.json
"""
import importlib.util
import json
import sys

POSITIONS = [3, 127, 128, 256, 299]

spec = importlib.util.spec_from_file_location("reference", sys.argv[1])
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

model = reference.Model(sys.argv[2])
ids = [(37 * i * i + 11 * i + 5) % 96 for i in range(300)]
logits = model.forward(ids)
greedy = model.generate(ids, 12)[0]
with open(sys.argv[3], "w") as f:
    f.write("{" + f'"ids": {ids},\n "greedy": {greedy},\n "positions": {POSITIONS},\n "logits": [\n')
    f.write(",\n".join("[" + ",".join(f"{x:.7g}" for x in logits[p]) + "]" for p in POSITIONS) + "]}\n")
json.load(open(sys.argv[3]))
