from opene2b.cli.child_log import ChildLog


def test_what_a_child_prints_is_in_the_file(tmp_path):
    log = ChildLog(tmp_path / "api.log")
    log.write(b"one\ntw")
    log.write(b"o\n")
    log.close()

    assert (tmp_path / "api.log").read_bytes() == b"one\ntwo\n"


def test_the_last_lines_are_remembered_also_an_unfinished_one(tmp_path):
    log = ChildLog(tmp_path / "api.log")
    log.write(b"".join(b"%d\n" % number for number in range(100)) + b"unfinished")
    log.close()

    assert log.last_lines().splitlines() == [*map(str, range(80, 100)), "unfinished"]


def test_a_log_never_grows_beyond_twice_its_bound(tmp_path):
    log = ChildLog(tmp_path / "api.log", most_bytes=1000)
    for _ in range(500):
        log.write(b"x" * 99 + b"\n")
    log.close()

    assert sorted(path.name for path in tmp_path.iterdir()) == ["api.log", "api.log.1"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2000


def test_a_log_goes_on_where_an_earlier_server_ended(tmp_path):
    (tmp_path / "api.log").write_bytes(b"before\n")
    log = ChildLog(tmp_path / "api.log")
    log.write(b"after\n")
    log.close()

    assert (tmp_path / "api.log").read_bytes() == b"before\nafter\n"


def test_a_line_without_end_takes_bounded_memory(tmp_path):
    log = ChildLog(tmp_path / "api.log")
    for _ in range(100):
        log.write(b"x" * 10_000)
    log.close()

    assert len(log.unfinished) <= 8 << 10
