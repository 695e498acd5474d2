"""For tests, ours and yours: a Redis that fails on demand, and a stampede over several processes."""

from .faults import FaultyRedis
from .stampede import Order, Stampede, built_in, stampede

__all__ = ["FaultyRedis", "Order", "Stampede", "built_in", "stampede"]
