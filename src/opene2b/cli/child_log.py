"""What a child process prints: a file that never grows beyond a bound, and its last lines in memory."""

from collections import deque
from pathlib import Path

MOST_BYTES = 8 << 20
"""At this size the file becomes NAME.log.1, in place of the one before."""
TAIL_LINES = 20
MOST_LINE_BYTES = 8 << 10


class ChildLog:
    """Single-threaded; `close` when the child has ended."""

    def __init__(self, path: Path, *, most_bytes: int = MOST_BYTES) -> None:
        self.path = path
        self.most_bytes = most_bytes
        self.tail: deque[bytes] = deque(maxlen=TAIL_LINES)
        self.unfinished = b""
        self.file = path.open("ab", buffering=0)
        self.size = self.file.tell()

    def write(self, data: bytes) -> None:
        *lines, rest = (self.unfinished + data).split(b"\n")
        self.tail.extend(line[:MOST_LINE_BYTES] for line in lines)
        self.unfinished = rest[-MOST_LINE_BYTES:]
        if self.size + len(data) > self.most_bytes:
            self.rotate()
        self.file.write(data)
        self.size += len(data)

    def rotate(self) -> None:
        self.file.close()
        self.path.replace(self.path.with_name(self.path.name + ".1"))
        self.file = self.path.open("ab", buffering=0)
        self.size = 0

    def last_lines(self) -> str:
        lines = [*self.tail, *([self.unfinished] if self.unfinished else [])]
        return "\n".join(line.decode(errors="replace") for line in lines)

    def close(self) -> None:
        self.file.close()
