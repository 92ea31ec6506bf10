"""Requirements and rank: which places suit a job, which suit it best, and why the others do not.

Decides nothing about who gets a place: that is policy. Pure: the same expression over the same catalogue gives the same
columns. The language is HTCondor's ClassAds; GridWay's is translated into it (`gridway`). See docs/requirements.md.
"""

from gridhypervisor.model.expressions.syntax import ExpressionError
from gridhypervisor.model.expressions.vocabulary import ATTRIBUTES, GRIDWAY, Attribute, Nothing, Scalar
from gridhypervisor.planning.matching.catalogue import Catalogue, Place
from gridhypervisor.planning.matching.expression import (
    Expression,
    Failed,
    Ranking,
    compile_rank,
    compile_requirements,
    match,
    rank,
    why_not,
)

__all__ = [
    "ATTRIBUTES",
    "GRIDWAY",
    "Attribute",
    "Catalogue",
    "Expression",
    "ExpressionError",
    "Failed",
    "Nothing",
    "Place",
    "Ranking",
    "Scalar",
    "compile_rank",
    "compile_requirements",
    "match",
    "rank",
    "why_not",
]
