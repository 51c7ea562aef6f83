"""A few ranges in place of one.

Where what is shared need not lie in one piece, holes that are each too short still do. One range if there is a run for it,
else the longest runs, so that they are as few as can be, and a last piece where the allocator's own rule puts it. Files lie on
disks like that. Bounded pieces keep most of what one range is good for: few transfers, short lists of addresses.

Cost: O(m r) for m pieces and r free runs.
"""

from amf.sim.pages.ranges import FreeRuns, Range


def reserve_extents(allocator: FreeRuns, pages: int, most: int) -> tuple[Range, ...] | None:
    """`pages` (at least 1) in `most` ranges at most, or None and nothing reserved."""
    found, left = list[Range](), pages
    while left and len(found) < most:
        piece = allocator.reserve(left)
        if piece is None:
            piece = allocator.longest()
            if piece is None:
                break
            allocator.take(piece)
        found.append(piece)
        left -= piece.pages
    if not left:
        return tuple(found)
    for each in found:
        allocator.free(each)
    return None
