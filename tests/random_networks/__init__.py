"""A vocabulary of vision transformer parts, and a hypothesis strategy that composes networks of them."""

from random_networks.alone import alone
from random_networks.network import Network
from random_networks.strategy import networks

__all__ = ["Network", "alone", "networks"]
