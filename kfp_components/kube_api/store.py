"""Where the objects live: one sqlite database with the objects, a bounded history of changes for watches, and a version counter.

Everything is called from one thread at a time. A transaction is committed before its answer is sent (write-ahead log, no
fsync per commit), so the state survives the death of the process, though not of the machine. A second server on the same file
is refused. The database ``:memory:`` is gone with the process.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from kfp_components.kube_api.kinds import Kind

Object = dict[str, Any]
FIRST_VERSION = 1000
"""The counter starts above this, so that a watch from version 1 is too old on a new server as it is on a real one."""
HISTORY = 5000
"""Changes kept for watches."""

TABLES = """
CREATE TABLE IF NOT EXISTS objects (
    kind TEXT, namespace TEXT, name TEXT, uid TEXT, body TEXT, PRIMARY KEY (kind, namespace, name)
);
CREATE INDEX IF NOT EXISTS by_uid ON objects (uid);
CREATE TABLE IF NOT EXISTS changes (
    version INTEGER PRIMARY KEY, kind TEXT, namespace TEXT, type TEXT, body TEXT, previous TEXT
);
CREATE TABLE IF NOT EXISTS counter (version INTEGER, oldest INTEGER);
"""


class Change(NamedTuple):
    """One entry of the history; ``previous`` is the object before it."""

    version: int
    type: str
    body: Object
    previous: Object | None


class Store:
    """The objects of all kinds, keyed by kind, namespace ('' for cluster-scoped ones) and name."""

    def __init__(self, database: Path | str) -> None:
        """Open or make the file. Raises RuntimeError when another server holds it."""
        self._db = sqlite3.connect(str(database), isolation_level=None, check_same_thread=False, timeout=1.0)
        try:
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(TABLES)
            if not self._db.execute("SELECT version FROM counter").fetchone():
                self._db.execute("INSERT INTO counter VALUES (?, ?)", (FIRST_VERSION, FIRST_VERSION))
            self.version, self.oldest = self._db.execute("SELECT version, oldest FROM counter").fetchone()
        except sqlite3.Error as error:
            self._db.close()
            raise RuntimeError(f"database {database}: {error}; is another API server running on it? stop that one first") from error
        self._listeners: list[Callable[[], None]] = []

    def close(self) -> None:
        """Give the file back."""
        self._db.close()

    @contextmanager
    def transaction(self, *, dry_run: bool = False) -> Iterator[None]:
        """All of it or nothing; a dry run is undone at the end."""
        before = self.version, self.oldest
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            if not dry_run:
                self._trim()
                self._db.execute("UPDATE counter SET version = ?, oldest = ?", (self.version, self.oldest))
                self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
                self.version, self.oldest = before
        if self.version != before[0]:
            self.wake()

    def wake(self) -> None:
        """Let every watch look again."""
        for listener in list(self._listeners):
            listener()

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """The object, or None."""
        key = (kind.resource, namespace, name)
        row = self._db.execute("SELECT body FROM objects WHERE kind = ? AND namespace = ? AND name = ?", key).fetchone()
        return json.loads(row[0]) if row else None

    def find(self, kind: Kind, namespace: str = "") -> list[Object]:
        """All objects of a kind, in one namespace or in all, by namespace and name."""
        query = "SELECT body FROM objects WHERE kind = ? AND (? = '' OR namespace = ?) ORDER BY namespace, name"
        return [json.loads(body) for (body,) in self._db.execute(query, (kind.resource, namespace, namespace))]

    def everything(self, namespace: str = "") -> list[tuple[str, Object]]:
        """All objects of all kinds as (resource, object), in one namespace or in all."""
        query = "SELECT kind, body FROM objects WHERE ? = '' OR namespace = ? ORDER BY kind, name"
        return [(kind, json.loads(body)) for kind, body in self._db.execute(query, (namespace, namespace))]

    def has_uid(self, uid: str) -> bool:
        """Whether an object with that uid exists."""
        return self._db.execute("SELECT 1 FROM objects WHERE uid = ?", (uid,)).fetchone() is not None

    def put(self, kind: Kind, obj: Object, previous: Object | None) -> Object:
        """Write an object under the next resourceVersion; returns it with that."""
        body = self._record(kind, obj, "ADDED" if previous is None else "MODIFIED", previous)
        metadata = obj["metadata"]
        key = (kind.resource, metadata.get("namespace", ""), metadata["name"], metadata["uid"], body)
        self._db.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?)", key)
        return obj

    def remove(self, kind: Kind, obj: Object) -> Object:
        """Delete an object; the last state gets a resourceVersion of its own."""
        metadata = obj["metadata"]
        key = (kind.resource, metadata.get("namespace", ""), metadata["name"])
        self._db.execute("DELETE FROM objects WHERE kind = ? AND namespace = ? AND name = ?", key)
        self._record(kind, obj, "DELETED", obj)
        return obj

    def since(self, kind: Kind, namespace: str, version: int) -> list[Change]:
        """The changes after ``version``, oldest first."""
        query = "SELECT version, type, body, previous FROM changes WHERE version > ? AND kind = ? AND (? = '' OR namespace = ?) ORDER BY version"
        rows = self._db.execute(query, (version, kind.resource, namespace, namespace))
        return [Change(v, t, json.loads(body), json.loads(previous) if previous else None) for v, t, body, previous in rows]

    @contextmanager
    def listening(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call ``listener`` after each commit, and when `wake` is called."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def _record(self, kind: Kind, obj: Object, change: str, previous: Object | None) -> str:
        self.version += 1
        before = json.dumps(previous) if previous else None
        obj["metadata"]["resourceVersion"] = str(self.version)
        body = json.dumps(obj)
        row = (self.version, kind.resource, obj["metadata"].get("namespace", ""), change, body, before)
        self._db.execute("INSERT INTO changes VALUES (?, ?, ?, ?, ?, ?)", row)
        return body

    def _trim(self) -> None:
        if self.version - self.oldest > 2 * HISTORY:
            self.oldest = self.version - HISTORY
            self._db.execute("DELETE FROM changes WHERE version <= ?", (self.oldest,))
