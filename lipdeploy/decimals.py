"""Decimal numbers for people that stay bounds: rounded up or down, never to nearest."""

import math
from fractions import Fraction

Number = float | Fraction


def upper(value: Number, digits: int) -> str:
    """A number of at least 0 with `digits` decimals, rounded up."""
    return _decimal(math.ceil(Fraction(value) * 10**digits), digits)


def lower(value: Number, digits: int) -> str:
    """A number of at least 0 with `digits` decimals, rounded down."""
    return _decimal(math.floor(Fraction(value) * 10**digits), digits)


def exact_share(value: float, total: int) -> Fraction:
    """A share of `total` that was rounded to a float, as the exact one; else the float itself.

    29 of 100 as a float is a little less than 0.29, and would be 28.99 % rounded down.
    """
    count = round(value * total)
    return Fraction(count, total) if total and value == count / total else Fraction(value)


def _decimal(scaled: int, digits: int) -> str:
    return f"{scaled // 10**digits}.{scaled % 10**digits:0{digits}d}"


def in_255ths(radius: Fraction) -> str:
    """A radius as people write it, exactly: 36/255 where that is short, else the fraction."""
    numerator = f"{float(255 * radius):g}"
    return f"{numerator}/255" if Fraction(numerator) == 255 * radius else str(radius)


def float_lower(value: Fraction) -> float:
    """The largest float that is not above `value`."""
    nearest = float(value)
    return nearest if Fraction(nearest) <= value else math.nextafter(nearest, -math.inf)
