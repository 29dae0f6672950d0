"""Whether two sides computed the same thing.

Invariant: a number that is not finite agrees with nothing.
"""

import math


def disagreement(cairn, peer, tolerance):
    """None when the outputs agree; otherwise what does not."""
    if len(cairn) != len(peer) or any(len(a) != len(b) for a, b in zip(cairn, peer)):
        return f"not compared: outputs must be of one shape, got {cairn} and {peer}"[:300]
    for i, (ours, theirs) in enumerate(zip(cairn, peer)):
        allowed = tolerance[min(i, len(tolerance) - 1)]
        # JSON has no NaN, so a side may send null.
        finite = all(x is not None and math.isfinite(x) for x in (*ours, *theirs))
        scale = max((abs(x) for x in theirs), default=0.0) if finite else 0.0
        worst = max(range(len(ours)), key=lambda k: abs(ours[k] - theirs[k])) if finite else 0
        if not finite or abs(ours[worst] - theirs[worst]) > allowed * scale:
            return (
                f"not compared: output {i + 1} must agree within {allowed:g} (relative), "
                f"got cairn {ours[worst]} and peer {theirs[worst]}"
            )
    return None
