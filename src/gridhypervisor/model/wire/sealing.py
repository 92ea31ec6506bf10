"""How the parts of a checkpoint look where they leave their site: sealed, in frames.

    PART, sealed:   frame 0 · frame 1 · …       frame:   nonce (12 bytes) · sealed bytes · tag (16 bytes)

A frame holds FRAME bytes of the part, the last one what is left; of an empty part there is one frame, of nothing. It is
sealed by AES-256-GCM, under a key that the controller has drawn for this checkpoint alone, and a nonce that is drawn
for each frame. What it is bound to (`bound_to`) says of which checkpoint and part it is, which frame of how many. So a
copy that was cut off, put together of others, or altered in a bit opens nowhere. Each frame stands for itself: a
transfer that was cut goes on behind the last whole one, and the frames of a part may be sealed in different tries.
"""

from __future__ import annotations

FRAME = 1 << 20
"""Bytes of a part in one frame."""

KEY_BYTES, NONCE, TAG = 32, 12, 16
"""Bytes of a key, of a nonce, and of a tag."""

SEAL = NONCE + TAG
"""Bytes by which a frame is longer than what it holds."""


def frames_of(size: int) -> int:
    """How many frames a part of so many bytes has."""
    return max(1, -(-size // FRAME))


def sealed_size(size: int) -> int:
    """Bytes of a part of so many bytes when it is sealed."""
    return size + frames_of(size) * SEAL


def bound_to(checkpoint: str, part: str, size: int, number: int) -> bytes:
    """What a frame is bound to: nothing else opens it. `size`: of the whole part; `number`: of the frame, from 0."""
    return "\n".join(("ghv checkpoint 1", checkpoint, part, str(size), str(number))).encode()
