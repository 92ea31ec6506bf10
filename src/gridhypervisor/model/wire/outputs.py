"""Which of the paths in a tar stream are outputs: root in the guest may have packed anything."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable


def declared(path: str, patterns: Iterable[str]) -> bool:
    """Whether an output's path is what one of the job's patterns can mean, or lies below it.

    As the guest's shell reads patterns: component by component, `*` and `?` and `[…]` match no slash and no leading
    dot, bytes and not characters are counted, and a pattern without a match means itself. Who brings outputs out asks
    this of each: root in the guest may have packed anything.

    >>> [declared(path, ["products/*"]) for path in ("products/a/.b", "products/.a", "products", ".bashrc")]
    [True, False, False, False]
    """
    parts = path.split("/")
    if "" in parts or ".." in parts:
        return False
    return any(_covers(pattern, parts) for pattern in patterns)


def leads_inside(path: str, target: str) -> bool:
    """Whether a link at `path` to `target` stays below the folder of which both are part, whatever its parts are.

    `..` may only come first, where the folder that it leaves is the link's own: after another name that may be a link,
    nobody knows what it leaves.
    """
    parts = [part for part in target.split("/") if part not in ("", ".")]
    up = next((i for i, part in enumerate(parts) if part != ".."), len(parts))
    return (
        target != ""
        and not target.startswith("/")
        and "\0" not in target
        and ".." not in parts[up:]
        and up <= path.count("/")
    )


def _covers(pattern: str, parts: list[str]) -> bool:
    globs = [glob for glob in pattern.split("/") if glob not in ("", ".")]
    return len(globs) <= len(parts) and all(
        part == glob or _component(glob).fullmatch(_bytewise(part)) is not None
        for glob, part in zip(globs, parts, strict=False)
    )


_TOKEN = r"(?s:\\.|\*|\?|\[[!^]?\]?(?:\[:\w+:\]|[^]])*\]|.)"  # not compiled here: a pilot's start waits for imports


@functools.lru_cache(maxsize=4096)
def _component(glob: str) -> re.Pattern[str]:
    """One component of a shell's pattern as a regular expression over bytes (as Latin-1)."""
    out = "" if glob.startswith((".", "\\.")) else r"(?!\.)"
    for token in re.findall(_TOKEN, _bytewise(glob)):
        if token == "*":
            out += ".*"
        elif token == "?" or (token.startswith("[") and "[:" in token):  # named classes: whichever character it is
            out += "."
        elif token.startswith("[") and len(token) > 2:
            negated = token[1] in "!^"
            body = re.sub(r"[^-0-9A-Za-z]", r"\\\g<0>", token[1 + negated : -1])
            out += f"[{'^' * negated}{body}]"
        else:
            out += re.escape(token[1:] if token.startswith("\\") and len(token) > 1 else token)
    try:
        return re.compile(out, re.DOTALL)
    except re.error:  # [z-a]: it matches nothing but itself
        return re.compile(re.escape(_bytewise(glob)))


def _bytewise(text: str) -> str:
    return text.encode(errors="surrogatepass").decode("latin-1")
