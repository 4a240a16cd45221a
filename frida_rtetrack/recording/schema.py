"""The tables of a recording, an SQLite database. docs/recording-format.md says what is in them."""

from __future__ import annotations

from frida_rtetrack.recording.columns import COLUMNS

APPLICATION_ID = 0x7274_6672
"""`rtfr`: in the file's header, where file(1) finds it."""
FORMAT_VERSION = 1
PAGE_BYTES = 8192

TABLES = f"""
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY, first INTEGER NOT NULL, events INTEGER NOT NULL,
    start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL, {", ".join(f"{name} BLOB NOT NULL" for name in COLUMNS)}
);
CREATE TABLE amendments (id INTEGER PRIMARY KEY, position INTEGER NOT NULL, amendment BLOB NOT NULL);
CREATE TABLE labels (number INTEGER PRIMARY KEY, text BLOB);
CREATE TABLE threads (number INTEGER PRIMARY KEY, process INTEGER NOT NULL, tid INTEGER NOT NULL, name TEXT NOT NULL);
CREATE TABLE processes (number INTEGER PRIMARY KEY, pid INTEGER NOT NULL, target INTEGER NOT NULL, argv TEXT);
CREATE TABLE modules (
    id INTEGER PRIMARY KEY, path TEXT NOT NULL, base INTEGER NOT NULL, size INTEGER NOT NULL, process INTEGER NOT NULL,
    loaded_epoch INTEGER NOT NULL, unloaded_epoch INTEGER NOT NULL, build_id BLOB
);
CREATE TABLE stacks (
    number INTEGER PRIMARY KEY, process INTEGER NOT NULL, epoch INTEGER NOT NULL, ending INTEGER NOT NULL,
    addresses BLOB NOT NULL
);
CREATE TABLE frames (
    id INTEGER PRIMARY KEY, address INTEGER NOT NULL, module TEXT, offset INTEGER, function TEXT, function_offset INTEGER,
    file TEXT, line INTEGER, inlined INTEGER NOT NULL, module_path TEXT, symbol TEXT
);
CREATE TABLE stack_frames (
    stack INTEGER NOT NULL, place INTEGER NOT NULL, frame INTEGER NOT NULL, PRIMARY KEY (stack, place)
) WITHOUT ROWID;
CREATE TABLE beginning (id INTEGER PRIMARY KEY, state BLOB NOT NULL, live BLOB NOT NULL);
CREATE TABLE aggregate (id INTEGER PRIMARY KEY, usage BLOB NOT NULL, allocations BLOB NOT NULL, cleanup BLOB);
CREATE TABLE sites (
    number INTEGER PRIMARY KEY, stack INTEGER NOT NULL, type INTEGER NOT NULL, thread INTEGER NOT NULL
);
CREATE TABLE series (
    id INTEGER PRIMARY KEY, at_ns INTEGER NOT NULL, changed INTEGER NOT NULL, site BLOB, blocks BLOB, bytes BLOB
);
CREATE TABLE findings (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, at_ns INTEGER NOT NULL, finding BLOB NOT NULL);
CREATE TABLE bad_frees (number INTEGER PRIMARY KEY, report TEXT NOT NULL);
"""
