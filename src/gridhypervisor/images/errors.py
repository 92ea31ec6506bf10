"""The errors of this package."""

from __future__ import annotations


class ImageError(Exception):
    """Something with an image could not be done. The message names the operation, the object and why."""

    status, code = 422, "invalid"  # of the Problem that a user gets

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint  # what to do next

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class NoSuchImage(ImageError):
    """The image named is not there."""

    status, code = 404, "not-found"


class NotPossibleHere(ImageError):
    """This machine lacks what it takes; the hint says how it gets it."""

    status, code = 503, "unavailable"
