import json

from opene2b.cli import config, setup_base
from opene2b.cli.setup_base import PlainDisplay
from opene2b.image import build_base


def test_plain_progress_says_each_stage_once(capsys):
    shown = PlainDisplay()
    for fraction in (0.1, 0.2):
        shown.show({"stage": "download", "fraction": fraction, "message": "downloading"})
    shown.show({"stage": "done", "fraction": None, "message": "ready"})

    assert capsys.readouterr().out.splitlines() == [
        "base template:  10% downloading",
        "base template: ready",
    ]


def test_the_builder_understands_what_the_settings_ask_for(tmp_path):
    settings = config.load(
        {
            "OPENE2B_HOME": str(tmp_path),
            "OPENE2B_BASE_IMAGE": "registry.example/sandbox:3",
            "OPENE2B_BASE_IMAGE_USERNAME": "user",
            "OPENE2B_BASE_IMAGE_PASSWORD": "password",
        }
    )
    asked = json.loads(json.dumps(setup_base.request(settings)))

    found = build_base.settings_of(asked["settings"])

    assert (found.oci_image, found.registry_username, found.registry_password) == (
        "registry.example/sandbox:3",
        "user",
        "password",
    )
