"""The zoo: whole model libraries, pruned and certified one by one, with a table of what became of each."""

from fxprune.certify.randomise import randomise
from fxprune.certify.zoo.check import check
from fxprune.certify.zoo.result import Result
from fxprune.certify.zoo.run import run

__all__ = ["Result", "check", "randomise", "run"]
