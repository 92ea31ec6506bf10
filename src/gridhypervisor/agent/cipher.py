"""AES-256-GCM for what travels, which has the standard library alone, and that has no cipher.

It is the libcrypto with which this CPython's own TLS is linked, reached by ctypes: the bundle brings it anyway. The
calls let other threads run.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from gridhypervisor.model.wire import KEY_BYTES, NONCE, TAG

LIBRARY = "libcrypto.so.3"

_POINTER, _NUMBER, _BYTES = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
_COUNT = ctypes.POINTER(ctypes.c_int)
_SIGNATURES: dict[str, tuple[Any, ...]] = {  # what it gives, then what it takes
    "EVP_CIPHER_CTX_new": (_POINTER,),
    "EVP_CIPHER_CTX_free": (None, _POINTER),
    "EVP_CIPHER_CTX_ctrl": (_NUMBER, _POINTER, _NUMBER, _NUMBER, _POINTER),
    "EVP_aes_256_gcm": (_POINTER,),
    "EVP_CipherInit_ex": (_NUMBER, _POINTER, _POINTER, _POINTER, _BYTES, _BYTES, _NUMBER),
    "EVP_CipherUpdate": (_NUMBER, _POINTER, _POINTER, _COUNT, _BYTES, _NUMBER),
    "EVP_CipherFinal_ex": (_NUMBER, _POINTER, _POINTER, _COUNT),
}
_GET_TAG, _SET_TAG = 0x10, 0x11  # of EVP_CIPHER_CTX_ctrl


class Forged(ValueError):
    """These bytes were not sealed with this key, for this purpose, as they are."""


def seal(key: bytes, nonce: bytes, data: bytes, bound: bytes) -> bytes:
    """A frame (see `wire.sealing`) of `data`. `nonce`: never to be used again with this key; `bound`: what is to be the
    same when it is opened.

    Raises:
        OSError: there is no libcrypto here, or it does not work.
    """
    if len(nonce) != NONCE:
        raise ValueError(f"a nonce of {len(nonce)} bytes instead of {NONCE}")
    with _Work(key, nonce, sealing=True) as work:
        sealed = work.through(data, bound)
        tag = ctypes.create_string_buffer(TAG)
        if not work.finish() or not work.control(_GET_TAG, tag):
            raise OSError(f"{LIBRARY} cannot seal with AES-256-GCM")
        return nonce + sealed + tag.raw


def unseal(key: bytes, frame: bytes, bound: bytes) -> bytes:
    """What a frame holds.

    Raises:
        Forged: it is not whole, or was sealed otherwise.
        OSError: as `seal`.
    """
    if len(frame) < NONCE + TAG:
        raise Forged(f"a frame of {len(frame)} bytes")
    with _Work(key, frame[:NONCE], sealing=False) as work:
        data = work.through(frame[NONCE:-TAG], bound)
        if not work.control(_SET_TAG, ctypes.create_string_buffer(frame[-TAG:], TAG)) or not work.finish():
            raise Forged("it was altered, or sealed with another key")
        return data


class _Work:
    """One frame in work."""

    def __init__(self, key: bytes, nonce: bytes, *, sealing: bool) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes instead of {KEY_BYTES}")
        self._library = _library()
        self._context = self._library.EVP_CIPHER_CTX_new()
        self._begun = self._context and self._library.EVP_CipherInit_ex(
            self._context, self._library.EVP_aes_256_gcm(), None, key, nonce, int(sealing)
        )

    def __enter__(self) -> _Work:
        if not self._begun:
            self._library.EVP_CIPHER_CTX_free(self._context)
            raise OSError(f"{LIBRARY} has no AES-256-GCM")
        return self

    def __exit__(self, *_: object) -> None:
        self._library.EVP_CIPHER_CTX_free(self._context)  # which also wipes the key in it

    def through(self, data: bytes, bound: bytes) -> bytes:
        """All of the bytes, sealed or opened; of what was opened nothing is to be believed before `finish`."""
        done, out = ctypes.c_int(), ctypes.create_string_buffer(len(data) or 1)
        update = self._library.EVP_CipherUpdate
        if not update(self._context, None, done, bound, len(bound)):
            raise OSError(f"{LIBRARY} refused what the frame is bound to")
        if data and not update(self._context, out, done, data, len(data)):
            raise OSError(f"{LIBRARY} refused {len(data)} bytes")
        return ctypes.string_at(out, len(data))

    def control(self, what: int, tag: ctypes.Array[ctypes.c_char]) -> bool:
        return bool(self._library.EVP_CIPHER_CTX_ctrl(self._context, what, TAG, tag) > 0)

    def finish(self) -> bool:
        """Whether all is as it should be."""
        rest, done = ctypes.create_string_buffer(TAG), ctypes.c_int()
        return bool(self._library.EVP_CipherFinal_ex(self._context, rest, done) > 0)


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(LIBRARY)
    for name, (gives, *takes) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = gives, takes
    return library
