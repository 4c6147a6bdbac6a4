"""What a request says about its user and its paths."""

from opene2b.connect.http import Request
from opene2b.envd import paths, users
from opene2b.envd.auth import first
from opene2b.envd.config import Config
from opene2b.envd.filesystem.controller import Controller
from opene2b.envd.filesystem.owners import Owner
from opene2b.envd.users import User, Users


class Requests:
    """One for all requests; also holds the controller that filesystem methods ask."""

    def __init__(self, config: Config, known: Users, controller: Controller) -> None:
        self.config = config
        self.known = known
        self.controller = controller

    def user(self, request: Request) -> User:
        """`?username=`, else Basic credentials, else the default user. Raises Unauthenticated."""
        name = first(request.query.get("username")) if request.raw_query else None
        if not name:
            name = users.basic_name(request.headers.get("authorization"))
        return self.known.find(name or self.config.default_user)

    def place(self, request: Request, path: str) -> tuple[str, Owner]:
        """The absolute form of a path, and who gets what the request creates."""
        user = self.user(request)
        resolved = paths.resolve(path, user, self.config.default_workdir)
        return resolved, Owner(uid=user.uid, gid=user.gid)
