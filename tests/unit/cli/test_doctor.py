import pytest

from opene2b.cli import config, doctor
from opene2b.cli.doctor import Finding, Level


@pytest.mark.parametrize(
    ("release", "level"),
    [
        ("5.18.19-generic", Level.LACK),
        ("4.19.0", Level.LACK),
        ("5.19.0", Level.OK),
        ("6.1.0-18-amd64", Level.OK),
        ("6.18.44-vm", Level.OK),
        ("strange", Level.LACK),
    ],
)
def test_the_kernel_must_have_idmapped_overlay_layers(release, level):
    assert doctor.kernel_finding(release).level is level


@pytest.mark.parametrize(
    ("version", "level"), [((3, 10), Level.LACK), ((3, 11), Level.OK), ((3, 14), Level.OK)]
)
def test_python_must_be_new_enough(version, level):
    assert doctor.python_finding(version).level is level


def test_an_oci_runtime_that_is_not_there_is_named(tmp_path):
    settings = config.load({"OPENE2B_HOME": str(tmp_path), "OPENE2B_OCI_BINARY": "no-such-runtime"})

    finding = doctor.check_oci_runtime(settings)

    assert finding.level is Level.LACK
    assert "no-such-runtime" in finding.sentence


def test_whatever_is_lacking_has_a_remedy(tmp_path, monkeypatch):
    # Nothing is found where PATH leads nowhere.
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = config.load({"OPENE2B_HOME": str(tmp_path)})

    found = [
        *doctor.check_tools(settings),
        doctor.check_oci_runtime(settings),
        doctor.check_base(settings),
    ]

    assert all(finding.level is not Level.OK and finding.remedy for finding in found)


@pytest.mark.parametrize(
    ("levels", "code"),
    [([Level.OK], 0), ([Level.OK, Level.NOTE], 0), ([Level.NOTE, Level.LACK, Level.OK], 1)],
)
def test_the_exit_code_says_whether_sandboxes_can_run(tmp_path, monkeypatch, capsys, levels, code):
    monkeypatch.setattr(
        doctor,
        "findings",
        lambda _: iter(Finding(level, "it is so", "do that") for level in levels),
    )

    assert doctor.run(config.load({"OPENE2B_HOME": str(tmp_path)})) == code
    assert capsys.readouterr().out.count("-> do that") == len(levels)
