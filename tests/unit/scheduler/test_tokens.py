import stat

from opene2b.core.ids import SandboxId
from opene2b.scheduler import tokens

ONE = SandboxId("i1")


def test_tokens_outlive_the_process_and_differ_by_sandbox_and_purpose(tmp_path):
    path = tmp_path / "token-seed"
    first, second = tokens.load(path), tokens.load(path)

    assert first.envd(ONE) == second.envd(ONE)
    assert len({first.envd(ONE), first.traffic(ONE), first.envd(SandboxId("i2"))}) == 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_random_tokens_differ_by_process():
    assert tokens.random_tokens().envd(ONE) != tokens.random_tokens().envd(ONE)
