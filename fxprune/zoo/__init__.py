"""The zoo: whole model libraries, pruned and certified one by one, with a table of what became of each."""

from fxprune.certify.randomise import randomise
from fxprune.zoo.check import check
from fxprune.zoo.result import Result
from fxprune.zoo.run import run

__all__ = ["Result", "check", "randomise", "run"]
