"""The rules that judge the next round, exchanged as reference data and catalogue files change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog
from clickhouse_connect.driver.client import Client

from pipeline.errors import ConfigurationError
from pipeline.process.account import Account
from pipeline.process.flow import Rules
from pipeline.process.threads import Threads
from pipeline.reference.snapshot import Reference
from pipeline.rules.archive import keep
from pipeline.rules.catalogue import Catalogues, load_catalogues
from pipeline.sink.retry import Failure, classify

log = structlog.get_logger(__name__)

_FIRST_LOAD_SECONDS: Final = 0.25


class RulesInForce:
    """Holds the rules; a round in progress keeps those it began with.

    awaits : kinds of reference data that are looked for more often until they are there.
    reloaded : called when there are new reference data.
    """

    def __init__(
        self,
        first: Rules,
        in_thread: Threads,
        account: Account,
        *,
        awaits: Collection[str],
        reloaded: Callable[[], None],
    ) -> None:
        self.now = first
        self._awaits = awaits
        self._reloaded = reloaded
        self._settings = first.settings
        self._in_thread = in_thread
        self._account = account

    async def watch(self) -> None:
        """Take over new reference data and catalogues until cancelled."""
        catalogue_state = _state_of(self._settings.catalogue_dir)
        while True:
            await asyncio.sleep(self._pause)
            rules = self.now
            try:
                reference = await self._in_thread(
                    lambda client, old=rules.reference: Reference.load(  # type: ignore[misc]
                        client, tolerance_m=self._settings.grid_tolerance_m, previous=old
                    )
                )
            except Exception as error:
                if classify(error) is not Failure.TRANSIENT:
                    raise
                log.warning("reference_not_read", error=type(error).__name__)
                continue
            if reference is not rules.reference:
                rules = self.now = replace(rules, reference=reference)
                self._account.reference(reference.counts)
                log.info("reference_reloaded", version=reference.version, **reference.counts)
                self._reloaded()
            state = _state_of(self._settings.catalogue_dir)
            if state != catalogue_state and await self._reload_catalogues(rules):
                catalogue_state = state

    @property
    def _pause(self) -> float:
        """Without a grid every report is rejected: a first load is looked for more often."""
        pause = self._settings.reference_refresh_seconds
        return pause if self.knows({"grids", *self._awaits}) else min(pause, _FIRST_LOAD_SECONDS)

    def knows(self, kinds: Collection[str]) -> bool:
        """Whether there are reference data of each of these kinds."""
        return all(self.now.reference.counts.get(kind, 0) > 0 for kind in kinds)

    async def _reload_catalogues(self, rules: Rules) -> bool:
        """Take over the catalogue's files as they are now; returns False to be asked again."""
        try:
            catalogues = await self._in_thread(self._load_and_keep)
        except ConfigurationError as error:
            log.error("catalogue_refused_old_one_stays", problems=error.problems)
            return True
        except Exception as error:
            if classify(error) is not Failure.TRANSIENT:
                raise
            log.warning("catalogue_not_kept_old_one_stays_meanwhile", error=type(error).__name__)
            return False
        if catalogues.digest != rules.digest:
            self.now = replace(rules, catalogues=catalogues)
            self._account.reasons(catalogues.reason_names_zh)
            log.info("catalogue_reloaded", rules=catalogues.digest)
        return True

    def _load_and_keep(self, client: Client) -> Catalogues:
        """No row may name rules that cannot be read again."""
        catalogues = load_catalogues(self._settings.catalogue_dir)
        keep(client, catalogues)
        return catalogues


def _state_of(directory: Path) -> tuple[tuple[str, int, int], ...]:
    """What the files of a directory look like from outside: cheap enough to ask every few seconds."""
    return tuple(
        (str(path), status.st_mtime_ns, status.st_size)
        for path in sorted(directory.rglob("*.yaml"))
        for status in [path.stat()]
    )
