"""What runtimes are compared on: short questions with plain answers, and some that need a sentence or a list.

Fixed, so that figures of different days compare. Greedy answers to these are short and not on the edge, so that two
sound runtimes of one file choose the same next token nearly everywhere.
"""

from __future__ import annotations

QUESTIONS: tuple[str, ...] = (
    "What is the capital of France?",
    "What is 2 + 2?",
    "Name the largest planet of the solar system.",
    "What colour is a clear sky at noon?",
    "Who wrote Hamlet?",
    "How many days has a week?",
    "What do bees make?",
    "What is the opposite of hot?",
    "Which animal barks?",
    "What is frozen water called?",
    "Count from one to ten.",
    "Name the four seasons.",
    "Explain in one sentence why tyres lose pressure in winter.",
    "What should a driver do when a warning light for oil comes on?",
    "Write one sentence that ends with the word bridge.",
    "Translate 'good morning' into Spanish.",
    "List three things to check before a long drive.",
    "What does ABS in a car stand for?",
    "Is a tomato a fruit or a vegetable? Answer in one sentence.",
    "Give the chemical formula of water and say what it means.",
    "Summarise in one sentence: The road was closed because a tree had fallen, so we took the ferry and came late.",
    "What comes after Monday, and what after that?",
    "Which is heavier, a kilogram of iron or a kilogram of feathers?",
    "Write a short greeting for a passenger who gets in.",
)
_WORDS = (
    *("river", "stone", "window", "garden", "music", "silver", "yellow"),
    *("winter", "summer", "travel", "number", "letter", "market", "bridge"),
)


def passage(seed: int, words: int) -> str:
    """Running words, about one token each; two seeds differ from the first word on, so that nothing is kept of it."""
    start = seed % len(_WORDS)
    begin = f"{_WORDS[start]} {seed % 1000:03d}"
    return f"{begin} " + " ".join(_WORDS[(start + n * n) % len(_WORDS)] for n in range(words))
