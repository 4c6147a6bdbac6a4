"""What every store must do: behaviours, each taking an open, empty store.

@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.__name__)
async def test_the_store(behaviour, store):
    await behaviour(store)
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from opene2b.core.errors import AlreadyExists, LimitExceeded, NotFound, ServiceError
from opene2b.core.ids import (
    BuildId,
    ExecutionId,
    ImageId,
    KeyId,
    NodeId,
    SandboxId,
    TeamId,
    TemplateId,
    new_sandbox_id,
    new_template_id,
    new_uuid,
)
from opene2b.core.records import ApiKey, IdempotencyRecord, Sandbox, Team, Template
from opene2b.core.resources import Resources
from opene2b.core.states import SandboxState
from opene2b.store.protocol import SandboxQuery, Store

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
RUNNING = frozenset({SandboxState.RUNNING})


def new_team(slug: str = "default") -> Team:
    return Team(id=TeamId(new_uuid()), name=slug.title(), slug=slug, created_at=MOMENT)


def new_key(team: Team, **changes: Any) -> ApiKey:
    key = ApiKey(
        id=KeyId(new_uuid()),
        team_id=team.id,
        name="a key",
        digest=new_uuid(),
        masked="e2b_ab...cdef",
        created_at=MOMENT,
    )
    return replace(key, **changes)


def new_template(team: Team | None, *aliases: str, **changes: Any) -> Template:
    template = Template(
        id=new_template_id(),
        team_id=team.id if team else None,
        aliases=aliases,
        build_id=BuildId(new_uuid()),
        image_id=ImageId("base"),
        resources=Resources(cpu_count=4, memory_mib=512),
        public=True,
        created_at=MOMENT,
        updated_at=MOMENT,
    )
    return replace(template, **changes)


def new_sandbox(team: Team, **changes: Any) -> Sandbox:
    sandbox = Sandbox(
        id=new_sandbox_id(),
        team_id=team.id,
        template_id=TemplateId("t1"),
        build_id=BuildId(new_uuid()),
        image_id=ImageId("base"),
        alias="base",
        execution_id=ExecutionId(new_uuid()),
        node_id=NodeId("local"),
        state=SandboxState.RUNNING,
        resources=Resources(),
        started_at=MOMENT,
        end_at=MOMENT + timedelta(seconds=300),
        max_end_at=MOMENT + timedelta(hours=1),
        envd_access_token="token",  # noqa: S106 - a sample
        metadata={"name": "wert ä \N{SNOWMAN}", "empty": ""},
        env_vars={"A": "1"},
        options={"network": {"denyOut": ["0.0.0.0/0"]}, "internet": False},
    )
    return replace(sandbox, **changes)


@contextlib.contextmanager
def raises(kind: type[ServiceError]) -> Iterator[None]:
    try:
        yield
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")


def ids(rows: Any) -> list[SandboxId]:
    return [row.id for row in rows]


async def everything_of_a_sandbox_comes_back(store: Store) -> None:
    sandbox = new_sandbox(new_team(), traffic_access_token="traffic", alias=None)  # noqa: S106
    await store.add_sandbox(sandbox)

    assert await store.sandbox(sandbox.id) == sandbox
    assert list(await store.all_sandboxes()) == [sandbox]


async def a_sandbox_is_added_once(store: Store) -> None:
    sandbox = new_sandbox(new_team())
    await store.add_sandbox(sandbox)

    with raises(AlreadyExists):
        await store.add_sandbox(replace(sandbox, metadata={"other": "1"}))
    with raises(AlreadyExists):
        await store.add_sandbox(replace(sandbox, metadata={}))
    assert await store.sandbox(sandbox.id) == sandbox


async def a_deleted_sandbox_is_gone_with_its_metadata(store: Store) -> None:
    team = new_team()
    sandbox = new_sandbox(team)
    await store.add_sandbox(sandbox)
    first = await store.delete_sandbox(sandbox.id)
    second = await store.delete_sandbox(sandbox.id)
    await store.add_sandbox(replace(sandbox, metadata={}))
    found = await store.query_sandboxes(
        SandboxQuery(team_id=team.id, states=RUNNING, metadata={"empty": ""})
    )

    assert (first, second) == (True, False)
    assert list(found) == []


async def a_change_needs_the_expected_state_and_execution(store: Store) -> None:
    sandbox = new_sandbox(new_team())
    await store.add_sandbox(sandbox)
    later = MOMENT + timedelta(hours=2)
    wrong_state = await store.update_sandbox(
        sandbox.id, expected=frozenset({SandboxState.STARTING}), end_at=later
    )
    wrong_execution = await store.update_sandbox(
        sandbox.id, expected=RUNNING, execution_id=ExecutionId(new_uuid()), end_at=later
    )
    unknown = await store.update_sandbox(SandboxId("inone"), expected=RUNNING, end_at=later)
    untouched = await store.sandbox(sandbox.id)
    changed = await store.update_sandbox(
        sandbox.id, expected=RUNNING, execution_id=sandbox.execution_id, end_at=later
    )

    assert wrong_state is wrong_execution is unknown is None
    assert untouched == sandbox
    assert changed == replace(sandbox, end_at=later) == await store.sandbox(sandbox.id)


async def a_change_of_nothing_is_only_the_comparison(store: Store) -> None:
    sandbox = new_sandbox(new_team())
    await store.add_sandbox(sandbox)
    same = await store.update_sandbox(sandbox.id, expected=RUNNING)
    other = await store.update_sandbox(sandbox.id, expected=frozenset({SandboxState.KILLING}))
    none = await store.update_sandbox(sandbox.id, expected=frozenset())

    assert same == sandbox
    assert other is none is None


async def a_change_may_need_an_end_that_is_not_later(store: Store) -> None:
    sandbox = new_sandbox(new_team())
    await store.add_sandbox(sandbox)
    before = sandbox.end_at - timedelta(microseconds=1)
    late = await store.update_sandbox(
        sandbox.id, expected=RUNNING, ends_by=before, state=SandboxState.KILLING
    )
    exact = await store.update_sandbox(
        sandbox.id, expected=RUNNING, ends_by=sandbox.end_at, state=SandboxState.KILLING
    )

    assert late is None
    assert exact is not None


async def a_paused_sandbox_counts_again_when_it_is_resumed(store: Store) -> None:
    team = new_team()
    paused = new_sandbox(team, state=SandboxState.PAUSED)
    await store.add_sandbox(paused)
    await store.add_sandbox(new_sandbox(team), team_limit=1)
    wanted: dict[str, Any] = {
        "expected": frozenset({SandboxState.PAUSED}),
        "state": SandboxState.RESUMING,
    }
    with raises(LimitExceeded):
        await store.update_sandbox(paused.id, team_limit=1, **wanted)
    untouched = await store.sandbox(paused.id)
    resumed = await store.update_sandbox(paused.id, team_limit=2, **wanted)

    assert untouched == paused
    assert resumed is not None


async def of_many_changes_at_once_one_wins(store: Store) -> None:
    sandbox = new_sandbox(new_team())
    await store.add_sandbox(sandbox)
    results = await asyncio.gather(
        *(
            store.update_sandbox(sandbox.id, expected=RUNNING, state=SandboxState.KILLING)
            for _ in range(20)
        )
    )

    assert sum(result is not None for result in results) == 1


async def an_unknown_field_is_refused(store: Store) -> None:
    sandbox = new_sandbox(new_team())
    await store.add_sandbox(sandbox)
    try:
        await store.update_sandbox(sandbox.id, expected=RUNNING, colour="red")
    except ValueError:
        return
    raise AssertionError("a field that no sandbox has was changed")


async def pages_have_every_row_once_in_order(store: Store) -> None:
    team = new_team()
    # Five in the same microsecond: the id decides.
    rows = [new_sandbox(team, started_at=MOMENT + timedelta(seconds=n // 5)) for n in range(12)]
    for row in rows:
        await store.add_sandbox(row)
    await store.add_sandbox(new_sandbox(new_team("other")))
    for ascending in (True, False):
        seen: list[SandboxId] = []
        after: tuple[datetime, str] | None = None
        while True:
            page = await store.query_sandboxes(
                SandboxQuery(
                    team_id=team.id, states=RUNNING, ascending=ascending, after=after, limit=5
                )
            )
            seen += ids(page[:5])
            if len(page) <= 5:
                break
            after = (page[4].started_at, page[4].id)
        expected = sorted(rows, key=lambda row: (row.started_at, row.id), reverse=not ascending)

        assert seen == ids(expected)


async def filters_are_all_needed(store: Store) -> None:
    team = new_team()
    wanted = new_sandbox(
        team, metadata={"a": "1", "b": "2", "c": "3"}, template_id=TemplateId("t2")
    )
    for row in (
        wanted,
        new_sandbox(team, metadata={"a": "1"}, template_id=TemplateId("t2")),
        new_sandbox(team, metadata={"a": "1", "b": "2"}),
        new_sandbox(team, metadata={"a": "1", "b": "2"}, state=SandboxState.STARTING),
        new_sandbox(
            team,
            metadata={"a": "1", "b": "2"},
            template_id=TemplateId("t2"),
            started_at=MOMENT - timedelta(microseconds=1),
        ),
        new_sandbox(new_team("other"), metadata={"a": "1", "b": "2"}, template_id=TemplateId("t2")),
    ):
        await store.add_sandbox(row)
    found = await store.query_sandboxes(
        SandboxQuery(
            team_id=team.id,
            states=RUNNING,
            metadata={"a": "1", "b": "2"},
            template_id=TemplateId("t2"),
            started_after=MOMENT,
        )
    )

    assert ids(found) == [wanted.id]


async def hostile_text_is_only_text(store: Store) -> None:
    team = new_team()
    pair = {"'; DROP TABLE sandboxes; --": "%_\\ \"' \N{PILE OF POO}"}
    row = new_sandbox(team, metadata=pair)
    await store.add_sandbox(row)
    await store.add_sandbox(new_sandbox(team, metadata={"x": "y"}))
    found = await store.query_sandboxes(
        SandboxQuery(team_id=team.id, states=RUNNING, metadata=pair)
    )

    assert list(found) == [row]


async def sandboxes_are_counted_by_team_and_state(store: Store) -> None:
    team = new_team()
    for state in (SandboxState.RUNNING, SandboxState.RUNNING, SandboxState.STARTING):
        await store.add_sandbox(new_sandbox(team, state=state))
    await store.add_sandbox(new_sandbox(new_team("other")))

    assert await store.count_sandboxes(team.id, RUNNING) == 2
    assert await store.count_sandboxes(team.id, RUNNING | {SandboxState.STARTING}) == 3


async def a_team_at_its_limit_gets_no_more(store: Store) -> None:
    team = new_team()
    await store.add_sandbox(new_sandbox(team, state=SandboxState.STARTING), team_limit=3)
    await store.add_sandbox(new_sandbox(team, state=SandboxState.KILLING), team_limit=3)
    await store.add_sandbox(new_sandbox(new_team("other")), team_limit=1)
    results = await asyncio.gather(
        *(store.add_sandbox(new_sandbox(team), team_limit=3) for _ in range(10)),
        return_exceptions=True,
    )

    assert results.count(None) == 2
    assert sum(isinstance(result, LimitExceeded) for result in results) == 8


async def a_bare_name_means_the_own_then_the_default_then_an_id(store: Store) -> None:
    team = await store.ensure_team(new_team())
    other = await store.ensure_team(new_team("other"))
    own, default = new_template(team, "a", "mine"), new_template(None, "a", "b")
    foreign = new_template(other, "theirs")
    for template in (default, own, foreign):
        await store.put_template(template)

    assert await store.find_template("a", team.id) == own
    assert await store.find_template("a", other.id) == default
    assert await store.find_template("b", team.id) == default
    assert await store.find_template(foreign.id, team.id) == foreign
    assert await store.find_template("theirs", team.id) is None


async def a_team_is_made_once(store: Store) -> None:
    made = await asyncio.gather(*(store.ensure_team(new_team()) for _ in range(10)))

    assert len({team.id for team in made}) == 1
    assert await store.team(made[0].id) == made[0]
    assert await store.team(TeamId(new_uuid())) is None


async def a_key_is_found_by_its_digest_until_the_end_of_time(store: Store) -> None:
    team = await store.ensure_team(new_team())
    key, second = new_key(team), new_key(team, created_at=MOMENT - timedelta(days=1))
    await store.add_key(key)
    await store.add_key(second)
    with raises(AlreadyExists):
        await store.add_key(new_key(team, digest=key.digest))
    await store.touch_key(key.id, at=MOMENT)
    revoked = await store.revoke_key(key.id, at=MOMENT)
    again = await store.revoke_key(key.id, at=MOMENT + timedelta(days=1))
    with raises(NotFound):
        await store.revoke_key(KeyId(new_uuid()), at=MOMENT)

    assert revoked == again == replace(key, revoked_at=MOMENT, last_used_at=MOMENT)
    assert await store.key_by_digest(key.digest) == revoked
    assert await store.key_by_digest("nothing") is None
    assert list(await store.keys(team.id)) == [second, revoked]


async def a_template_is_found_by_id_and_by_its_teams_alias(store: Store) -> None:
    team = await store.ensure_team(new_team())
    other = await store.ensure_team(new_team("other"))
    default = new_template(None, "base", created_at=MOMENT - timedelta(days=1))
    own = new_template(team, "base", "second")
    await store.put_template(default)
    await store.put_template(own)
    await store.put_template(new_template(other, "base"))

    assert await store.template(own.id) == own
    assert await store.template_by_alias("base", team_id=team.id) == own
    assert await store.template_by_alias("second", team_id=team.id) == own
    assert await store.template_by_alias("base", team_id=None) == default
    assert await store.template_by_alias("second", team_id=None) is None
    assert list(await store.templates(team.id)) == [own, default]


async def an_alias_belongs_to_one_template_of_a_team(store: Store) -> None:
    team = await store.ensure_team(new_team())
    first = new_template(team, "a")
    await store.put_template(first)
    for scope in (team, None):
        await store.put_template(holder := new_template(scope, "held"))
        with raises(AlreadyExists):
            await store.put_template(new_template(scope, "new", "held"))
        assert await store.template_by_alias("held", team_id=holder.team_id) == holder
        assert await store.template_by_alias("new", team_id=holder.team_id) is None
    changed = replace(first, aliases=("b",), build_count=2)
    await store.put_template(changed)
    await store.put_template(new_template(team, "a"))

    assert await store.template_by_alias("b", team_id=team.id) == changed


async def spawns_are_counted(store: Store) -> None:
    template = new_template(None, "base")
    await store.put_template(template)
    await asyncio.gather(*(store.count_spawn(template.id, at=MOMENT) for _ in range(10)))

    assert await store.template(template.id) == replace(
        template, spawn_count=10, last_spawned_at=MOMENT
    )


async def a_promise_is_made_once(store: Store) -> None:
    team = new_team()

    def promise(key: str = "k", team_id: TeamId = team.id) -> IdempotencyRecord:
        return IdempotencyRecord(
            team_id=team_id,
            key=key,
            body_digest="d",
            sandbox_id=new_sandbox_id(),
            created_at=MOMENT,
        )

    promises = [promise() for _ in range(10)]
    answers = await asyncio.gather(*(store.claim_idempotency(one) for one in promises))
    winner = promises[answers.index(None)]
    others = await store.claim_idempotency(promise("other"))
    another_team = await store.claim_idempotency(promise(team_id=TeamId(new_uuid())))
    await store.drop_idempotency(team.id, "k")
    again = await store.claim_idempotency(promise())

    assert answers.count(None) == 1
    assert all(answer == winner for answer in answers if answer is not None)
    assert others is another_team is again is None


async def old_promises_are_swept(store: Store) -> None:
    for n in range(3):
        await store.claim_idempotency(
            IdempotencyRecord(
                team_id=TeamId("t"),
                key=str(n),
                body_digest="d",
                sandbox_id=new_sandbox_id(),
                created_at=MOMENT + timedelta(hours=n),
            )
        )

    assert await store.sweep_idempotency(before=MOMENT + timedelta(hours=2)) == 2
    assert await store.sweep_idempotency(before=MOMENT + timedelta(hours=2)) == 0


Behaviour = Callable[[Store], Awaitable[None]]
BEHAVIOURS: tuple[Behaviour, ...] = (
    everything_of_a_sandbox_comes_back,
    a_sandbox_is_added_once,
    a_deleted_sandbox_is_gone_with_its_metadata,
    a_change_needs_the_expected_state_and_execution,
    a_change_of_nothing_is_only_the_comparison,
    a_change_may_need_an_end_that_is_not_later,
    a_paused_sandbox_counts_again_when_it_is_resumed,
    of_many_changes_at_once_one_wins,
    an_unknown_field_is_refused,
    pages_have_every_row_once_in_order,
    filters_are_all_needed,
    hostile_text_is_only_text,
    sandboxes_are_counted_by_team_and_state,
    a_team_at_its_limit_gets_no_more,
    a_bare_name_means_the_own_then_the_default_then_an_id,
    a_team_is_made_once,
    a_key_is_found_by_its_digest_until_the_end_of_time,
    a_template_is_found_by_id_and_by_its_teams_alias,
    an_alias_belongs_to_one_template_of_a_team,
    spawns_are_counted,
    a_promise_is_made_once,
    old_promises_are_swept,
)
