"""How much two prompts share."""

from amf.core.types import Prefix


def shared_tokens(one: Prefix, other: Prefix) -> int:
    """Tokens of the longest common prefix, by bisection on the chained keys; counted as `other` counts them."""
    low, high = 0, min(len(one.keys), len(other.keys))
    if high and one.keys[high - 1] == other.keys[high - 1]:  # as when a conversation goes on
        return other.tokens_at(high)
    while low < high:
        middle = (low + high + 1) // 2
        if one.keys[middle - 1] == other.keys[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return other.tokens_at(low)
