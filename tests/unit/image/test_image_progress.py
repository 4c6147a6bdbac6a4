from opene2b.image.progress import LogReader

LOG = """\
I: automatically chosen mode: root
I: running apt-get update...
Get:1 http://m.example bookworm InRelease [151 kB]
I: downloading packages with apt...
0 upgraded, 83 newly installed, 0 to remove and 0 not upgraded.
I: extracting archives...
I: installing essential packages...
Unpacking libc6:amd64 (2.36) ...
Setting up libc6:amd64 (2.36) ...
I: installing remaining packages inside the chroot...
0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
Unpacking git (1) ...
Unpacking curl (1) ...
Setting up git (1) ...
Setting up curl (1) ...
I: cleaning package lists and apt cache...
I: success in 27.1 seconds
"""


def test_the_log_of_a_build_becomes_growing_progress() -> None:
    reader = LogReader()

    steps = [step for line in LOG.splitlines() if (step := reader.feed(line))]

    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions, key=lambda f: f or 0)
    assert [step.stage for step in steps] == [
        *("download", "download", "install", "install", "download"),
        *("install", "install", "install", "install", "install"),
    ]
    assert steps[6].message == "unpacking packages: 2 of 2"


def test_the_end_of_the_log_is_kept_for_the_error() -> None:
    reader = LogReader()
    for number in range(100):
        reader.feed(f"line {number}")

    assert reader.tail[-1] == "line 99"
    assert len(reader.tail) == LogReader.TAIL_LINES
