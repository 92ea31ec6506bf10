"""The language of `requirements` and `rank`: HTCondor's ClassAds over what sites publish. See docs/requirements.md.

Which words there are, and whether a text means something: that is all that it takes to tell a user what is wrong while
he writes it. What an expression says of the places that there are is `planning/matching`'s to find out.
"""

from gridhypervisor.model.expressions.checking import check, is_number, is_truth
from gridhypervisor.model.expressions.gridway import rank_of_gridway, requirements_of_gridway
from gridhypervisor.model.expressions.syntax import ExpressionError, parse

__all__ = ["ExpressionError", "fault", "rank_of_gridway", "requirements_of_gridway"]


def fault(text: str, *, rank: bool = False) -> str:
    """What is wrong with an expression, and where, and what to write instead; empty: nothing. A rank is a number."""
    text = text.strip()
    try:
        check(parse(text), text, is_number if rank else is_truth)
    except ExpressionError as error:
        return str(error)
    return ""
