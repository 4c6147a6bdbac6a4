import asyncio
from pathlib import Path

import pytest

from opene2b.core.ids import ImageId
from opene2b.core.paths import Home
from opene2b.image import manifest as manifests
from opene2b.image import site
from opene2b.image.manifest import Manifest

IMAGE = ImageId("base")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def left(home: Home) -> list[str]:
    return sorted(str(p.relative_to(home.root)) for p in home.root.rglob("*") if p.is_file())


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def hide(paths: list[str]) -> None:
    """Put directories out of reach of the one who would remove them."""
    for path in paths:
        Path(path).rename(path + ".kept")


def unhide(*directories: Path) -> None:
    for directory in directories:
        for kept in list(directory.glob("*.kept")):
            kept.rename(str(kept).removesuffix(".kept"))


async def test_a_finished_image_has_its_layer_and_manifest_and_nothing_else(
    home: Home, tmp_path: Path
) -> None:
    async with site.opened(home, IMAGE) as place:
        layer = place.layer()
        (layer / "file").write_text("x")
        (place.directory(tmp_path) / "scrap").write_text("x")
        place.say("building")
        await place.finish(Manifest(image_id=IMAGE, layers=["one"]), {layer: "one"})

    assert left(home) == ["images/base/lock", "images/base/manifest.json", "layers/one/file"]
    assert names(tmp_path) == ["home"]


async def test_a_failed_build_leaves_nothing(home: Home) -> None:
    async def build() -> None:
        async with site.opened(home, IMAGE) as place:
            (place.layer() / "file").write_text("x")
            place.say("building")
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await build()

    assert left(home) == ["images/base/lock"]


async def test_what_a_killed_builder_left_is_removed_by_the_next(
    home: Home, tmp_path: Path
) -> None:
    async with site.opened(home, IMAGE) as place:
        # As after SIGKILL: the record and the directories are there, nobody holds the lock.
        (place.layer() / "file").write_text("x")
        (place.directory(tmp_path) / "scrap").write_text("x")
        record = place.record.read_text()
        hide(place.paths)
    place.record.write_text(record)
    unhide(home.layers, tmp_path)

    async with site.opened(home, IMAGE):
        pass

    assert left(home) == ["images/base/lock"]
    assert names(tmp_path) == ["home"]


async def test_a_layer_renamed_by_a_builder_killed_before_the_manifest_is_removed(
    home: Home,
) -> None:
    async with site.opened(home, IMAGE) as place:
        layer = place.layer()
        await place.finish(Manifest(image_id=IMAGE, layers=["one"]), {layer: "one"})
        manifests.path(home, IMAGE).unlink()

    assert list(home.layers.iterdir()) == []


async def test_a_second_builder_waits_for_the_first(home: Home) -> None:
    order: list[str] = []
    entered = asyncio.Event()

    async def second() -> None:
        await entered.wait()
        async with site.opened(home, IMAGE):
            order.append("second")

    async with asyncio.TaskGroup() as tasks:
        async with site.opened(home, IMAGE):
            task = tasks.create_task(second())
            entered.set()
            await asyncio.wait([task], timeout=0.3)
            order.append("first")

    assert order == ["first", "second"]


async def test_the_layers_are_closed_to_other_users_of_the_host(home: Home) -> None:
    site.make_layers(home)

    assert home.layers.stat().st_mode & 0o777 == 0o700


async def test_progress_can_be_read_while_building(home: Home) -> None:
    async with site.opened(home, IMAGE) as place:
        place.say("unpacking packages: 3 of 7")
        text = manifests.progress_path(home, IMAGE).read_text()

    assert text == "unpacking packages: 3 of 7\n"
    assert not manifests.progress_path(home, IMAGE).exists()
