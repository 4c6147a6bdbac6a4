import asyncio

from opene2b.node.trash import Trash


async def test_a_discarded_directory_is_out_of_the_way_at_once_and_gone_soon(tmp_path):
    trash = Trash(tmp_path / "trash")
    trash.open()
    victim = tmp_path / "victim"
    (victim / "deep").mkdir(parents=True)
    trash.discard(victim)
    was_there = victim.exists()
    await trash.close(limit_s=10)

    assert not was_there
    assert list((tmp_path / "trash").iterdir()) == []


async def test_two_of_one_name_do_not_meet(tmp_path):
    trash = Trash(tmp_path / "trash")
    trash.open()
    for _ in range(2):
        (tmp_path / "victim").mkdir()
        trash.discard(tmp_path / "victim")
    await trash.close(limit_s=10)

    assert list((tmp_path / "trash").iterdir()) == []


async def test_discarding_what_is_not_there_does_nothing(tmp_path):
    trash = Trash(tmp_path / "trash")
    trash.open()
    trash.discard(tmp_path / "nothing")

    assert not trash.pending
    await trash.close(limit_s=10)


async def test_what_an_earlier_agent_left_is_removed(tmp_path):
    (tmp_path / "trash" / "old.1" / "x").mkdir(parents=True)
    (tmp_path / "trash" / "file").write_text("x")
    (tmp_path / "trash" / "link").symlink_to(tmp_path)
    trash = Trash(tmp_path / "trash")
    trash.open()
    await asyncio.gather(*trash.pending)
    await trash.close(limit_s=10)

    assert list((tmp_path / "trash").iterdir()) == []
    assert tmp_path.is_dir()
