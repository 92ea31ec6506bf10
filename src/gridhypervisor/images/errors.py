"""The one error of this package."""

from __future__ import annotations


class ImageError(Exception):
    """Something with an image could not be done. The message names the operation, the object and why."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint  # what to do next

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message
