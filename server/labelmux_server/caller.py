"""Who sent a request, and what they may have. No HTTP."""

from __future__ import annotations

from typing import NamedTuple

from labelmux_server.errors import TaskForbiddenError, WrongScopeError
from labelmux_server.keys import Rights, Scope
from labelmux_server.rates import Rates
from labelmux_server.settings import Settings

#: The name of a caller without a key, in metrics; no key can have it.
ANYONE = "(anyone)"


class Caller(NamedTuple):
    """Who sent a request, and what they may have."""

    #: None where the server asks for no key.
    key: str | None
    rights: Rights
    rates: Rates
    settings: Settings

    def check_scope(self, scopes: frozenset[Scope]) -> None:
        """Return if the caller has one of these.

        Raises:
            WrongScopeError
        """
        if not scopes & self.rights.scopes:
            raise WrongScopeError(self.name, sorted(scopes))

    def check_task(self, task: str) -> None:
        """Return if the caller may use the task of this name, whether it is there or not.

        Raises:
            TaskForbiddenError
        """
        if not self.rights.covers(task):
            raise TaskForbiddenError(self.name, task)

    def spend_request(self) -> None:
        """Count a request.

        Raises:
            RateLimitedError
        """
        own, usual = self.rights.requests_per_minute, self.settings.max_requests_per_minute
        self.rates.spend(self.name, "requests", 1, usual if own is None else own)

    def check_tokens(self) -> None:
        """Return if a call may pass, whatever its tokens.

        Raises:
            RateLimitedError
        """
        self.rates.check(self.name, "tokens", self._tokens_per_minute)

    def spend_tokens(self, tokens: int) -> None:
        """Count the tokens of a call that passed."""
        self.rates.count(self.name, "tokens", tokens, self._tokens_per_minute)

    @property
    def _tokens_per_minute(self) -> int:
        own, usual = self.rights.tokens_per_minute, self.settings.max_tokens_per_minute
        return usual if own is None else own

    @property
    def name(self) -> str:
        """The key's name, or a word for its absence."""
        return self.key or ANYONE
