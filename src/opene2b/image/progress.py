"""How far a build is: what the command line draws, and what an API answer quotes.

Pure: reads the lines that mmdebstrap, apt and dpkg print and knows nothing of processes.
"""

import re
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    stage: str
    """`waiting sources download install copy pull unpack finish done`."""
    fraction: float | None
    """Of the whole build, 0.0 to 1.0; None where nothing can be said."""
    message: str
    """One sentence for a person."""


# Share of the whole build at which each announcement of mmdebstrap comes, as measured on tmpfs
# with 450 packages: unpacking and configuring them is four fifths of the time.
ANNOUNCEMENTS = (
    ("running apt-get update", "download", 0.03, "reading the package lists of the mirror"),
    ("downloading packages with apt", "download", 0.06, "downloading the essential packages"),
    ("extracting archives", "install", 0.08, "unpacking the essential packages"),
    ("installing essential packages", "install", 0.15, "configuring the essential packages"),
    ("installing remaining packages", "download", 0.30, "downloading the remaining packages"),
    ("cleaning package lists", "install", 0.95, "removing package lists and caches"),
)
REMAINING_START, UNPACK_START = 0.30, 0.33
UNPACK_SHARE, CONFIGURE_SHARE = 0.42, 0.20
TOTAL = re.compile(r"(\d+) newly installed")


@dataclass(slots=True)
class LogReader:
    """Turns lines of `mmdebstrap --verbose` into progress. Feed it lines in order."""

    total: int = 0
    """Packages that apt is about to install; 0 before it has said so."""
    unpacked: int = 0
    configured: int = 0
    tail: list[str] = field(default_factory=list)
    """The last lines, for the error message."""

    TAIL_LINES = 30

    def feed(self, line: str) -> Progress | None:
        """None: the line tells nothing new about how far it is."""
        self.tail.append(line)
        del self.tail[: -self.TAIL_LINES]
        if line.startswith("I: "):
            return self._announcement(line[3:])
        if not self.total:
            if self.unpacked < 0 and (match := TOTAL.search(line)):
                self.total, self.unpacked = int(match.group(1)), 0
            return None
        if line.startswith("Unpacking "):
            self.unpacked += 1
            return self._counted(f"unpacking packages: {self.unpacked} of {self.total}")
        if line.startswith("Setting up "):
            self.configured += 1
            return self._counted(f"configuring packages: {self.configured} of {self.total}")
        return None

    def _counted(self, message: str) -> Progress:
        # dpkg goes back and forth: what others need before they unpack is configured early.
        unpacked = min(1.0, self.unpacked / self.total) * UNPACK_SHARE
        configured = min(1.0, self.configured / self.total) * CONFIGURE_SHARE
        return Progress(
            stage="install", fraction=UNPACK_START + unpacked + configured, message=message
        )

    def _announcement(self, text: str) -> Progress | None:
        for start, stage, fraction, message in ANNOUNCEMENTS:
            if text.startswith(start):
                if fraction == REMAINING_START:
                    # Only the count that apt prints from here on is of packages still to come.
                    self.unpacked = -1
                return Progress(stage=stage, fraction=fraction, message=message)
        return None
