"""What flags take: each turns a word into a value or says what it should be (argparse's `type`)."""

import argparse


def number(text: str) -> int:
    """A whole number, also as 0x..."""
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def count(text: str) -> int:
    """A whole number from 1 on."""
    found = number(text)
    if found < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is below 1")
    return found


def seconds(text: str) -> float:
    """Seconds that pass: more than none, and an end to them."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return found
