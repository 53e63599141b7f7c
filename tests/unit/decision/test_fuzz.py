"""The seed corpus of hostile intents, and a few thousand generated ones (tests/fuzz has the million)."""

from __future__ import annotations

from fuzz import fuzz_intents


def test_seed_corpus():
    fuzz_intents.fuzz(fuzz_intents.CORPUS, 0, 1)


def test_generated_intents():
    fuzz_intents.fuzz(None, 3000, 20261123)
