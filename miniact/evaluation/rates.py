"""Rates: a share with its n and its 95 % interval, and how it is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Z95 = 1.959964  # the normal distribution's 97.5 % quantile


def wilson(successes: float, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion (Wilson 1927).

    >>> tuple(round(x, 3) for x in wilson(8, 10))
    (0.49, 0.943)
    """
    if n == 0:
        return (0.0, 1.0)
    p, z2 = successes / n, Z95 * Z95
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return (min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))


def rate(hits: Sequence[bool] | np.ndarray) -> dict[str, Any]:
    """A proportion with its n and interval; value None where nothing was counted."""
    n, k = len(hits), sum(map(bool, hits))
    low, high = wilson(k, n)
    return {"value": k / n if n else None, "n": n, "low": low, "high": high}


def rate_per_question(hit_QP: np.ndarray, counted_QP: np.ndarray) -> dict[str, Any]:
    """The share of hits among the answers that count; n and interval are of the questions.

    A question's P answers, one for each order of its candidates, are about one state and one
    choice: to count them as P independent observations would make the interval too narrow.
    """
    n, answers = int(counted_QP.any(1).sum()), int(counted_QP.sum())
    value = float(hit_QP[counted_QP].sum() / answers) if answers else None
    low, high = wilson((value or 0.0) * n, n)
    return {"value": value, "n": n, "low": low, "high": high}


def percent(share: float, sign: bool = False, digits: int = 1) -> str:
    """A share in percent, or a difference of two in points: one digit, an interval's ends none.

    >>> percent(0.8125), percent(-0.05, sign=True)
    ('81.3', '−5.0')
    """
    value = 100 * share + math.copysign(1e-9, share)  # halves go up, as in the report
    return f"{value:{'+' * sign}.{digits}f}".replace("-", "−")


def percent_of(rate: dict[str, Any] | None) -> str:
    """A rate in percent, with its 95 % interval."""
    if not rate or rate["value"] is None:
        return "–"
    low, high = (percent(rate[end], digits=0) for end in ("low", "high"))
    return f"{percent(rate['value'])} [{low}–{high}]"
