"""Binary messages against protobuf's own implementation."""

import tempfile
from pathlib import Path

import grpc_tools
import msgspec
import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc
from hypothesis import given
from hypothesis import strategies as st

from opene2b.connect.protobuf import Schema
from opene2b.core.errors import InvalidArgument
from opene2b.gen import envd_schema

PROTO = Path(__file__).parents[3] / "proto"
SCHEMA = Schema(envd_schema.MESSAGES, envd_schema.ENUMS, envd_schema.METHODS)


@pytest.fixture(scope="module")
def oracle():
    include = Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.NamedTemporaryFile() as output:
        arguments = [
            *("protoc", f"-I{PROTO}", f"-I{include}", "--include_imports"),
            f"--descriptor_set_out={output.name}",
        ]
        assert protoc.main([*arguments, "process.proto", "filesystem.proto"]) == 0
        files = FileDescriptorSet.FromString(Path(output.name).read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


SAMPLES = [
    (
        "process.StartRequest",
        {
            "process": {
                "cmd": "/bin/bash",
                "args": ["-l", "-c", "echo ä"],
                "envs": {"A": "1", "": ""},
                "cwd": "",
            },
            "pty": {"size": {"cols": 80, "rows": 4294967295}},
            "tag": "t",
            "stdin": False,
        },
    ),
    ("process.StartResponse", {"event": {"end": {"exitCode": -1, "status": "signal: killed"}}}),
    ("process.StartResponse", {"event": {"end": {"exitCode": 2147483647, "exited": True}}}),
    ("process.StartResponse", {"event": {"data": {"stdout": "AP8="}}}),
    ("process.StartResponse", {"event": {"keepalive": {}}}),
    ("process.SendSignalRequest", {"process": {"pid": 7}, "signal": "SIGNAL_SIGKILL"}),
    ("process.ListResponse", {"processes": [{"pid": 1}, {"config": {"cmd": "x"}, "tag": ""}]}),
    (
        "filesystem.StatResponse",
        {
            "entry": {
                "name": "f",
                "type": "FILE_TYPE_FILE",
                "path": "/f",
                "size": "9223372036854775807",
                "mode": 420,
                "modifiedTime": "2026-01-02T03:04:05.678901234Z",
                "symlinkTarget": "/g",
                "metadata": {"k": "v"},
                "isSymlink": True,
            }
        },
    ),
    ("filesystem.StatResponse", {"entry": {"modifiedTime": "1969-12-31T23:59:59Z"}}),
    ("filesystem.ListDirRequest", {"path": "~", "depth": 3}),
    ("filesystem.WatchDirResponse", {"start": {}}),
    (
        "filesystem.GetWatcherEventsResponse",
        {"events": [{"name": "a", "type": "EVENT_TYPE_CHMOD"}, {"name": "b"}]},
    ),
]


@pytest.mark.parametrize(("name", "value"), SAMPLES)
def test_what_we_write_is_read_as_it_was_meant(oracle, name, value):
    raw = SCHEMA.from_json(msgspec.json.encode(value), name)
    expected = json_format.ParseDict(value, oracle(name)())

    assert oracle(name).FromString(raw) == expected


@pytest.mark.parametrize(("name", "value"), SAMPLES)
def test_what_others_write_is_read_as_it_was_meant(oracle, name, value):
    raw = json_format.ParseDict(value, oracle(name)()).SerializeToString()
    read = msgspec.json.decode(SCHEMA.to_json(raw, name))

    assert json_format.ParseDict(read, oracle(name)()) == json_format.ParseDict(
        value, oracle(name)()
    )


TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)


@given(TEXTS, st.lists(TEXTS, max_size=3), st.dictionaries(TEXTS, TEXTS, max_size=3))
def test_texts_of_any_kind_survive(oracle, cmd, args, envs):
    value = {"process": {"cmd": cmd, "args": args, "envs": envs}}
    raw = json_format.ParseDict(value, oracle("process.StartRequest")()).SerializeToString()

    assert msgspec.json.decode(SCHEMA.to_json(raw, "process.StartRequest")).get("process", {}) == {
        key: item for key, item in value["process"].items() if item
    }


@given(st.binary(max_size=200))
def test_nonsense_is_refused_or_read_and_never_crashes(raw):
    try:
        SCHEMA.to_json(raw, "process.StartRequest")
    except InvalidArgument:
        return


@pytest.mark.parametrize(
    "raw",
    [
        b"\x0a",
        b"\x0a\x05ab",
        b"\x0a\x01\xff",
        b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0b\x0c",
        b"\x0d\x01",
    ],
)
def test_what_is_cut_off_or_of_no_known_form_is_refused(raw):
    with pytest.raises(InvalidArgument):
        SCHEMA.to_json(raw, "process.ProcessConfig")


def test_unknown_fields_are_passed_over(oracle):
    known = json_format.ParseDict({"path": "/x"}, oracle("filesystem.StatRequest")())
    raw = known.SerializeToString() + b"\xf8\x07\x01" + b"\xfa\x07\x02hi" + b"\xfd\x07abcd"

    assert SCHEMA.to_json(raw, "filesystem.StatRequest") == b'{"path":"/x"}'


def test_every_method_of_the_schema_is_served():
    from opene2b.envd.app import App
    from opene2b.envd.config import Config

    app = App(Config(sandbox_id="", template_id="", access_token=None, env_vars={}), version="1")

    assert set(app.methods) == set(envd_schema.METHODS)
